package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// maxAttempts is how often a task is begun or taken up: one that ends the manager each time must not go on for ever.
const maxAttempts = 5

// ErrLeft is in the chain of the error of a handler that leaves its task, as it is, to the next process.
var ErrLeft = errors.New("the task is left to the next process")

// Keep makes durable what the task needs to go on in the next process. From then on, when the manager ends, the next one
// does not end the task but gives it to its handler again, and nothing is removed that it owes.
func (t *Task) Keep(ctx context.Context, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return fault.Wrap(fault.Internal, "keep task", t.ID, err)
	}
	if err := t.q.catalog.Keep(context.WithoutCancel(ctx), t.ID, catalog.Secret(p)); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = true
	return nil
}

// TakenUp reads into v what an earlier process has kept; false: the task begins with this one.
func (t *Task) TakenUp(v any) (bool, error) {
	if t.before == "" {
		return false, nil
	}
	if err := json.Unmarshal([]byte(t.before), v); err != nil {
		return false, fault.Wrap(fault.Internal, "take up task", t.ID, err)
	}
	return true, nil
}

// Leave reports whether the manager stops and the task was kept. The handler then leaves everything as it is and answers
// the error, which ends nothing.
func (t *Task) Leave(ctx context.Context, err error) (left error, leaves bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if cause := context.Cause(ctx); !t.kept || !errors.Is(cause, errStopping) && !errors.Is(cause, errLost) {
		return err, false
	}
	return fmt.Errorf("%w: %w", ErrLeft, err), true
}

// takeUp queues a task again that a manager which is no more was running, if there is something to go on with.
func (q *Queue) takeUp(ctx context.Context, row catalog.Task) (bool, error) {
	if row.CancelRequested || row.Result != nil || row.Attempt >= maxAttempts {
		return false, nil
	}
	kept, err := q.catalog.Kept(ctx, row.ID)
	if fault.KindOf(err) == fault.NotFound {
		return false, nil
	}
	if err != nil {
		q.complain(ctx, "task cannot be taken up", row.ID, err)
		return false, nil
	}
	if _, err := q.catalog.RestorePointOfTask(ctx, row.ID); fault.KindOf(err) != fault.NotFound {
		return false, err
	}
	q.mu.Lock()
	q.before[row.ID] = kept
	q.mu.Unlock()
	_, err = q.client.Insert(ctx, jobArgs{TaskID: row.ID}, q.here())
	return err == nil, err
}

// claim makes a task this process's.
func (q *Queue) claim(ctx context.Context, id string, before catalog.Secret) (*Task, error) {
	if before == "" {
		if err := q.mayBegin(ctx, id); err != nil {
			return nil, err
		}
		row, err := q.catalog.MoveTask(ctx, id, catalog.Running, nil)
		return &Task{Task: row, q: q}, err
	}
	row, err := q.catalog.TakeUp(ctx, id)
	if err != nil {
		return nil, err
	}
	t := &Task{Task: row, q: q, before: before, kept: true, phase: row.Phase, disks: row.Progress.Disks, warnings: row.Warnings}
	t.Event(ctx, "The manager was restarted; the task goes on.")
	return t, nil
}
