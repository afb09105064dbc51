package protect

import (
	"context"

	"github.com/cairn-backup/cairn/appliance/jobs"
)

// begin reads what a task is to do and opens what it is about: a repository or the set that one is on.
func begin[T any](ctx context.Context, t *jobs.Task, spec any, open func(ctx context.Context, id string) (T, error)) (about T, err error) {
	if err := t.ReadSpec(spec); err != nil {
		return about, err
	}
	return open(ctx, t.RepositoryID)
}
