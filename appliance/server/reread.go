package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/protect"
	"github.com/cairn-backup/cairn/internal/fault"
)

// maintainReread makes the catalog's restore points those of each repository of this manager.
func (a *Appliance) maintainReread(ctx context.Context, _ catalog.Maintenance, _ time.Time) (out maintained, err error) {
	own, err := a.ownRepositories(ctx, &out)
	if err != nil {
		return out, err
	}
	var sum protect.Reread
	var errs []error
	for _, row := range own {
		read, err := a.readPoints(ctx, row)
		out.add(row.ID, row.Name, rereadWords(read), "", err)
		if err != nil {
			errs = append(errs, fault.Context("read restore points of repository", row.Name, err))
			continue
		}
		sum.Points += read.Points
		sum.Added += read.Added
		sum.Removed += read.Removed
	}
	out.text = fmt.Sprintf("%d of %d repositories read: %s", len(own)-len(errs), len(out.known), rereadWords(sum))
	return out, errors.Join(errs...)
}

// readPoints reads one repository, which must be at its place all the while.
func (a *Appliance) readPoints(ctx context.Context, row catalog.Repository) (protect.Reread, error) {
	row.KeyFile = a.keyFile(row)
	o, err := a.opened(ctx, row.ID)
	if err != nil {
		return protect.Reread{}, err
	}
	return a.protector.Reread(ctx, row.ID, func(ctx context.Context) error { return stillThere(ctx, row, o) })
}

func rereadWords(r protect.Reread) string {
	return fmt.Sprintf("%d restore points, %d found, %d forgotten", r.Points, r.Added, r.Removed)
}
