package server

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
)

func (b *bench) history(f httpapi.HistoryFilter) []httpapi.HistoryDay {
	b.t.Helper()
	days, err := b.CoverageHistory(b.t.Context(), f)
	if err != nil {
		b.t.Fatal(err)
	}
	return days
}

// TestHistoryStaysRightAfterPrunes accounts for a VM from two days before its only restore point until three days after it, and prunes
// that then.
func TestHistoryStaysRightAfterPrunes(t *testing.T) {
	b := stillBench(t)
	b.more("uncovered")
	now := time.Now().UTC().Truncate(time.Second)
	today := now.Truncate(24 * time.Hour)
	if _, err := b.CreatePolicy(t.Context(), admin, b.change(policy.Spec{Filter: "name = web", RPO: 3600})); err != nil {
		t.Fatal(err)
	}
	account := func(at time.Time) {
		t.Helper()
		if err := b.account(t.Context(), at); err != nil {
			t.Fatal(err)
		}
	}
	account(now.Add(-48 * time.Hour))
	point := b.backup()
	span := httpapi.HistoryFilter{VMID: b.vmID, From: today.AddDate(0, 0, -2), To: today.AddDate(0, 0, 3)}
	before := b.history(span)
	if n := len(before); n < 3 || before[0].Covered != today.AddDate(0, 0, -1).Sub(now.Add(-48*time.Hour)) || before[0].Late != before[0].Covered || before[0].Attained() != 0 || before[0].Worst != 0 {
		t.Fatalf("it was never backed up: %+v", before)
	}
	account(now.Add(72 * time.Hour))
	kept := time.Duration(0)
	after := b.history(span)
	points := 0
	for _, d := range after {
		kept += d.Covered - d.Late
		points += d.Points
	}
	last := after[len(after)-1]
	if len(after) != 6 || points != 1 || kept <= 0 || kept > time.Hour || last.Target != time.Hour || last.VMs != 1 || last.VMsLate != 1 ||
		last.Worst.Round(time.Minute) != now.Add(72*time.Hour).Sub(point.Time).Round(time.Minute) {
		t.Errorf("it kept its promise for %v on %+v", kept, after)
	}
	if diff := cmp.Diff(after[:2], before[:2]); diff != "" {
		t.Errorf("what was known has changed: %s", diff)
	}
	if err := b.PruneRestorePoint(t.Context(), point.ID); err != nil {
		t.Fatal(err)
	}
	account(now.Add(73 * time.Hour))
	if diff := cmp.Diff(b.history(span)[:5], after[:5]); diff != "" {
		t.Errorf("pruning has changed what was: %s", diff)
	}
	all := b.history(httpapi.HistoryFilter{Filter: "name = web", From: span.From, To: span.To})
	if diff := cmp.Diff(all, b.history(span)); diff != "" {
		t.Errorf("one VM by a filter: %s", diff)
	}
	if days := b.history(httpapi.HistoryFilter{Filter: "name = uncovered", From: span.From, To: span.To}); len(days) > 0 && days[0].VMs != 0 {
		t.Errorf("no policy covers it: %+v", days)
	}
	for _, f := range []httpapi.HistoryFilter{{VMID: "vm_x"}, {VMID: b.vmID, Filter: "all"}, {Filter: "("}} {
		if _, err := b.CoverageHistory(t.Context(), f); fault.KindOf(err) != fault.NotFound && fault.KindOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

// TestHistoryFollowsPromisesAndDamage: only what has changed is stored, and what is not covered any more is not counted.
func TestHistoryFollowsPromisesAndDamage(t *testing.T) {
	b := stillBench(t)
	point := b.backup()
	now := time.Now().UTC().Truncate(time.Second).Add(time.Minute)
	p, err := b.CreatePolicy(t.Context(), admin, b.change(policy.Spec{Filter: "all", RPO: 7 * 86400}))
	if err != nil {
		t.Fatal(err)
	}
	at := func(d time.Duration) catalog.Ledger {
		t.Helper()
		if err := b.account(t.Context(), now.Add(d)); err != nil {
			t.Fatal(err)
		}
		l, err := b.catalog.Ledger(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	end := now.Truncate(24*time.Hour).AddDate(0, 0, 3).Sub(now) // a midnight from which hours can be counted
	first := at(end)
	if again := at(end + time.Hour); again.Accounts[b.vmID] != first.Accounts[b.vmID] {
		t.Errorf("nothing has changed, and %+v became %+v", first.Accounts[b.vmID], again.Accounts[b.vmID])
	}
	if err := b.catalog.SetVerified(t.Context(), point.ID, fault.New(fault.Corrupt, "verify", point.ID, "planted")); err != nil {
		t.Fatal(err)
	}
	if l := at(end + 2*time.Hour); !l.Accounts[b.vmID].Newest.IsZero() {
		t.Errorf("its only restore point is damaged: %+v", l.Accounts[b.vmID])
	}
	if err := b.RemovePolicy(t.Context(), admin, p.ID); err != nil {
		t.Fatal(err)
	}
	at(end + 5*time.Hour)
	at(end + 23*time.Hour)
	day := now.Add(end)
	days := b.history(httpapi.HistoryFilter{VMID: b.vmID, From: day, To: day})
	if len(days) != 1 || days[0].Covered != 5*time.Hour || days[0].Late != 3*time.Hour {
		t.Errorf("covered for 5 hours, of which it had a good restore point for 2: %+v", days)
	}
}
