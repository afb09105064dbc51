package catalog

import "slices"

// State of a run or a task.
type State string

// The states. A run's state follows from its tasks.
const (
	Queued    State = "queued"
	Running   State = "running"
	Succeeded State = "succeeded"
	Warning   State = "warning" // succeeded, but somebody should look
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// moves are the legal transitions; a state that is not a key is final.
var moves = map[State][]State{
	Queued:  {Running, Cancelled, Failed},
	Running: {Succeeded, Warning, Failed, Cancelled},
}

// CanBecome reports whether a task in state s may move to state to.
func (s State) CanBecome(to State) bool { return slices.Contains(moves[s], to) }

// Final reports whether nothing follows s.
func (s State) Final() bool { return len(moves[s]) == 0 }

// runState derives a run's state from those of its tasks: under way while one is, else the worst.
func runState(tasks []State) State {
	count := map[State]int{}
	for _, s := range tasks {
		count[s]++
	}
	switch {
	case count[Running] > 0 || (count[Queued] > 0 && count[Queued] < len(tasks)):
		return Running
	case count[Queued] > 0:
		return Queued
	case count[Failed] > 0:
		return Failed
	case count[Cancelled] > 0:
		return Cancelled
	case count[Warning] > 0:
		return Warning
	}
	return Succeeded
}
