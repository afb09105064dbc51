package server

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
)

// followEvery is how soon what another manager does is told here.
const followEvery = time.Second

// follower tells those who follow the events at this manager what happens at the others. All of it is in the catalog, which is
// asked: a task's progress is stored there every second.
type follower struct {
	a    *Appliance
	told map[string]catalog.Task // under way at other managers, as it was told last
	seq  int64                   // of the last event
}

func (a *Appliance) follow(ctx context.Context) {
	f := follower{a: a, told: map[string]catalog.Task{}}
	f.seq, _ = a.catalog.LastEvent(ctx) //nolint:errcheck // the first look tells more than is needed then
	a.again(ctx, followEvery, "what other managers do was not read; trying again", f.look)
}

// again does something at each tick until ctx ends, and logs the words where it did not succeed.
func (a *Appliance) again(ctx context.Context, every time.Duration, words string, do func(context.Context) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := do(ctx); err != nil && ctx.Err() == nil {
			a.log.WarnContext(ctx, words, "err", err)
		}
	}
}

func (f *follower) look(ctx context.Context) error {
	events, next, err := f.a.catalog.EventsElsewhere(ctx, f.seq)
	if err != nil {
		return err
	}
	f.seq = next
	runs := map[string]bool{} // also those that began and ended between two looks
	for _, e := range events {
		f.a.stream.PublishRunEvent(e)
		runs[e.RunID] = true
	}
	for id := range runs {
		f.tellRun(ctx, id)
	}
	tasks, err := f.a.catalog.ActiveTasks(ctx)
	if err != nil {
		return err
	}
	active := map[string]bool{}
	for _, t := range tasks {
		if t.State == catalog.Running && t.ManagerID == f.a.catalog.ManagerID() {
			continue
		}
		active[t.ID] = true
		if before, ok := f.told[t.ID]; !ok || moved(before, t) {
			f.tell(ctx, t)
		}
		f.told[t.ID] = t
	}
	for id := range f.told {
		if active[id] {
			continue
		}
		delete(f.told, id)
		t, err := f.a.catalog.Task(ctx, id)
		if err != nil {
			return err
		}
		if t.ManagerID != f.a.catalog.ManagerID() {
			f.tell(ctx, t)
		}
	}
	return nil
}

func (f *follower) tell(ctx context.Context, t catalog.Task) {
	f.a.stream.PublishTask(t)
	if t.State.Final() {
		f.a.routine.taskEnded()
	}
	f.tellRun(ctx, t.RunID)
}

func (f *follower) tellRun(ctx context.Context, id string) {
	run, err := f.a.catalog.Run(ctx, id)
	if err != nil {
		return // it is told the next time something changes
	}
	if tasks, err := f.a.catalog.TasksOfRuns(ctx, []string{run.ID}); err == nil {
		f.a.stream.PublishRun(httpapi.RunInfo{Run: run, Tasks: tasks[run.ID]})
	}
}

func moved(a, b catalog.Task) bool {
	x, y := a.Progress.Sum(), b.Progress.Sum()
	return a.State != b.State || a.Phase != b.Phase || x.BytesScanned != y.BytesScanned || x.BytesRead != y.BytesRead || x.Rate != y.Rate
}
