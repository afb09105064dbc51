package server

import (
	"context"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
)

// ListRuns implements httpapi.Core.
func (a *Appliance) ListRuns(ctx context.Context, f catalog.RunFilter, p catalog.Page) (catalog.List[httpapi.RunInfo], error) {
	list, err := a.catalog.Runs(ctx, f, p)
	if err != nil {
		return catalog.List[httpapi.RunInfo]{}, err
	}
	ids := make([]string, len(list.Items))
	for i, r := range list.Items {
		ids[i] = r.ID
	}
	tasks, err := a.catalog.TasksOfRuns(ctx, ids)
	out := catalog.List[httpapi.RunInfo]{Next: list.Next, Total: list.Total}
	for _, r := range list.Items {
		out.Items = append(out.Items, httpapi.RunInfo{Run: r, Tasks: tasks[r.ID]})
	}
	return out, err
}

// GetRun implements httpapi.Core.
func (a *Appliance) GetRun(ctx context.Context, id string) (httpapi.RunInfo, error) {
	run, err := a.catalog.Run(ctx, id)
	if err != nil {
		return httpapi.RunInfo{}, err
	}
	tasks, err := a.catalog.TasksOfRuns(ctx, []string{id})
	return httpapi.RunInfo{Run: run, Tasks: tasks[id]}, err
}

// CancelRun implements httpapi.Core.
func (a *Appliance) CancelRun(ctx context.Context, id string) error {
	run, err := a.GetRun(ctx, id)
	if err != nil {
		return err
	}
	if run.State.Final() {
		return fault.New(fault.Conflict, "cancel run", id, "the run is over: %s", run.State).Explain(
			"All tasks of the run have ended, so there is nothing to cancel.", "Look at the run for how they ended.")
	}
	for _, t := range run.Tasks {
		if t.State.Final() {
			continue
		}
		if err := a.CancelTask(ctx, t.ID); err != nil && fault.KindOf(err) != fault.Conflict {
			return err
		}
	}
	return nil
}

// ListRunEvents implements httpapi.Core.
func (a *Appliance) ListRunEvents(ctx context.Context, run string, after int64, limit int) ([]catalog.Event, error) {
	if _, err := a.catalog.Run(ctx, run); err != nil {
		return nil, err
	}
	return a.catalog.Events(ctx, run, after, limit)
}

// ListTasks implements httpapi.Core.
func (a *Appliance) ListTasks(ctx context.Context, f catalog.TaskFilter, p catalog.Page) (catalog.List[catalog.Task], error) {
	return a.catalog.Tasks(ctx, f, p)
}

// GetTask implements httpapi.Core.
func (a *Appliance) GetTask(ctx context.Context, id string) (catalog.Task, error) {
	return a.catalog.Task(ctx, id)
}

// CancelTask implements httpapi.Core.
func (a *Appliance) CancelTask(ctx context.Context, id string) error {
	_, err := a.queue.Cancel(ctx, id)
	return err
}
