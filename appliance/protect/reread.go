package protect

import (
	"context"
	"errors"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// Reread is what came of a repository's restore points being read into the catalog.
type Reread struct {
	Points  int // in the repository
	Added   int // that the catalog did not know
	Removed int // that were in the catalog only
}

// Reread is Reconcile beside whatever is under way. What tasks that have not ended have published is left to them, for they account for it,
// too. there is asked before anything is forgotten: an error means that it is not the repository that was looked into.
func (p *Protector) Reread(ctx context.Context, repositoryID string, there func(context.Context) error) (Reread, error) {
	return p.reconcile(ctx, repositoryID, func(ctx context.Context) (map[string]bool, error) {
		if err := there(ctx); err != nil {
			return nil, err
		}
		active, err := p.catalog.ActiveTasks(ctx)
		busy := map[string]bool{}
		for _, t := range active {
			busy[t.ID] = true
		}
		return busy, err
	})
}

// forgetPruned forgets restore points again that were pruned between the look at the repository and their being taken in, and says
// how many. What is pruned from now on has a row that goes with it.
func (p *Protector) forgetPruned(ctx context.Context, repo *store.Repository, found []catalog.RestorePoint) (n int, err error) {
	for _, row := range found {
		if _, lookErr := repo.RestorePoint(ctx, row.ID); lookErr == nil || fault.KindOf(lookErr) != fault.NotFound {
			continue
		}
		n++
		err = errors.Join(err, p.catalog.DeleteRestorePoint(ctx, row.ID))
	}
	return n, err
}
