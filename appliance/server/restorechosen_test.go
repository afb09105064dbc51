package server

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// TestRestoreChosenDisks restores one disk of two, in place and as a VM, and refuses what the restore point does not have.
func TestRestoreChosenDisks(t *testing.T) {
	b := newBench(t)
	p := b.backup()
	frozen1 := b.content(b.vm.ID, "disk1")
	b.write("disk0", 1<<20, 0)
	b.write("disk1", 1<<20, 0)
	stays := b.content(b.vm.ID, "disk0")
	if err := b.platform.Driver().Stop(t.Context(), b.vm.ID, true); err != nil {
		t.Fatal(err)
	}
	request := httpapi.RestoreRequest{RestorePointID: p.ID, Mode: hypervisors.RestoreInPlace, OnlyDisks: []string{"disk1"}}
	plan, err := b.PlanRestore(t.Context(), request)
	if err != nil || len(plan.Disks) != 1 || plan.Disks[0].ID != "disk1" {
		t.Errorf("plan = %+v, %v, want disk1", plan, err)
	}
	if diff := cmp.Diff(plan.LeftOut, []httpapi.LeftOut{{Disk: "disk0", Reason: "not chosen"}}); diff != "" {
		t.Errorf("left out, -got +want:\n%s", diff)
	}
	b.refusesDisks(p.ID)
	task := b.ended(b.StartRestore(t.Context(), httpapi.Start{}, request))
	if task.State != catalog.Succeeded || task.Result.VMPlatformID != b.vm.ID {
		t.Fatalf("task = %s, %+v, %+v", task.State, task.Error, task.Result)
	}
	if !bytes.Equal(b.content(b.vm.ID, "disk0"), stays) || !bytes.Equal(b.content(b.vm.ID, "disk1"), frozen1) {
		t.Error("the VM has something else than the chosen disk as it was frozen and the other one as it was")
	}
	next := b.backup()
	b.restoresTo(next.ID, "whole", stays, frozen1)

	task = b.ended(b.StartRestore(t.Context(), httpapi.Start{}, httpapi.RestoreRequest{
		RestorePointID: p.ID, Mode: hypervisors.RestoreNew, Name: "one", OnlyDisks: []string{"disk1"},
	}))
	if task.State != catalog.Succeeded {
		t.Fatalf("task = %s, %+v", task.State, task.Error)
	}
	made, err := b.platform.Driver().VM(t.Context(), task.Result.VMPlatformID)
	if err != nil || len(made.Disks) != 1 || !bytes.Equal(b.content(made.ID, "disk1"), frozen1) {
		t.Errorf("the VM of one disk has %+v, %v", made.Disks, err)
	}
	b.clean()
}

// refusesDisks asks for disks that cannot be restored; nothing begins.
func (b *bench) refusesDisks(point string) {
	b.t.Helper()
	for want, r := range map[string]httpapi.RestoreRequest{
		`no disk "disk7"`:         {OnlyDisks: []string{"disk1", "disk7"}},
		"chosen twice":            {OnlyDisks: []string{"disk1", "disk1"}},
		`to restore disk "disk0"`: {OnlyDisks: []string{"disk1"}, Disks: []hypervisors.RestoreDisk{{ID: "disk0", Format: hypervisors.Raw}}},
	} {
		r.RestorePointID, r.Mode = point, hypervisors.RestoreInPlace
		_, planned := b.PlanRestore(b.t.Context(), r)
		_, started := b.StartRestore(b.t.Context(), httpapi.Start{}, r)
		for _, err := range []error{planned, started} {
			if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
				b.t.Errorf("%v, want an invalid request that says %s", err, want)
			}
		}
	}
}
