package server

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

func TestRestoreFailsAtEachStepOfThePlatform(t *testing.T) {
	gone := fault.New(fault.Transient, "reach host", "lab", "no answer")
	tests := map[string]struct {
		skip int
		vms  int // there afterwards
		want catalog.State
	}{
		"begin":           {0, 1, catalog.Failed},
		"volume":          {1, 1, catalog.Failed},
		"write":           {1, 1, catalog.Failed},
		"write, and left": {1, 1, catalog.Failed},
		"finish":          {0, 1, catalog.Failed},
		"start":           {0, 2, catalog.Warning},
	}
	ops := map[string]string{
		"begin": memplatform.OpBeginRestore, "volume": memplatform.OpBeginVolume, "write": memplatform.OpWriteDisk,
		"write, and left": memplatform.OpWriteDisk, "finish": memplatform.OpFinish, "start": memplatform.OpStart,
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			p := b.backup()
			f := b.platform.Inject(ops[name], &memplatform.Fault{Err: gone, Skip: tt.skip})
			if name == "write, and left" {
				b.platform.Inject(memplatform.OpAbandon, &memplatform.Fault{Err: gone})
				b.platform.Inject(memplatform.OpCleanUp, &memplatform.Fault{Err: gone})
			}
			task := b.ended(b.StartRestore(t.Context(), httpapi.Start{}, httpapi.RestoreRequest{
				RestorePointID: p.ID, Mode: hypervisors.RestoreNew, Name: "copy", Start: true,
			}))
			if f.Fired() == 0 {
				t.Fatal("the fault did not fire")
			}
			if task.State != tt.want {
				t.Errorf("task = %s, %+v, want %s", task.State, task.Error, tt.want)
			}
			b.platform.Heal()
			if _, err := b.queue.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.clean()
			if got := b.vms(); got != tt.vms {
				t.Errorf("%d VMs, want %d", got, tt.vms)
			}
		})
	}
}

func TestCancelRestoreInEachPhase(t *testing.T) {
	for _, op := range []string{memplatform.OpBeginRestore, memplatform.OpBeginVolume, memplatform.OpWriteDisk} {
		t.Run(op, func(t *testing.T) {
			b := newBench(t)
			p := b.backup()
			hold := make(chan struct{})
			release := context.AfterFunc(t.Context(), func() { close(hold) })
			defer release()
			f := b.platform.Inject(op, &memplatform.Fault{Block: hold, Times: 1})
			task := b.task(b.startRestore(p.ID, "copy"))
			b.until(f, task.ID)
			if err := b.CancelRun(t.Context(), task.RunID); err != nil {
				t.Fatal(err)
			}
			if op == memplatform.OpWriteDisk {
				close(hold) // the platform's server does not end before its requests do
				release()
			}
			b.await(b.watch.end(task.ID))
			got, err := b.GetTask(t.Context(), task.ID)
			if err != nil || got.State != catalog.Cancelled {
				t.Errorf("task = %s, %+v, %v", got.State, got.Error, err)
			}
			b.clean()
			if n := b.vms(); n != 1 {
				t.Errorf("%d VMs after a cancelled restore", n)
			}
			b.restore(p.ID, "copy")
		})
	}
}

func TestRestoreInPlace(t *testing.T) {
	b := newBench(t)
	p := b.backup()
	frozen0, frozen1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	b.write("disk0", 1<<20, 0)
	if err := b.platform.Driver().Stop(t.Context(), b.vm.ID, true); err != nil {
		t.Fatal(err)
	}
	task := b.ended(b.StartRestore(t.Context(), httpapi.Start{}, httpapi.RestoreRequest{
		RestorePointID: p.ID, Mode: hypervisors.RestoreInPlace, Start: true,
	}))
	if task.State != catalog.Succeeded || !task.Result.Started || task.Result.VMPlatformID != b.vm.ID {
		t.Fatalf("task = %s, %+v, %+v", task.State, task.Error, task.Result)
	}
	if !bytes.Equal(b.content(b.vm.ID, "disk0"), frozen0) || !bytes.Equal(b.content(b.vm.ID, "disk1"), frozen1) {
		t.Error("the disks are not what was frozen")
	}
	b.clean()
	b.write("disk0", 4096, 0)
	next := b.backup()
	if next.Kind != catalog.Full || next.Disks[0].Reason == "" {
		t.Errorf("the backup after it is %s, %q", next.Kind, next.Disks[0].Reason)
	}
	b.restoresTo(next.ID, "copy", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
}

func TestPlanRestore(t *testing.T) {
	b := newBench(t)
	p := b.backup()
	plan, err := b.PlanRestore(t.Context(), httpapi.RestoreRequest{RestorePointID: p.ID, Mode: hypervisors.RestoreNew, Name: "copy"})
	if err != nil || plan.VMName != "copy" || plan.ConnectionID != b.conn || len(plan.Disks) != 2 || plan.Disks[0].SizeBytes != diskBytes {
		t.Errorf("plan = %+v, %v", plan, err)
	}
	if n := b.vms(); n != 1 {
		t.Errorf("planning made %d VMs", n-1)
	}
	b.clean()
}

func TestRestoreOfAPointWhoseConnectionIsUnknown(t *testing.T) {
	b := newBench(t)
	p := b.backup()
	frozen0, frozen1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The catalog is lost; only the keys are there.
	if err := os.Remove(filepath.Join(b.root, "data", "catalog.db")); err != nil {
		t.Fatal(err)
	}
	b.start()
	conn, err := b.AddConnection(t.Context(), httpapi.NewConnection{Name: "new", Platform: memplatform.PlatformName, Address: "here"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "again", Path: filepath.Join(b.root, "repo"), Attach: true}); err != nil {
		t.Fatal(err)
	}
	request := restoreOf(p.ID, "copy", false)
	_, err = b.StartRestore(t.Context(), startOf("ann"), request)
	if meaning, advice := fault.Explanation(err); kindOf(err) != "invalid" || meaning == "" || !strings.Contains(advice, "--connection") {
		t.Errorf("without a connection: %v (%s), %q, %q", err, kindOf(err), meaning, advice)
	}
	request.ConnectionID = conn.ID
	task := b.ended(b.StartRestore(t.Context(), startOf("ann"), request))
	if task.State != catalog.Succeeded {
		t.Fatalf("with one: %s, %+v", task.State, task.Error)
	}
	if vm := task.Result.VMPlatformID; !bytes.Equal(b.content(vm, "disk0"), frozen0) || !bytes.Equal(b.content(vm, "disk1"), frozen1) {
		t.Error("the disks are not what was frozen")
	}
}
