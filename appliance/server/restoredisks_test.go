package server

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// TestRestoreDisksWithoutTheirVM restores disks as ones that no VM has, and into a VM that is there.
func TestRestoreDisksWithoutTheirVM(t *testing.T) {
	b := newBench(t)
	p := b.backup()
	frozen0, frozen1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	b.write("disk0", 1<<20, 0)
	now0 := b.content(b.vm.ID, "disk0")

	alone := httpapi.RestoreRequest{RestorePointID: p.ID, Mode: hypervisors.RestoreDisks}
	plan, err := b.PlanRestore(t.Context(), alone)
	if err != nil || len(plan.Disks) != 2 || len(plan.Networks) != 0 {
		t.Fatalf("plan = %+v, %v", plan, err)
	}
	task := b.ended(b.StartRestore(t.Context(), httpapi.Start{}, alone))
	if task.State != catalog.Succeeded || task.Result.VMPlatformID != "" {
		t.Fatalf("task = %s, %+v, %+v", task.State, task.Error, task.Result)
	}
	for i, want := range [][]byte{frozen0, frozen1} {
		if name := plan.Disks[i].Name; !strings.HasPrefix(name, b.vm.Name+"_disk") || !strings.HasSuffix(name, p.Time.UTC().Format("_20060102T150405Z")) {
			t.Errorf("a disk is called %q", name)
		}
		if got, err := b.platform.Content("", plan.Disks[i].Name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("disk %d is something else than was frozen: %v", i, err)
		}
	}
	_, err = b.StartRestore(t.Context(), httpapi.Start{}, alone)
	if fault.KindOf(err) != fault.Exists {
		t.Errorf("the same disks again: %v, want that they exist", err)
	}

	vm, err := b.catalog.VMByPlatformID(t.Context(), b.conn, b.vm.ID)
	if err != nil {
		t.Fatal(err)
	}
	into := httpapi.RestoreRequest{RestorePointID: p.ID, Mode: hypervisors.RestoreInto, IntoVMID: vm.ID, OnlyDisks: []string{"disk0"}}
	task = b.ended(b.StartRestore(t.Context(), httpapi.Start{}, into))
	if task.State != catalog.Succeeded || task.Result.VMPlatformID != b.vm.ID || task.Subject != vm.ID {
		t.Fatalf("task = %s, %+v, %+v, for %s", task.State, task.Error, task.Result, task.Subject)
	}
	if !bytes.Equal(b.content(b.vm.ID, "disk2"), frozen0) || !bytes.Equal(b.content(b.vm.ID, "disk0"), now0) {
		t.Error("the VM has something else than the chosen disk beside its own")
	}
	next := b.backup()
	if len(next.Disks) != 3 {
		t.Errorf("the next backup has the disks %+v, want three", next.Disks)
	}
	for what, r := range map[string]httpapi.RestoreRequest{
		"no VM is named":         {Mode: hypervisors.RestoreInto},
		"another connection":     {Mode: hypervisors.RestoreInto, IntoVMID: vm.ID, ConnectionID: "conn_other"},
		"disks that are started": {Mode: hypervisors.RestoreDisks, Start: true},
	} {
		r.RestorePointID = p.ID
		if _, err := b.PlanRestore(t.Context(), r); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v, want an invalid request", what, err)
		}
	}
	b.clean()
}
