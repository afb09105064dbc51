package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/appliance/protect"
	"github.com/cairn-backup/cairn/internal/fault"
)

// keepMaintenance begins what is due at an instant. What was due while nobody looked, or while the window was closed, is done once. An
// appliance that is idle reads the inventory and does nothing else.
func (a *Appliance) keepMaintenance(ctx context.Context, now time.Time, idle bool) {
	rows, err := a.catalog.Maintenance(ctx)
	if err != nil {
		a.log.WarnContext(ctx, "maintenance was not looked at; it will be tried again", "err", err)
		return
	}
	for _, row := range rows {
		if idle && row.Kind != catalog.MaintainInventory {
			continue
		}
		if a.maintenanceDue(row, now) {
			a.maintain(ctx, row, now)
		}
	}
}

// maintenanceDue reports whether a kind is due, and remembers that it has been looked at then. Each manager maintains its own
// repositories; one of them reads the inventory.
func (a *Appliance) maintenanceDue(row catalog.Maintenance, now time.Time) bool {
	calendar, windows, zone, err := understandMaintenance(row)
	if err != nil || row.Paused || row.Kind == catalog.MaintainInventory && !a.queue.Leads() {
		return false
	}
	since, ok := a.routine.looked[row.Kind]
	if !ok && row.LastStarted != nil {
		since = *row.LastStarted
	} else if !ok {
		since = a.routine.began
	}
	if since.After(now) { // the clock was put back
		since = now
	}
	a.routine.looked[row.Kind] = since
	if len(calendar.Between(since, now, zone, 1)) == 0 || !windows.Open(now, zone) {
		return false
	}
	a.routine.looked[row.Kind] = now
	return true
}

func understandMaintenance(row catalog.Maintenance) (policy.Calendar, policy.Windows, *time.Location, error) {
	calendar, err := policy.ParseCalendar(row.Schedule)
	if err != nil {
		return calendar, nil, nil, err
	}
	windows, err := policy.ParseWindows(row.Windows)
	if err != nil {
		return calendar, nil, nil, err
	}
	zone, err := policy.LoadZone(row.TimeZone)
	return calendar, windows, zone, err
}

// maintain does one kind of maintenance unless it is being done, and notes how it went. Platforms may take their time to answer, so
// nobody waits for it.
func (a *Appliance) maintain(ctx context.Context, row catalog.Maintenance, now time.Time) {
	do := map[catalog.MaintenanceKind]func(context.Context, catalog.Maintenance, time.Time) (string, error){
		catalog.MaintainInventory: a.maintainInventory, catalog.MaintainVerify: a.maintainVerify, catalog.MaintainCollect: a.maintainCollect,
	}[row.Kind]
	a.routine.mu.Lock()
	defer a.routine.mu.Unlock()
	if do == nil || a.routine.busy[row.Kind] || a.routine.ended {
		return
	}
	a.routine.busy[row.Kind] = true
	a.routine.done.Go(func() {
		result, err := do(ctx, row, now)
		noteErr := a.catalog.UpdateMaintenance(context.WithoutCancel(ctx), row.Kind, func(m *catalog.Maintenance) {
			start, end := now.UTC(), time.Now().UTC()
			m.LastStarted, m.LastEnded, m.LastResult, m.LastError = &start, &end, result, catalog.FailureOf(err)
		})
		if err := errors.Join(err, noteErr); err != nil && ctx.Err() == nil {
			a.log.WarnContext(ctx, "maintenance failed", "kind", row.Kind, "err", err)
		}
		a.routine.mu.Lock()
		defer a.routine.mu.Unlock()
		a.routine.busy[row.Kind] = false
	})
}

// maintainInventory reads the VMs of every connection. One that does not answer keeps the others from nothing.
func (a *Appliance) maintainInventory(ctx context.Context, _ catalog.Maintenance, _ time.Time) (string, error) {
	list, err := a.catalog.Connections(ctx, catalog.Page{Limit: catalog.MaxLimit})
	if err != nil {
		return "", err
	}
	var sum catalog.InventoryReport
	var errs []error
	for _, conn := range list.Items {
		report, err := a.RefreshConnection(ctx, conn.ID)
		if err != nil {
			errs = append(errs, fault.Context("read inventory of", conn.Name, err))
			continue
		}
		sum.VMs += report.VMs
		sum.Added += report.Added
		sum.Changed += report.Changed
		sum.Gone += report.Gone
	}
	return fmt.Sprintf("%d of %d connections read: %d VMs, %d new, %d changed, %d gone", len(list.Items)-len(errs), len(list.Items), sum.VMs, sum.Added, sum.Changed, sum.Gone), errors.Join(errs...)
}

// maintainVerify begins the verification of one repository that is due, unless one is being verified: the workers are needed for backups.
func (a *Appliance) maintainVerify(ctx context.Context, m catalog.Maintenance, now time.Time) (string, error) {
	active, err := a.catalog.ActiveTasks(ctx)
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(active, isSweep) {
		return "a repository is being read back", nil
	}
	list, err := a.catalog.Repositories(ctx, catalog.Page{Limit: catalog.MaxLimit})
	if err != nil {
		return "", err
	}
	list.Items = slices.DeleteFunc(list.Items, func(r catalog.Repository) bool { return a.mayOpen(ctx, r.ID) != nil })
	row, ok := nextDue(list.Items, now, a.routine.last)
	if !ok {
		return "no repository is due", nil
	}
	a.routine.last[row.ID] = now // also if it cannot be opened, so that others have their turn
	started, err := a.startBy(ctx, catalog.TriggerScheduled, httpapi.Start{}, catalog.KindVerify, func() (*catalog.Task, error) {
		return a.protector.RequestSweep(ctx, row.ID, scheduledSweep(row, m.BudgetBytes))
	})
	if err != nil {
		return "", err
	}
	return "repository " + row.Name + " is read back by " + started.RunID, nil
}

// maintainCollect begins a collect of each repository of this manager.
func (a *Appliance) maintainCollect(ctx context.Context, _ catalog.Maintenance, _ time.Time) (string, error) {
	list, err := a.catalog.Repositories(ctx, catalog.Page{Limit: catalog.MaxLimit})
	if err != nil {
		return "", err
	}
	begun := 0
	var errs []error
	for _, row := range list.Items {
		if a.mayOpen(ctx, row.ID) != nil {
			continue
		}
		_, err := a.startBy(ctx, catalog.TriggerScheduled, httpapi.Start{}, catalog.KindCollect, func() (*catalog.Task, error) {
			return a.protector.RequestCollect(ctx, row.ID, protect.CollectSpec{})
		})
		switch {
		case err == nil:
			begun++
		case fault.KindOf(err) != fault.Conflict: // a Conflict: it is being collected now
			errs = append(errs, fault.Context("collect repository", row.Name, err))
		}
	}
	return fmt.Sprintf("%d of %d repositories are collected", begun, len(list.Items)), errors.Join(errs...)
}

// ListMaintenance implements httpapi.Core.
func (a *Appliance) ListMaintenance(ctx context.Context) ([]httpapi.MaintenanceInfo, error) {
	rows, err := a.catalog.Maintenance(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]httpapi.MaintenanceInfo, len(rows))
	a.routine.mu.Lock()
	defer a.routine.mu.Unlock()
	for i, row := range rows {
		out[i] = httpapi.MaintenanceInfo{Maintenance: row, Busy: a.routine.busy[row.Kind]}
		calendar, windows, zone, err := understandMaintenance(row)
		if err != nil {
			return nil, err
		}
		if next, ok := calendar.Next(time.Now(), zone); ok && !row.Paused {
			out[i].Next = windows.NextOpen(next, zone)
		}
	}
	return out, nil
}

// ReplaceMaintenance implements httpapi.Core.
func (a *Appliance) ReplaceMaintenance(ctx context.Context, who fleet.Who, m catalog.Maintenance) error {
	if !slices.Contains(catalog.MaintenanceKinds, m.Kind) {
		return noMaintenance(m.Kind)
	}
	if _, _, _, err := understandMaintenance(m); err != nil {
		return err
	}
	if m.Kind != catalog.MaintainVerify && m.BudgetBytes != 0 {
		return fault.New(fault.Invalid, "change maintenance", string(m.Kind), "it has no budget").Explain(
			"Only verifications read so much that a budget bounds them.", "Leave the budget out.")
	}
	err := a.catalog.UpdateMaintenance(ctx, m.Kind, func(row *catalog.Maintenance) {
		row.Schedule, row.TimeZone, row.Windows, row.Paused, row.UpdatedBy = m.Schedule, m.TimeZone, m.Windows, m.Paused, who.User
		row.BudgetBytes = m.BudgetBytes
		if row.Kind == catalog.MaintainVerify && row.BudgetBytes == 0 {
			row.BudgetBytes = catalog.DefaultBudget
		}
	})
	if err == nil {
		a.note(ctx, who, "maintenance.change", string(m.Kind), m.Schedule)
	}
	return err
}

func noMaintenance(kind catalog.MaintenanceKind) error {
	return fault.New(fault.NotFound, "look up maintenance", string(kind), "there is no such kind").Explain(
		"The appliance does nothing of that name by itself.", "List what there is, and name one of those.")
}

// RunMaintenance implements httpapi.Core.
func (a *Appliance) RunMaintenance(ctx context.Context, who fleet.Who, kind catalog.MaintenanceKind) error {
	rows, err := a.catalog.Maintenance(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(rows, func(m catalog.Maintenance) bool { return m.Kind == kind })
	if i < 0 {
		return noMaintenance(kind)
	}
	a.note(ctx, who, "maintenance.run", string(kind), "")
	a.maintain(a.routine.ctx, rows[i], time.Now())
	return nil
}
