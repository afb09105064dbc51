package server

import (
	"context"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/protect"
)

const (
	// lookEvery is how often it is looked whether a repository is to be read back.
	lookEvery = time.Hour
	// endsGathered is how long it is waited for the ends of further tasks when one has ended.
	endsGathered = 250 * time.Millisecond
)

// routine begins what the appliance does by itself.
type routine struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	ctx    context.Context      //nolint:containedctx // of what nobody waits for
	began  time.Time            // when the appliance was started
	last   map[string]time.Time // when a repository was last begun to be verified, by its id
	purged time.Time            // when old turns were last forgotten
	// accounted is when the history of RPO was last brought up to date.
	accounted time.Time
	looked    map[catalog.MaintenanceKind]time.Time

	ended chan struct{} // one token: a task has ended

	mu   sync.Mutex
	busy map[catalog.MaintenanceKind]bool
	over bool
}

// taskEnded tells the routine; it does not block.
func (s *routine) taskEnded() {
	select {
	case s.ended <- struct{}{}:
	default:
	}
}

func (a *Appliance) beginSchedule(ticks <-chan time.Time) {
	ctx, cancel := context.WithCancel(context.Background())
	a.routine.ctx, a.routine.cancel, a.routine.last, a.routine.began = ctx, cancel, map[string]time.Time{}, time.Now()
	a.routine.looked, a.routine.busy = map[catalog.MaintenanceKind]time.Time{}, map[catalog.MaintenanceKind]bool{}
	a.routine.done.Go(func() { a.fleet.KeepLimits(ctx) })
	if a.saver.after > 0 {
		a.routine.done.Go(func() { a.keepConfigurationSaved(ctx) })
	}
	if a.catalog.Shared() {
		a.routine.done.Go(func() { a.follow(ctx) })
		a.routine.done.Go(func() { a.keepAsked(ctx) })
	}
	a.routine.done.Go(func() {
		if ticks == nil {
			ticker := time.NewTicker(policyEvery)
			defer ticker.Stop()
			ticks = ticker.C
		}
		a.keepRoutine(ctx, ticks)
	})
}

// keepRoutine does what is due at each tick. When a task ends between two ticks it is looked at the policies too: there is room for
// the next of those that wait.
func (a *Appliance) keepRoutine(ctx context.Context, ticks <-chan time.Time) {
	var tick, took time.Time // the last tick: what it said, and when it came
	ended := a.routine.ended
	var gathered <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case tick = <-ticks:
			took = time.Now()
			idle := a.still(ctx)
			if a.queue.Leads() && !idle { // of several managers one looks at the policies
				a.keepPolicies(ctx, tick)
				a.keepHistory(ctx, tick)
			}
			a.keepMaintenance(ctx, tick, idle)
			a.keepWatching(ctx, tick)
		case <-ended:
			ended = nil
			gathered = time.After(endsGathered)
		case <-gathered:
			ended = a.routine.ended
			if !tick.IsZero() && a.queue.Leads() && !a.still(ctx) {
				a.keepPolicies(ctx, tick.Add(time.Since(took)))
			}
		}
	}
}

func (s *routine) end() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.cancel()
	s.done.Wait()
}

func isSweep(t catalog.Task) bool { return t.Kind == catalog.KindVerify && t.RestorePointID == "" }

// scheduledSweep is as much as is read at once: no more than an hour's worth if there is a rate.
func scheduledSweep(row catalog.Repository, budget int64) protect.SweepSpec {
	spec := protect.SweepSpec{Budget: budget, BytesPerSecond: row.VerificationOf().BytesPerSecond}
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
