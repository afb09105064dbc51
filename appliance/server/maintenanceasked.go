package server

import (
	"context"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
)

// askedEvery is how soon a manager does what another one asks of it.
const askedEvery = time.Second

// RunMaintenance implements httpapi.Core. Each of several managers is asked to maintain the repositories that it works with.
func (a *Appliance) RunMaintenance(ctx context.Context, who fleet.Who, kind catalog.MaintenanceKind) error {
	row, err := a.maintenanceOf(ctx, kind)
	if err != nil {
		return err
	}
	now, here := time.Now(), true
	if a.peers != nil && !slices.Contains(byOne, kind) {
		if here, err = a.askOthers(ctx, kind, now); err != nil {
			return err
		}
	}
	a.note(ctx, who, "maintenance.run", string(kind), "")
	if here {
		a.maintain(a.routine.ctx, row, now)
	}
	return nil
}

func (a *Appliance) maintenanceOf(ctx context.Context, kind catalog.MaintenanceKind) (catalog.Maintenance, error) {
	rows, err := a.catalog.Maintenance(ctx)
	if err != nil {
		return catalog.Maintenance{}, err
	}
	i := slices.IndexFunc(rows, func(m catalog.Maintenance) bool { return m.Kind == kind })
	if i < 0 {
		return catalog.Maintenance{}, noMaintenance(kind)
	}
	return rows[i], nil
}

// askOthers asks the other managers and says whether there is something to do here, too. It is an error if there are repositories and
// nobody works with them just now.
func (a *Appliance) askOthers(ctx context.Context, kind catalog.MaintenanceKind, now time.Time) (here bool, err error) {
	var all maintained
	own, err := a.ownRepositories(ctx, &all)
	if err != nil {
		return false, err
	}
	asked, err := a.catalog.AskMaintenance(ctx, kind, now)
	if err != nil || len(own) > 0 || len(all.known) == 0 {
		return true, err
	}
	if asked == 0 {
		err = a.mayOpen(ctx, all.known[0])
		return err == nil, err // this manager may have been given it meanwhile
	}
	return false, nil
}

// keepAsked does what other managers ask for.
func (a *Appliance) keepAsked(ctx context.Context) {
	begun := map[catalog.MaintenanceKind]string{} // the request that was begun last
	a.again(ctx, askedEvery, "what other managers ask for was not read; trying again", func(ctx context.Context) error { return a.answerAll(ctx, begun) })
}

func (a *Appliance) answerAll(ctx context.Context, begun map[catalog.MaintenanceKind]string) error {
	list, err := a.catalog.MaintenanceRequests(ctx)
	if err != nil {
		return err
	}
	for _, r := range list {
		if r.ManagerID != a.catalog.ManagerID() || a.busyWith(r.Kind) {
			continue
		}
		if begun[r.Kind] == r.ID {
			if err := a.catalog.EndMaintenanceRequest(ctx, r.ID); err != nil {
				return err
			}
			continue
		}
		row, err := a.maintenanceOf(ctx, r.Kind)
		if err != nil {
			return err
		}
		a.maintain(ctx, row, r.AskedAt)
		begun[r.Kind] = r.ID
	}
	return nil
}

func (a *Appliance) busyWith(kind catalog.MaintenanceKind) bool {
	a.routine.mu.Lock()
	defer a.routine.mu.Unlock()
	return a.routine.busy[kind]
}
