package jobs

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// orphanTime bounds the clean-up behind one task of a dead manager: nothing is answered before it is over.
const orphanTime = 20 * time.Second

// reconcile brings to their end, or takes up, the tasks of the manager before, and queues again those that were waiting,
// because the job of one may have been lost between delivery and claim.
func (q *Queue) reconcile(ctx context.Context) error {
	if err := q.catalog.AdoptAll(ctx); err != nil {
		return err
	}
	tasks, err := q.catalog.ActiveTasks(ctx)
	if err != nil {
		return err
	}
	for _, row := range tasks {
		if row.State != catalog.Running {
			continue
		}
		if err := q.settle(ctx, row); err != nil {
			return err
		}
	}
	return q.requeue(ctx, "")
}

// settle takes up a task that a manager which is no more was running, if that has kept something of it, or ends it: what it
// owes is removed first. It is this manager's already.
func (q *Queue) settle(ctx context.Context, row catalog.Task) error {
	taken, err := q.takeUp(ctx, row)
	if err == nil && !taken {
		err = q.endOrphan(ctx, row)
	}
	if err != nil {
		return fault.Context("reconcile task", row.ID, err)
	}
	return nil
}

// endOrphan ends one task of a dead manager. A restore whose result is recorded made its VM: that VM is the user's
// now, so what was owed for it is struck off and nothing is removed.
func (q *Queue) endOrphan(ctx context.Context, row catalog.Task) error {
	t := &Task{Task: row, q: q, phase: row.Phase, disks: row.Progress.Disks, warnings: row.Warnings, result: row.Result}
	q.settleTask(ctx, t, orphanTime)
	row.Warnings = t.warnings
	if row.Kind == catalog.KindRestore && row.Result != nil {
		return q.endMade(ctx, row, "The manager stopped right after the VM was restored. The VM is complete; it may not have been started.")
	}
	if row.Kind == catalog.KindDeploy && row.Result != nil {
		return q.endMade(ctx, row, "The manager stopped right after the mover had enrolled. The mover is complete.")
	}
	if row.Kind == catalog.KindBackup {
		point, err := q.catalog.RestorePointOfTask(ctx, row.ID)
		if err == nil {
			row.Result = &catalog.Result{
				RestorePointID: point.ID, BytesRead: point.BytesRead, BytesNew: point.BytesNew, BytesStored: point.BytesStored,
			}
			return q.endMade(ctx, row, "The manager stopped right after the restore point was complete. The restore point is good.")
		}
		if fault.KindOf(err) != fault.NotFound {
			return err
		}
	}
	failure := fault.New(fault.Transient, "run task", row.ID, "the manager stopped while the task was under way (%s)", phaseOf(row)).Explain(
		"The manager ended or was killed. What the task had made was removed or is still being removed; restore points are not affected.",
		"Run it again.")
	end, err := q.catalog.MoveTask(ctx, row.ID, catalog.Failed, func(r *catalog.Task) {
		r.Error, r.Warnings, r.Phase = catalog.FailureOf(failure), row.Warnings, ""
	})
	if err != nil {
		return err
	}
	q.tellEnd(ctx, end, failure)
	return nil
}

func (q *Queue) endMade(ctx context.Context, row catalog.Task, message string) error {
	end, err := q.catalog.MoveTask(ctx, row.ID, catalog.Warning, func(r *catalog.Task) {
		r.Result, r.Phase, r.Warnings = row.Result, "", append(row.Warnings, message)
		if row.Result.RestorePointID != "" {
			r.RestorePointID = row.Result.RestorePointID
		}
	})
	if err != nil {
		return err
	}
	q.event(ctx, catalog.Event{RunID: row.RunID, TaskID: row.ID, Level: catalog.LevelWarning, Message: message})
	q.tellEnd(ctx, end, nil)
	return nil
}

func phaseOf(t catalog.Task) string {
	if t.Phase == "" {
		return "starting"
	}
	return t.Phase
}

// Sweep removes leftovers now; see Journal.Sweep. One sweep runs at a time. One that is stopped has no error.
func (q *Queue) Sweep(ctx context.Context) ([]Swept, error) {
	select {
	case q.sweeping <- struct{}{}:
		defer func() { <-q.sweeping }()
	case <-ctx.Done():
		return nil, nil
	}
	swept, err := q.journal.Sweep(ctx)
	if ctx.Err() != nil {
		err = nil
	}
	return swept, err
}
