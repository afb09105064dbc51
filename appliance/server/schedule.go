package server

import (
	"context"
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

// schedule begins what the appliance does by itself.
type schedule struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (a *Appliance) beginSchedule(ticks <-chan time.Time) {
	ctx, cancel := context.WithCancel(context.Background())
	a.schedule.cancel = cancel
	a.schedule.done.Go(func() {
		if ticks == nil {
			ticker := time.NewTicker(lookEvery)
			defer ticker.Stop()
			ticks = ticker.C
		}
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-ticks:
				a.verifyDue(ctx, now)
			}
		}
	})
}

func (s *schedule) end() {
	s.cancel()
	s.done.Wait()
}

// verifyDue begins the verification of every repository for which it is time.
func (a *Appliance) verifyDue(ctx context.Context, now time.Time) {
	list, err := a.catalog.Repositories(ctx, catalog.Page{Limit: catalog.MaxLimit})
	if err != nil {
		a.log.WarnContext(ctx, "repositories to verify were not looked for", "err", err)
	}
	for _, row := range list.Items {
		if !due(row, now) {
			continue
		}
		_, err := a.startBy(ctx, catalog.TriggerScheduled, httpapi.Start{}, catalog.KindVerify, func() (*catalog.Task, error) {
			return a.protector.RequestSweep(ctx, row.ID, protect.SweepSpec{
				Budget: scheduledBudget, BytesPerSecond: row.VerificationOf().BytesPerSecond,
			})
		})
		if err != nil && fault.KindOf(err) != fault.Conflict { // a Conflict: it is being verified now
			a.log.WarnContext(ctx, "repository was not verified; it will be tried again", "repository", row.Name, "err", err)
		}
	}
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
