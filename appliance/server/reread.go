package server

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/protect"
)

// maintainReread begins to make the catalog's restore points those of each repository of this manager.
func (a *Appliance) maintainReread(ctx context.Context, m catalog.Maintenance, _ time.Time) (maintained, error) {
	return a.eachRepository(ctx, catalog.KindReread, "read", func(id string) (*catalog.Task, error) {
		return a.protector.RequestReread(ctx, id, protect.RereadSpec{Budget: m.BudgetBytes})
	})
}

// there is an error unless a repository still lies where it was opened.
func (a *Appliance) there(ctx context.Context, id string) error {
	row, err := a.catalog.Repository(ctx, id)
	if err != nil {
		return err
	}
	o, err := a.opened(ctx, id)
	if err != nil {
		return err
	}
	row.KeyFile = a.keyFile(row)
	return stillThere(ctx, row, o)
}
