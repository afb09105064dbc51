package jobs

import (
	"context"
	"errors"
	"slices"

	"github.com/riverqueue/river"

	"github.com/cairn-backup/cairn/appliance/catalog"
)

// Where several managers share a catalog, the tasks on a repository are those of the manager that owns it, and each has a
// queue of its own, named after it; tasks on none are in one that all fetch from.

// errNotReady is why a task does not begin: what the manager before has left of its repository is not settled yet.
var errNotReady = errors.New("the repository is being taken over")

// Lead says whether this manager does what one does for all: it sweeps.
func (q *Queue) Lead(leads bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leads = leads
}

// Leads reports whether this manager does what one does for all. One that is alone does.
func (q *Queue) Leads() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.leads
}

// TakeOver makes the tasks on a repository this manager's, which owns it: those that a manager which is no more was running
// are taken up or brought to their end, those that wait are queued here. From then on they may begin. May be repeated. A
// repository of "" stands for tasks that are on none.
func (q *Queue) TakeOver(ctx context.Context, repositoryID string) error {
	tasks, err := q.catalog.Adopt(ctx, repositoryID)
	if err != nil {
		return err
	}
	q.taking.Lock()
	defer q.taking.Unlock()
	// What is adopted is found by nobody else: it is kept here until it is settled, also when that fails the first time.
	q.adopted[repositoryID] = append(q.adopted[repositoryID], tasks...)
	for left := q.adopted[repositoryID]; len(left) > 0; left = q.adopted[repositoryID] {
		if err := q.settle(ctx, left[0]); err != nil {
			return err
		}
		q.adopted[repositoryID] = left[1:]
	}
	if err := q.requeue(ctx, repositoryID); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ready[repositoryID] = true
	return nil
}

// GiveUp begins no more tasks on a repository, which is another manager's now.
func (q *Queue) GiveUp(repositoryID string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.ready, repositoryID)
}

// requeue queues waiting tasks anew and takes their jobs of before away; one that is being delivered stays, and finds that
// its task is claimed.
func (q *Queue) requeue(ctx context.Context, repositoryID string) error {
	before, err := q.catalog.Requeue(ctx, repositoryID, q.enqueue)
	if err != nil {
		return err
	}
	for part := range slices.Chunk(before, 1000) {
		if _, err := q.client.JobDeleteMany(ctx, river.NewJobDeleteManyParams().IDs(part...).First(len(part))); err != nil {
			q.complain(ctx, "jobs of before were not removed", "", err)
		}
	}
	return nil
}

// mayBegin is an error while a task's repository is being taken over.
func (q *Queue) mayBegin(ctx context.Context, id string) error {
	if !q.catalog.Shared() {
		return nil
	}
	t, err := q.catalog.Task(ctx, id)
	if err != nil || t.RepositoryID == "" {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.ready[t.RepositoryID] {
		return errNotReady
	}
	return nil
}

// pass hands a waiting task to the manager that is to do it, or puts it off while there is none.
func (q *Queue) pass(ctx context.Context, id string, why error) error {
	if errors.Is(why, catalog.ErrElsewhere) {
		if done, err := q.catalog.Reroute(ctx, id, q.enqueue); err == nil && done {
			return nil
		}
	}
	return river.JobSnooze(snooze)
}

// later puts a task off that could not be read. Where others may be at work the database can be away for a moment, and
// River would in the end drop a job that fails.
func (q *Queue) later(ctx context.Context, id string, err error) error {
	if !q.catalog.Shared() {
		return err
	}
	q.complain(ctx, "task was not begun; trying again", id, err)
	return river.JobSnooze(snooze)
}

// here is for jobs that are for this manager only.
func (q *Queue) here() *river.InsertOpts {
	if !q.catalog.Shared() {
		return nil
	}
	return &river.InsertOpts{Queue: q.catalog.ManagerID()}
}
