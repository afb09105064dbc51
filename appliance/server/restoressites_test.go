package server

import (
	"bytes"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// TestRestoresOfTwoPlatforms restores VMs of two connections from two repositories in one run: each where it was, though two have one name,
// and then all on one connection, where they cannot both have it.
func TestRestoresOfTwoPlatforms(t *testing.T) {
	b := newBench(t)
	far, err := memplatform.New(memplatform.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	b.others = map[string]*memplatform.Platform{"far": far}
	twin, lone := far.AddVM(memplatform.VMSpec{Name: "web", Disks: []int64{diskBytes}}), far.AddVM(memplatform.VMSpec{Name: "mail", Disks: []int64{diskBytes}})
	for i, vm := range []hypervisors.VM{twin, lone} {
		if err := far.Write(vm.ID, "disk0", bytes.Repeat([]byte{byte(i + 1)}, 4096), 0); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := b.AddConnection(t.Context(), httpapi.NewConnection{Name: "far", Platform: memplatform.PlatformName, Address: "far"})
	if err != nil {
		t.Fatal(err)
	}
	repo, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "second", Path: filepath.Join(b.root, "second")})
	if err != nil {
		t.Fatal(err)
	}
	b.backup()
	for _, vm := range []hypervisors.VM{twin, lone} {
		row, err := b.catalog.VMByPlatformID(t.Context(), conn.ID, vm.ID)
		if err != nil {
			t.Fatal(err)
		}
		task := b.ended(b.StartBackup(t.Context(), httpapi.Start{User: "ann"}, httpapi.BackupRequest{VMID: row.ID, RepositoryID: repo.ID}))
		if task.State != catalog.Succeeded {
			t.Fatalf("backup of %s = %s, %+v", vm.Name, task.State, task.Error)
		}
	}

	content := func(connection, vm string) []byte {
		p := b.platform
		if connection == conn.ID {
			p = far
		}
		c, err := p.Content(vm, "disk0")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	want := map[string][]byte{
		b.conn + " web-again": content(b.conn, b.vm.ID), conn.ID + " web-again": content(conn.ID, twin.ID), conn.ID + " mail-again": content(conn.ID, lone.ID),
	}
	request := httpapi.RestoresRequest{Filter: "all", Mode: hypervisors.RestoreNew, NameSuffix: "-again"}
	started, err := b.StartRestores(t.Context(), startOf("ann"), request)
	if err != nil {
		t.Fatal(err)
	}
	run, err := b.GetRun(t.Context(), started.RunID)
	if err != nil || len(run.Tasks) != len(want) {
		t.Fatalf("run = %+v, %v, want three tasks", run, err)
	}
	for _, task := range run.Tasks {
		b.await(b.watch.end(task.ID))
		ended, err := b.GetTask(t.Context(), task.ID)
		if err != nil || ended.State != catalog.Succeeded {
			t.Fatalf("task = %+v, %v", ended, err)
		}
		key := ended.ConnectionID + " " + ended.Result.VMName
		if w, there := want[key]; !there || !bytes.Equal(content(ended.ConnectionID, ended.Result.VMPlatformID), w) {
			t.Errorf("%s is not what was backed up there", key)
		}
		delete(want, key)
	}
	if len(want) > 0 {
		t.Errorf("%d VMs were not restored", len(want))
	}

	request.NameSuffix, request.ConnectionID, request.Filter = "-moved", conn.ID, "name = web or name = mail"
	p, err := b.PlanRestores(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, vm := range p.VMs {
		if vm.ConnectionID != conn.ID {
			t.Errorf("%s would go to %s", vm.As, vm.ConnectionID)
		}
		kinds = append(kinds, kindOf(vm.Err))
	}
	if slices.Sort(kinds); !slices.Equal(kinds, []string{"exists", "nil", "nil"}) {
		t.Errorf("on one connection: %v, want one of the two of one name refused", kinds)
	}
	b.clean()
}
