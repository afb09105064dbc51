package server

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
)

// accountEvery is how soon a change of what is promised, or damage, counts in the history of RPO. Restore points count by their own times.
const accountEvery = 10 * time.Minute

// keepHistory accounts for the RPO that VMs achieve: of those for which something has changed, and of all once a day.
func (a *Appliance) keepHistory(ctx context.Context, now time.Time) {
	if since := now.Sub(a.routine.accounted); since >= 0 && since < accountEvery {
		return
	}
	a.routine.accounted = now
	err := a.account(ctx, now)
	if err == nil {
		err = a.catalog.PurgeHistory(ctx, now.Add(-catalog.HistoryKept))
	}
	if err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "the history of RPO was not brought up to date; it will be tried again", "err", err)
	}
}

func (a *Appliance) account(ctx context.Context, now time.Time) error {
	now = now.UTC().Truncate(time.Second)
	ledger, err := a.catalog.Ledger(ctx, "") // before the estate, which may know of newer restore points, but not of older ones
	if err != nil {
		return err
	}
	e, err := a.estate(ctx, now)
	if err != nil {
		return err
	}
	var changed []catalog.Accounted
	there := map[string]bool{}
	for _, vm := range e.VMs {
		is := policy.Account{AsOf: now, Target: e.of(vm).Target.Truncate(time.Second), Newest: e.Newest[vm.ID].Time.UTC()}
		was, known := ledger.Accounts[vm.ID]
		there[vm.ID] = true
		same := was.Target == is.Target && was.Newest.Equal(is.Newest) && len(ledger.Stamps[vm.ID]) == 0 && !was.AsOf.Before(now.Truncate(24*time.Hour))
		switch {
		case !known:
			changed = append(changed, catalog.Accounted{VMID: vm.ID, Account: is})
		case !same:
			changed = append(changed, advance(vm.ID, was, is, ledger.Stamps[vm.ID]))
		}
	}
	for id, was := range ledger.Accounts {
		if !there[id] && (was.Target != 0 || len(ledger.Stamps[id]) > 0) { // of a VM that is gone
			changed = append(changed, advance(id, was, policy.Account{AsOf: now, Newest: was.Newest}, ledger.Stamps[id]))
		}
	}
	return a.catalog.SaveAccounts(ctx, ledger, changed)
}

// advance accounts for what was until what is, and goes on from there.
func advance(vmID string, was, is policy.Account, stamps []policy.Stamp) catalog.Accounted {
	next, days := was.Advance(is.AsOf, stamps)
	next.Target, next.Newest = is.Target, is.Newest
	return catalog.Accounted{VMID: vmID, Account: next, Days: days}
}

// CoverageHistory implements httpapi.Core: what is accounted for, and the time since.
func (a *Appliance) CoverageHistory(ctx context.Context, f httpapi.HistoryFilter) ([]httpapi.HistoryDay, error) {
	selected, err := a.selectedVMs(ctx, f)
	if err != nil {
		return nil, err
	}
	ledger, err := a.catalog.Ledger(ctx, f.VMID)
	if err != nil {
		return nil, err
	}
	sums := map[time.Time]httpapi.HistoryDay{}
	parts := map[time.Time]map[string]policy.Day{} // of VMs on days that are accounted for in part
	now := time.Now().UTC().Truncate(time.Second)
	for id, account := range ledger.Accounts {
		_, days := account.Advance(now, ledger.Stamps[id])
		for _, d := range days {
			if parts[d.Date] == nil {
				parts[d.Date] = map[string]policy.Day{}
			}
			parts[d.Date][id] = d
		}
	}
	see := func(id string, d policy.Day) {
		if (selected == nil || selected[id]) && !d.Date.Before(f.From) && !d.Date.After(f.To) {
			sums[d.Date] = sums[d.Date].Add(d)
		}
	}
	err = a.catalog.History(ctx, f.VMID, f.From, f.To, func(id string, d policy.Day) {
		if more, ok := parts[d.Date][id]; ok {
			delete(parts[d.Date], id)
			d = d.Add(more)
		}
		see(id, d)
	})
	if err != nil {
		return nil, err
	}
	for _, vms := range parts {
		for id, d := range vms {
			see(id, d)
		}
	}
	out := make([]httpapi.HistoryDay, 0, len(sums))
	for _, d := range sums {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b httpapi.HistoryDay) int { return cmp.Compare(a.Date.Unix(), b.Date.Unix()) })
	return out, nil
}

// selectedVMs are those whose history is asked for; nil is all, also those that are gone.
func (a *Appliance) selectedVMs(ctx context.Context, f httpapi.HistoryFilter) (map[string]bool, error) {
	if f.VMID != "" {
		if _, err := a.catalog.VM(ctx, f.VMID); err != nil {
			return nil, err
		}
	}
	if f.Filter == "" {
		return nil, nil
	}
	if f.VMID != "" {
		return nil, fault.New(fault.Invalid, "read history of RPO", f.VMID, "a VM and a filter").Explain(
			"The history is that of one VM, or of those that a filter selects.", "Name one of the two.")
	}
	filter, err := policy.ParseFilter(f.Filter)
	if err != nil {
		return nil, err
	}
	facts, err := a.catalog.VMFacts(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, vm := range facts {
		if filter.Match(vm) {
			out[vm.ID] = true
		}
	}
	return out, nil
}
