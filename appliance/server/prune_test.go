package server

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// maintain does a kind of maintenance now, waits for what it begins, and returns how it went.
func (b *bench) maintain(kind catalog.MaintenanceKind) httpapi.MaintenanceInfo {
	b.t.Helper()
	if err := b.RunMaintenance(b.t.Context(), admin, kind); err != nil {
		b.t.Fatal(err)
	}
	b.maintained()
	b.idle()
	return b.maintained()[kind]
}

// prune carries retention out now and returns what the prune of the repository did.
func (b *bench) prune() catalog.Pruned {
	b.t.Helper()
	got := b.maintain(catalog.MaintainPrune)
	if got.LastError != nil || len(got.LastParts) != 1 || got.LastParts[0].ID != b.repo {
		b.t.Fatalf("prune = %+v", got)
	}
	run := got.Runs[got.LastParts[0].RunID]
	if run.Kind != catalog.KindPrune || run.Trigger != catalog.TriggerScheduled || run.State != catalog.Succeeded || run.Tasks[0].Result == nil {
		b.t.Fatalf("run = %+v", run)
	}
	return *run.Tasks[0].Result.Pruned
}

// TestScheduledPruneCarriesRetentionOut: what a changed policy lets go is pruned without a backup, of the VMs that it covers, and no more
// at once than the budget says.
func TestScheduledPruneCarriesRetentionOut(t *testing.T) {
	b := stillBench(t)
	var points []catalog.RestorePoint
	for i := range 6 {
		b.write("disk0", 64<<10, int64(i)<<16)
		points = append(points, b.backup())
	}
	held := points[1]
	if err := b.catalog.SetHold(t.Context(), catalog.Hold{RestorePointID: held.ID, Reason: "before the upgrade"}); err != nil {
		t.Fatal(err)
	}
	if got := b.prune(); got != (catalog.Pruned{}) {
		t.Errorf("without policies: %+v", got)
	}
	change := b.change(policy.Spec{Filter: "all", Retention: policy.Retention{Last: 2}})
	change.Paused = true
	p, err := b.CreatePolicy(t.Context(), admin, change)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.prune(); got != (catalog.Pruned{}) {
		t.Errorf("the policy is paused: %+v", got)
	}
	change.Paused = false
	if _, err := b.ReplacePolicy(t.Context(), admin, p.ID, change); err != nil {
		t.Fatal(err)
	}
	budget := points[0].BytesStored + 1
	if err := b.ReplaceMaintenance(t.Context(), admin, catalog.Maintenance{Kind: catalog.MaintainPrune, Schedule: "05:00", BudgetBytes: budget}); err != nil {
		t.Fatal(err)
	}
	want := catalog.Pruned{VMs: 1, Points: 1, Bytes: points[0].BytesStored, Kept: 3, Left: 2, BytesLeft: points[2].BytesStored + points[3].BytesStored}
	if diff := cmp.Diff(b.prune(), want); diff != "" {
		t.Errorf("with a budget of %d: -got +want\n%s", budget, diff)
	}
	if err := b.ReplaceMaintenance(t.Context(), admin, catalog.Maintenance{Kind: catalog.MaintainPrune, Schedule: "05:00"}); err != nil {
		t.Fatal(err)
	}
	if got := b.prune(); got.Points != 2 || got.Left != 0 {
		t.Errorf("without: %+v", got)
	}
	if diff := cmp.Diff(b.points(), map[string]bool{held.ID: true, points[4].ID: true, points[5].ID: true}); diff != "" {
		t.Errorf("-got +want\n%s", diff)
	}
	if got := b.prune(); got.Points != 0 || got.Kept != 3 {
		t.Errorf("once more: %+v", got)
	}
}

// TestSweepIsMaintenance has tasks leave something on two platforms of which one refuses to let go, and something of another Cairn's there.
func TestSweepIsMaintenance(t *testing.T) {
	b := stillBench(t)
	release := b.platform.Inject("CleanUp", &memplatform.Fault{Err: fault.New(fault.Transient, "clean up", "", "planted")})
	stays := b.platform.Inject("Release", &memplatform.Fault{Err: fault.New(fault.Transient, "release", "", "planted")})
	b.ended(b.startBackup())
	got := b.maintain(catalog.MaintainSweep)
	if release.Fired() == 0 || stays.Fired() == 0 || got.LastError == nil || len(got.LastParts) != 1 || got.LastParts[0].Error == nil ||
		got.LastResult != "0 of 1 connections swept: 0 leftovers removed" {
		t.Fatalf("the faults fired %d and %d times; sweep = %+v", release.Fired(), stays.Fired(), got)
	}
	b.platform.Heal()
	if got = b.maintain(catalog.MaintainSweep); got.LastError != nil || got.LastParts[0].Name != "lab" || !strings.HasPrefix(got.LastParts[0].Result, "1 leftovers removed") {
		t.Errorf("sweep = %+v", got)
	}
	b.clean()
	other := hypervisors.FreezeRequest{VM: b.vm.ID, Tag: "00000000000000000000000000", Owe: func(context.Context, hypervisors.Owed) error { return nil }}
	frozen, err := b.platform.Driver().Freeze(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if got = b.maintain(catalog.MaintainSweep); got.LastParts[0].Result != "0 leftovers removed, 1 left alone, which another Cairn has made" {
		t.Errorf("sweep = %+v", got)
	}
	if err := frozen.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}
