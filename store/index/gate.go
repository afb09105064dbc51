package index

import (
	"sync"

	"github.com/cairn-backup/cairn/internal/fault"
)

// gate lets calls in until it is shut. Pebble panics in who comes to it after its Close, in a goroutine of a worker
// that would be the end of the program. A call inside another never waits for the gate, so shut cannot lock up.
type gate struct {
	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

func (g *gate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return fault.New(fault.Conflict, "use index", "", "the repository is closed")
	}
	g.running.Add(1)
	return nil
}

func (g *gate) leave() { g.running.Done() }

// shut waits for the calls inside; false: it was shut before.
func (g *gate) shut() bool {
	g.mu.Lock()
	was := g.closed
	g.closed = true
	g.mu.Unlock()
	g.running.Wait()
	return !was
}

// enter is for each call that reaches Pebble; leave must follow.
func (x *Index) enter() error {
	if err := x.log.broken(); err != nil {
		return err
	}
	return x.gate.enter()
}

func (x *Index) leave() { x.gate.leave() }
