package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
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

// budgeted are the kinds that have a budget.
var budgeted = []catalog.MaintenanceKind{catalog.MaintainVerify, catalog.MaintainPrune, catalog.MaintainCollect, catalog.MaintainReread}

// byOne are the kinds that one manager does for all. Each maintains its own repositories.
var byOne = []catalog.MaintenanceKind{catalog.MaintainInventory, catalog.MaintainSweep}

// maintenanceDue reports whether a kind is due, and remembers that it has been looked at then.
func (a *Appliance) maintenanceDue(row catalog.Maintenance, now time.Time) bool {
	calendar, windows, zone, err := understandMaintenance(row)
	if err != nil || row.Paused || slices.Contains(byOne, row.Kind) && !a.queue.Leads() {
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
	do := map[catalog.MaintenanceKind]func(context.Context, catalog.Maintenance, time.Time) (maintained, error){
		catalog.MaintainInventory: a.maintainInventory, catalog.MaintainVerify: a.maintainVerify, catalog.MaintainPrune: a.maintainPrune,
		catalog.MaintainCollect: a.maintainCollect, catalog.MaintainSweep: a.maintainSweep, catalog.MaintainReread: a.maintainReread,
	}[row.Kind]
	a.routine.mu.Lock()
	defer a.routine.mu.Unlock()
	if do == nil || a.routine.busy[row.Kind] || a.routine.over {
		return
	}
	a.routine.busy[row.Kind] = true
	a.routine.done.Go(func() {
		did, err := do(ctx, row, now)
		noteErr := a.catalog.UpdateMaintenance(context.WithoutCancel(ctx), row.Kind, func(m *catalog.Maintenance) {
			start, end := now.UTC().Truncate(time.Microsecond), time.Now().UTC() // no database keeps more
			// Another manager's clock may have said the start.
			if end.Before(start) {
				end = start
			}
			m.LastStarted, m.LastEnded, m.LastResult, m.LastError = &start, &end, did.text, catalog.FailureOf(err)
			m.LastParts = did.merge(m.LastParts, start)
		})
		if err := errors.Join(err, noteErr); err != nil && ctx.Err() == nil {
			a.log.WarnContext(ctx, "maintenance failed", "kind", row.Kind, "err", err)
		}
		a.routine.mu.Lock()
		defer a.routine.mu.Unlock()
		a.routine.busy[row.Kind] = false
	})
}

// maintained is what maintenance did.
type maintained struct {
	text  string
	parts []catalog.MaintenancePart
	known []string // ids of all repositories or connections: parts of others are forgotten
}

// add notes how one part went.
func (m *maintained) add(id, name, result, run string, err error) {
	m.parts = append(m.parts, catalog.MaintenancePart{ID: id, Name: name, At: time.Now().UTC(), Result: result, RunID: run, Error: catalog.FailureOf(err)})
}

// merge returns the parts as they are known now: of a repository that was not maintained this time, by another manager for instance,
// what was known before stays. None is older than the start, which the clock of another manager may have said.
func (m *maintained) merge(before []catalog.MaintenancePart, start time.Time) []catalog.MaintenancePart {
	out := slices.Clone(m.parts)
	for i, p := range out {
		if p.At.Before(start) {
			out[i].At = start
		}
	}
	for _, old := range before {
		now := slices.ContainsFunc(m.parts, func(p catalog.MaintenancePart) bool { return p.ID == old.ID })
		if !now && slices.Contains(m.known, old.ID) {
			out = append(out, old)
		}
	}
	slices.SortFunc(out, func(a, b catalog.MaintenancePart) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// maintainInventory reads the VMs of every connection. One that does not answer keeps the others from nothing.
func (a *Appliance) maintainInventory(ctx context.Context, _ catalog.Maintenance, _ time.Time) (out maintained, err error) {
	list, err := a.catalog.AllConnections(ctx)
	if err != nil {
		return out, err
	}
	var sum catalog.InventoryReport
	var errs []error
	for _, conn := range list {
		report, err := a.RefreshConnection(ctx, conn.ID)
		out.add(conn.ID, conn.Name, inventoryWords(report), "", err)
		if err != nil {
			errs = append(errs, fault.Context("read inventory of", conn.Name, err))
			continue
		}
		sum.VMs += report.VMs
		sum.Added += report.Added
		sum.Changed += report.Changed
		sum.Gone += report.Gone
	}
	out.text = fmt.Sprintf("%d of %d connections read: %s", len(list)-len(errs), len(list), inventoryWords(sum))
	return out, errors.Join(errs...)
}

func inventoryWords(r catalog.InventoryReport) string {
	return fmt.Sprintf("%d VMs, %d new, %d changed, %d gone", r.VMs, r.Added, r.Changed, r.Gone)
}

// maintainVerify begins the verification of one repository that is due, unless one is being verified: the workers are needed for backups.
func (a *Appliance) maintainVerify(ctx context.Context, m catalog.Maintenance, now time.Time) (out maintained, err error) {
	own, err := a.ownRepositories(ctx, &out)
	if err != nil {
		return out, err
	}
	active, err := a.catalog.ActiveTasks(ctx)
	if err != nil {
		return out, err
	}
	if slices.ContainsFunc(active, isSweep) {
		out.text = "a repository is being read back"
		return out, nil
	}
	row, ok := nextDue(own, now, a.routine.last)
	if !ok {
		out.text = "no repository is due"
		return out, nil
	}
	a.routine.last[row.ID] = now // also if it cannot be opened, so that others have their turn
	started, err := a.startBy(ctx, catalog.TriggerScheduled, httpapi.Start{}, catalog.KindVerify, func() (*catalog.Task, error) {
		return a.protector.RequestSweep(ctx, row.ID, scheduledSweep(row, m.BudgetBytes))
	})
	out.add(row.ID, row.Name, "", started.RunID, err)
	if err != nil {
		return out, err
	}
	out.text = "repository " + row.Name + " is read back by " + started.RunID
	return out, nil
}

// ownRepositories are those of this manager; out learns which there are at all.
func (a *Appliance) ownRepositories(ctx context.Context, out *maintained) ([]catalog.Repository, error) {
	list, err := a.catalog.AllRepositories(ctx)
	for _, r := range list {
		out.known = append(out.known, r.ID)
	}
	return slices.DeleteFunc(list, func(r catalog.Repository) bool { return a.mayOpen(ctx, r.ID) != nil }), err
}

// maintainPrune begins to carry out the retention of policies in each repository of this manager.
func (a *Appliance) maintainPrune(ctx context.Context, m catalog.Maintenance, _ time.Time) (maintained, error) {
	return a.eachRepository(ctx, catalog.KindPrune, "pruned", func(id string) (*catalog.Task, error) {
		return a.protector.RequestPrune(ctx, id, protect.PruneSpec{Budget: m.BudgetBytes})
	})
}

// maintainCollect begins a collect of each repository of this manager.
func (a *Appliance) maintainCollect(ctx context.Context, m catalog.Maintenance, _ time.Time) (maintained, error) {
	return a.eachRepository(ctx, catalog.KindCollect, "collected", func(id string) (*catalog.Task, error) {
		return a.protector.RequestCollect(ctx, id, protect.CollectSpec{Budget: m.BudgetBytes})
	})
}

// eachRepository begins a task on each repository of this manager, unless such a one is under way there.
func (a *Appliance) eachRepository(ctx context.Context, kind catalog.RunKind, done string, request func(id string) (*catalog.Task, error)) (out maintained, err error) {
	own, err := a.ownRepositories(ctx, &out)
	if err != nil {
		return out, err
	}
	begun := 0
	var errs []error
	for _, row := range own {
		started, err := a.startBy(ctx, catalog.TriggerScheduled, httpapi.Start{}, kind, func() (*catalog.Task, error) { return request(row.ID) })
		switch {
		case err == nil:
			begun++
			out.add(row.ID, row.Name, "", started.RunID, nil)
		case fault.KindOf(err) != fault.Conflict: // a Conflict: it is being done now
			out.add(row.ID, row.Name, "", "", err)
			errs = append(errs, fault.Context(string(kind)+" repository", row.Name, err))
		}
	}
	out.text = fmt.Sprintf("%d of %d repositories are %s", begun, len(out.known), done)
	if others := len(out.known) - len(own); others > 0 {
		out.text += fmt.Sprintf(", %d are left to other managers", others)
	}
	return out, errors.Join(errs...)
}

// maintainSweep removes what tasks have left on platforms.
func (a *Appliance) maintainSweep(ctx context.Context, _ catalog.Maintenance, _ time.Time) (out maintained, err error) {
	swept, err := a.queue.Sweep(ctx)
	removed, strange, failed := 0, 0, 0
	for _, s := range swept {
		out.add(s.ConnectionID, s.Name, sweptWords(s.Removed, s.Strange), "", s.Err)
		removed += s.Removed
		strange += s.Strange
		if s.Err != nil {
			failed++
		}
	}
	out.text = fmt.Sprintf("%d of %d connections swept: %s", len(swept)-failed, len(swept), sweptWords(removed, strange))
	return out, err
}

func sweptWords(removed, strange int) string {
	text := fmt.Sprintf("%d leftovers removed", removed)
	if strange > 0 {
		text += fmt.Sprintf(", %d left alone, which another Cairn has made", strange)
	}
	return text
}

// ListMaintenance implements httpapi.Core.
func (a *Appliance) ListMaintenance(ctx context.Context) ([]httpapi.MaintenanceInfo, error) {
	a.routine.mu.Lock()
	busy := maps.Clone(a.routine.busy) // before the rows: what is not busy has noted how it went
	a.routine.mu.Unlock()
	asked, err := a.catalog.MaintenanceRequests(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range asked {
		busy[r.Kind] = true
	}
	rows, err := a.catalog.Maintenance(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]httpapi.MaintenanceInfo, len(rows))
	for i, row := range rows {
		out[i] = httpapi.MaintenanceInfo{Maintenance: row, Busy: busy[row.Kind]}
		if out[i].Runs, err = a.runsOf(ctx, row.LastParts); err != nil {
			return nil, err
		}
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

// runsOf returns the runs that maintenance began, as they are now.
func (a *Appliance) runsOf(ctx context.Context, parts []catalog.MaintenancePart) (map[string]httpapi.RunInfo, error) {
	var ids []string
	for _, p := range parts {
		if p.RunID != "" {
			ids = append(ids, p.RunID)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	tasks, err := a.catalog.TasksOfRuns(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := map[string]httpapi.RunInfo{}
	for _, id := range ids {
		run, err := a.catalog.Run(ctx, id)
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return nil, err
		}
		if err == nil {
			out[id] = httpapi.RunInfo{Run: run, Tasks: tasks[id]}
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
	if !slices.Contains(budgeted, m.Kind) && m.BudgetBytes != 0 {
		return fault.New(fault.Invalid, "change maintenance", string(m.Kind), "it has no budget").Explain(
			"A budget bounds what one verification or one reread reads, what one prune lets go, and what one collect rewrites.", "Leave the budget out.")
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
