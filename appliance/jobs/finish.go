package jobs

import (
	"context"
	"errors"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// cleanUpTime bounds the clean-up of one task; what is left then is the sweep's.
const cleanUpTime = 2 * time.Minute

// retryStore is how long the end of a task waits before it is stored again when that failed.
const retryStore = time.Second

// finish removes what the task owes and moves it to its final state.
func (q *Queue) finish(ctx context.Context, t *Task, err error) {
	cause := context.Cause(ctx)
	ctx = context.WithoutCancel(ctx)
	q.settleTask(ctx, t, cleanUpTime)
	state, err := outcome(err, cause, len(t.warnings) > 0)
	t.mu.Lock()
	last := t.row()
	t.mu.Unlock()
	row, moveErr := q.moveToEnd(ctx, t.ID, state, func(row *catalog.Task) {
		row.Phase, row.Progress, row.Warnings, row.Result = "", last.Progress, last.Warnings, last.Result
		row.Error = catalog.FailureOf(err)
		if row.Result != nil && row.Result.RestorePointID != "" {
			row.RestorePointID = row.Result.RestorePointID
		}
	})
	if moveErr != nil {
		q.complain(ctx, "end of task was not stored", t.ID, moveErr)
		return
	}
	q.tellEnd(ctx, row, err)
}

func (q *Queue) settleTask(ctx context.Context, t *Task, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := q.journal.Settle(ctx, t.ID); err != nil {
		t.Warn(ctx, "Something that was made on the platform could not be removed yet; it will be tried again: "+err.Error())
	}
}

// outcome decides the final state: success stays success even when cancelling came too late.
func outcome(err, cause error, warned bool) (catalog.State, error) {
	switch {
	case err == nil && warned:
		return catalog.Warning, nil
	case err == nil:
		return catalog.Succeeded, nil
	case errors.Is(cause, errCancelled):
		return catalog.Cancelled, nil
	case cause != nil: // the queue is stopping
		return catalog.Failed, stopped(err)
	}
	return catalog.Failed, err
}

// stopped does not wrap the cause, whose own explanation would not be the point.
func stopped(cause error) error {
	return fault.New(fault.Transient, "run task", "", "the manager stopped while the task was under way: %v", cause).Explain(
		"The manager was stopped. What the task had made was removed; restore points are not affected.",
		"Run it again.")
}

// moveToEnd stores the end of a task. While the catalog cannot be written it tries again until the queue stops; the
// start after that finds the task running and ends it.
func (q *Queue) moveToEnd(ctx context.Context, id string, to catalog.State, change func(*catalog.Task)) (catalog.Task, error) {
	for {
		row, err := q.catalog.MoveTask(ctx, id, to, change)
		if err == nil || fault.KindOf(err) == fault.Conflict || q.stopping.Load() {
			return row, err
		}
		q.complain(ctx, "end of task was not stored; trying again", id, err)
		time.Sleep(retryStore)
	}
}

func (q *Queue) tellEnd(ctx context.Context, row catalog.Task, err error) {
	e := catalog.Event{RunID: row.RunID, TaskID: row.ID, Level: catalog.LevelInfo}
	switch row.State {
	case catalog.Failed:
		e.Level, e.Message = catalog.LevelError, row.Error.What
		e.Meaning, e.Advice = row.Error.Meaning, row.Error.Advice
		q.log.ErrorContext(ctx, "task failed", "run_id", row.RunID, "task_id", row.ID, "vm", row.VMName, "err", err)
	case catalog.Cancelled:
		e.Message = "Cancelled; what was made on the platform has been removed."
	case catalog.Warning:
		e.Level, e.Message = catalog.LevelWarning, "Done, with warnings."
	default:
		e.Message = "Done."
	}
	q.event(ctx, e)
	q.publish.PublishTask(row)
	q.publishRun(ctx, row.RunID)
}
