package catalog

import (
	"context"
	"errors"
	"slices"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// RunFilter selects runs; empty fields select all.
type RunFilter struct {
	Kind  RunKind
	State State
	VMID  string // runs with a task of this VM

	PolicyID string
}

// TaskFilter selects tasks; empty fields select all.
type TaskFilter struct {
	RunID  string
	VMID   string
	States []State
}

// requestKept is how long a repetition of a request is told.
const requestKept = 24 * time.Hour

// RunOfRequest returns the run that a user's request with a key started less than a day ago, or NotFound.
func (c *Catalog) RunOfRequest(ctx context.Context, user, key string) (Run, error) {
	return first[Run](ctx, c, "look up request", key, "requested_by = ? AND request_key = ? AND created_at > ?",
		user, key, time.Now().UTC().Add(-requestKept))
}

// CreateRun stores a run with its tasks, all queued, and calls enqueue for each task inside the same transaction; it
// returns the queue's id of the job. When a task's subject belongs to a task that is queued or running, it answers
// Conflict and nothing is stored. When the run's user and request key are known already, nothing is stored either:
// run becomes the known run and the answer is true.
func (c *Catalog) CreateRun(
	ctx context.Context, run *Run, tasks []*Task, enqueue Enqueue,
) (replayed bool, err error) {
	now := time.Now().UTC()
	run.ID, run.State, run.CreatedAt = NewID(PrefixRun), Queued, now
	err = c.transaction(ctx, func(tx *gorm.DB) error {
		known, err := requested(tx, run, now)
		if known || err != nil {
			replayed = known
			return err
		}
		if err := tx.Create(run).Error; err != nil {
			return err
		}
		for _, t := range tasks {
			t.ID, t.RunID, t.Kind, t.State, t.CreatedAt = NewID(PrefixTask), run.ID, run.Kind, Queued, now
			if err := c.createTask(ctx, tx, t, enqueue); err != nil {
				return err
			}
		}
		if run.TurnID != "" {
			return claimTurn(tx, run, tasks[0])
		}
		return nil
	})
	if err != nil {
		return false, failure("start", string(run.Kind), err)
	}
	return replayed, nil
}

func requested(tx *gorm.DB, run *Run, now time.Time) (bool, error) {
	if run.RequestKey == "" {
		return false, nil
	}
	var known Run
	err := tx.Where("requested_by = ? AND request_key = ? AND created_at > ?", run.User, run.RequestKey, now.Add(-requestKept)).
		Take(&known).Error
	if errors.Is(err, gorm.ErrRecordNotFound) {
		return false, nil
	}
	if err == nil {
		*run = known
	}
	return err == nil, err
}

func (c *Catalog) createTask(ctx context.Context, tx *gorm.DB, t *Task, enqueue Enqueue) error {
	err := tx.Create(t).Error
	if errors.Is(err, gorm.ErrDuplicatedKey) && t.VMID == "" {
		return fault.New(fault.Conflict, "queue task for repository", t.RepositoryID, "another task of this kind is queued or running").Explain(
			"Work of one kind on a repository is never done twice at once.", "Wait for the other task, or cancel it.")
	}
	if errors.Is(err, gorm.ErrDuplicatedKey) {
		return fault.New(fault.Conflict, "queue task for VM", t.VMName, "another task is queued or running").Explain(
			"A VM is never worked on by two tasks at once.", "Wait for the other task, or cancel it.")
	}
	if err != nil {
		return err
	}
	return c.enqueue(ctx, tx, t, enqueue)
}

// Run returns one run by its id.
func (c *Catalog) Run(ctx context.Context, id string) (Run, error) {
	return first[Run](ctx, c, "look up run", id, "id = ?", id)
}

// Task returns one task by its id.
func (c *Catalog) Task(ctx context.Context, id string) (Task, error) {
	return first[Task](ctx, c, "look up task", id, "id = ?", id)
}

// Runs lists runs, the newest first.
func (c *Catalog) Runs(ctx context.Context, f RunFilter, p Page) (List[Run], error) {
	q := c.db.WithContext(ctx)
	if f.Kind != "" {
		q = q.Where("kind = ?", f.Kind)
	}
	if f.State != "" {
		q = q.Where("state = ?", f.State)
	}
	if f.PolicyID != "" {
		q = q.Where("policy_id = ?", f.PolicyID)
	}
	if f.VMID != "" {
		q = q.Where("id IN (?)", c.db.Model(&Task{}).Select("run_id").Where("vm_id = ?", f.VMID))
	}
	return page(q, p, byAge(func(v Run) string { return v.ID }, nil))
}

// Tasks lists tasks, the newest first.
func (c *Catalog) Tasks(ctx context.Context, f TaskFilter, p Page) (List[Task], error) {
	q := c.db.WithContext(ctx)
	if f.RunID != "" {
		q = q.Where("run_id = ?", f.RunID)
	}
	if f.VMID != "" {
		q = q.Where("vm_id = ?", f.VMID)
	}
	if len(f.States) > 0 {
		q = q.Where("state IN ?", f.States)
	}
	return page(q, p, byAge(func(v Task) string { return v.ID }, nil))
}

// ActiveTasks returns all tasks that are queued or running, the oldest first.
func (c *Catalog) ActiveTasks(ctx context.Context) ([]Task, error) {
	var out []Task
	err := c.db.WithContext(ctx).Where("state IN ?", []State{Queued, Running}).Order("id").Find(&out).Error
	if err != nil {
		return nil, failure("list tasks under way", "", err)
	}
	return out, nil
}

// MoveTask moves a task to another state and, in the same transaction, changes it as change says and brings its run's
// state up to date. A move that the table of states does not have is a Conflict, and nothing changes.
func (c *Catalog) MoveTask(ctx context.Context, id string, to State, change func(*Task)) (Task, error) {
	var t Task
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Where("id = ?", id).Take(&t).Error; err != nil {
			return err
		}
		return c.moveTask(tx, &t, to, change)
	})
	if err != nil {
		return Task{}, failure("move task", id, err)
	}
	return t, nil
}

func (c *Catalog) moveTask(tx *gorm.DB, t *Task, to State, change func(*Task)) error {
	if !t.State.CanBecome(to) {
		return fault.New(fault.Conflict, "", "", "the task is %s and cannot become %s", t.State, to)
	}
	if err := c.mayMove(tx, *t, to); err != nil {
		return err
	}
	now := time.Now().UTC()
	if change != nil {
		change(t)
	}
	t.State = to
	switch {
	case to == Running:
		t.ManagerID = c.manager
		t.StartedAt = &now
		t.Attempt++
	case to.Final():
		t.FinishedAt = &now
		if err := tx.Where("task_id = ?", t.ID).Delete(&KeptTask{}).Error; err != nil {
			return err
		}
	}
	if err := tx.Save(t).Error; err != nil {
		return err
	}
	return refreshRun(tx, t, now)
}

// mayMove is an error when it is not for this process to move a task: a waiting one is begun by the owner of its repository,
// a running one ended by who has it.
func (c *Catalog) mayMove(tx *gorm.DB, t Task, to State) error {
	switch {
	case t.State == Running:
		return c.mine(tx, t)
	case to == Running:
		return errors.Join(c.alive(tx), c.owns(tx, t.RepositoryID))
	}
	return nil
}

func refreshRun(tx *gorm.DB, t *Task, now time.Time) error {
	var run Run
	if err := tx.Where("id = ?", t.RunID).Take(&run).Error; err != nil {
		return err
	}
	var states []State
	if err := tx.Model(&Task{}).Where("run_id = ?", run.ID).Pluck("state", &states).Error; err != nil {
		return err
	}
	run.State = runState(states)
	if run.StartedAt == nil && t.StartedAt != nil {
		run.StartedAt = &now
	}
	if run.Error == nil && t.State == Failed {
		run.Error = t.Error
	}
	run.FinishedAt = nil
	if !slices.ContainsFunc(states, func(s State) bool { return !s.Final() }) {
		run.FinishedAt = &now
	}
	return tx.Save(&run).Error
}

// RequestCancel asks for a task to stop: a queued one is cancelled at once, a running one is marked. A task that is
// over answers Conflict.
func (c *Catalog) RequestCancel(ctx context.Context, id string) (Task, error) {
	var t Task
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Where("id = ?", id).Take(&t).Error; err != nil {
			return err
		}
		switch t.State {
		case Queued:
			return c.moveTask(tx, &t, Cancelled, func(t *Task) { t.CancelRequested = true })
		case Running:
			t.CancelRequested = true
			return tx.Model(&Task{}).Where("id = ?", id).Update("cancel_requested", true).Error
		}
		return fault.New(fault.Conflict, "", "", "the task is over: %s", t.State).Explain(
			"The task has ended, so there is nothing to cancel.", "Look at the task for how it ended.")
	})
	if err != nil {
		return Task{}, failure("cancel task", id, err)
	}
	return t, nil
}

// SetProgress stores how far a running task is.
func (c *Catalog) SetProgress(ctx context.Context, id, phase string, p Progress) error {
	err := c.db.WithContext(ctx).Model(&Task{}).Where("id = ? AND state = ? AND manager_id = ?", id, Running, c.manager).
		Select("phase", "progress").Updates(&Task{Phase: phase, Progress: p}).Error
	if err != nil {
		return failure("store progress of", id, err)
	}
	return nil
}

// SetResult stores what a running task has made, before the task is over.
func (c *Catalog) SetResult(ctx context.Context, id string, r Result) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		t, err := runningTask(tx, id)
		if err == nil {
			err = c.mine(tx, t)
		}
		if err != nil {
			return err
		}
		return tx.Model(&Task{}).Where("id = ?", id).Select("result").Updates(&Task{Result: &r}).Error
	})
	if err != nil {
		return failure("store result of", id, err)
	}
	return nil
}

// TasksOfRuns returns the tasks of some runs, by the run's id, the oldest first.
func (c *Catalog) TasksOfRuns(ctx context.Context, runIDs []string) (map[string][]Task, error) {
	var rows []Task
	if err := c.db.WithContext(ctx).Where("run_id IN ?", runIDs).Order("id").Find(&rows).Error; err != nil {
		return nil, failure("list tasks", "", err)
	}
	out := make(map[string][]Task, len(runIDs))
	for _, t := range rows {
		out[t.RunID] = append(out[t.RunID], t)
	}
	return out, nil
}
