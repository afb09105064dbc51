package server

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/protect"
	"github.com/cairn-backup/cairn/internal/fault"
)

const (
	lookEvery = time.Hour
	// scheduledBudget is how much one scheduled verification reads; the next look goes on with the cycle. So a
	// repository is never busy with it for days on end, and little is lost when the appliance is stopped.
	scheduledBudget = 256 << 30
)

// routine begins what the appliance does by itself.
type routine struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	last   map[string]time.Time // when a repository was last begun to be verified, by its id
	purged time.Time            // when old turns were last forgotten
}

func (a *Appliance) beginSchedule(ticks <-chan time.Time) {
	ctx, cancel := context.WithCancel(context.Background())
	a.routine.cancel, a.routine.last = cancel, map[string]time.Time{}
	a.routine.done.Go(func() { a.fleet.KeepLimits(ctx) })
	if a.catalog.Shared() {
		a.routine.done.Go(func() { a.follow(ctx) })
	}
	a.routine.done.Go(func() {
		every := time.Duration(0) // between two looks at repositories; tests say at each tick when it is
		if ticks == nil {
			ticker := time.NewTicker(policyEvery)
			defer ticker.Stop()
			ticks, every = ticker.C, lookEvery
		}
		last := time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-ticks:
				if a.queue.Leads() { // of several managers one looks at the policies
					a.keepPolicies(ctx, now)
				}
				if every == 0 || now.Sub(last) >= every {
					last = now
					a.verifyDue(ctx, now)
				}
			}
		}
	})
}

func (s *routine) end() {
	s.cancel()
	s.done.Wait()
}

// verifyDue begins the verification of one repository for which it is time, unless one is being verified: the workers
// are needed for backups.
func (a *Appliance) verifyDue(ctx context.Context, now time.Time) {
	err := a.verifyNext(ctx, now)
	if err != nil && fault.KindOf(err) != fault.Conflict { // a Conflict: it is being verified now
		a.log.WarnContext(ctx, "no repository was verified; it will be tried again", "err", err)
	}
}

func (a *Appliance) verifyNext(ctx context.Context, now time.Time) error {
	active, err := a.catalog.ActiveTasks(ctx)
	if err != nil || slices.ContainsFunc(active, isSweep) {
		return err
	}
	list, err := a.catalog.Repositories(ctx, catalog.Page{Limit: catalog.MaxLimit})
	if err != nil {
		return err
	}
	list.Items = slices.DeleteFunc(list.Items, func(r catalog.Repository) bool { return a.mayOpen(ctx, r.ID) != nil })
	row, ok := nextDue(list.Items, now, a.routine.last)
	if !ok {
		return nil
	}
	a.routine.last[row.ID] = now // also if it cannot be opened, so that others have their turn
	_, err = a.startBy(ctx, catalog.TriggerScheduled, httpapi.Start{}, catalog.KindVerify, func() (*catalog.Task, error) {
		return a.protector.RequestSweep(ctx, row.ID, scheduledSweep(row))
	})
	return err
}

func isSweep(t catalog.Task) bool { return t.Kind == catalog.KindVerify && t.RestorePointID == "" }

// scheduledSweep is as much as is read at once: no more than an hour's worth if there is a rate.
func scheduledSweep(row catalog.Repository) protect.SweepSpec {
	spec := protect.SweepSpec{Budget: scheduledBudget, BytesPerSecond: row.VerificationOf().BytesPerSecond}
	if spec.BytesPerSecond > 0 {
		spec.Budget = min(spec.Budget, spec.BytesPerSecond*int64(lookEvery/time.Second))
	}
	return spec
}

// nextDue returns the repository whose turn it is among those that are due: the one that waits longest.
func nextDue(rows []catalog.Repository, now time.Time, last map[string]time.Time) (next catalog.Repository, ok bool) {
	for _, row := range rows {
		if due(row, now) && (!ok || last[row.ID].Before(last[next.ID])) {
			next, ok = row, true
		}
	}
	return next, ok
}

// due reports whether a repository is to be verified: a cycle is under way, or the last one is so long ago.
func due(row catalog.Repository, now time.Time) bool {
	v := row.VerificationOf()
	if v.EveryDays == 0 {
		return false
	}
	last := row.CreatedAt
	if v.LastCompleted != nil {
		last = *v.LastCompleted
	}
	return v.CycleStarted != nil || !now.Before(last.AddDate(0, 0, v.EveryDays))
}
