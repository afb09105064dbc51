package server

import (
	"context"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/protect"
	"github.com/cairn-backup/cairn/appliance/schedule"
	"github.com/cairn-backup/cairn/hypervisors"
)

const (
	// policyEvery is how soon it is noticed that a policy is due.
	policyEvery = 5 * time.Second
	// turnsKept is how long it is remembered how turns ended.
	turnsKept = 90 * 24 * time.Hour
)

// keepPolicies lets the scheduler look at an instant, and forgets once a day what is long over.
func (a *Appliance) keepPolicies(ctx context.Context, now time.Time) {
	if err := a.scheduler.Tick(ctx, now); err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "policies were not looked at; it will be tried again", "err", err)
	}
	if now.Sub(a.routine.purged) < 24*time.Hour {
		return
	}
	a.routine.purged = now
	if err := a.catalog.PurgeTurns(ctx, now.Add(-turnsKept)); err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "old turns were not forgotten; it will be tried again", "err", err)
	}
}

// submitTurn queues the backup of a VM whose turn it is; it implements schedule.Submit.
func (a *Appliance) submitTurn(ctx context.Context, b schedule.Begin) error {
	s := b.Rules.Spec
	vm, err := a.catalog.VM(ctx, b.Turn.VMID)
	if err != nil {
		return err
	}
	exclude := slices.DeleteFunc(slices.Clone(s.ExcludeDisks), func(id string) bool {
		return !slices.ContainsFunc(vm.Description.Disks, func(d hypervisors.Disk) bool { return d.ID == id })
	})
	task, err := a.protector.RequestBackup(ctx, protect.BackupSpec{
		VMID: vm.ID, RepositoryID: s.RepositoryID, Quiesce: hypervisors.Quiesce(s.Quiesce), Exclude: exclude,
		Mover: s.Mover, Transport: s.Transport, Fallback: s.Fallback, PolicyID: b.Turn.PolicyID,
	})
	if err != nil {
		return err
	}
	run := catalog.Run{Kind: catalog.KindBackup, Trigger: catalog.TriggerScheduled, PolicyID: b.Turn.PolicyID, TurnID: b.Turn.ID}
	_, err = a.queue.Submit(ctx, &run, task)
	return err
}
