package memplatform

import (
	"context"
	"errors"
	"testing"

	nbdtransport "github.com/cairn-backup/cairn/datamover/transport/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestFaultsFireWhereTheyAreInjected(t *testing.T) {
	ctx := t.Context()
	broken := fault.New(fault.Transient, "test", "", "broken")
	freeze := func(d hypervisors.Driver, vm string) error {
		f, err := d.Freeze(ctx, hypervisors.FreezeRequest{VM: vm, Tag: "t", Track: true})
		if err == nil {
			err = f.Release(ctx)
		}
		return err
	}
	restore := func(d hypervisors.Driver, vm string, end func(hypervisors.Restoring) error) error {
		v, err := d.VM(ctx, vm)
		if err != nil {
			return err
		}
		r, err := d.BeginRestore(ctx, hypervisors.RestoreRequest{
			Tag: "t", Mode: hypervisors.RestoreNew, Name: "new", VM: v, Disks: []hypervisors.RestoreDisk{{ID: "disk0"}, {ID: "disk1"}},
		})
		if err != nil {
			return err
		}
		err = end(r)
		return errors.Join(err, r.Abandon(ctx))
	}
	finish := func(r hypervisors.Restoring) error { _, err := r.Finish(ctx); return err }
	nothing := func(hypervisors.Restoring) error { return nil }
	for _, tt := range []struct {
		op   string
		skip int
		call func(d hypervisors.Driver, vm string) error
	}{
		{OpCheck, 0, func(d hypervisors.Driver, _ string) error { _, err := d.Check(ctx); return err }},
		{OpVMs, 0, func(d hypervisors.Driver, _ string) error { _, err := d.VMs(ctx); return err }},
		{OpVM, 0, func(d hypervisors.Driver, vm string) error { _, err := d.VM(ctx, vm); return err }},
		{OpDatastores, 0, func(d hypervisors.Driver, _ string) error { _, err := d.Datastores(ctx); return err }},
		{OpNetworks, 0, func(d hypervisors.Driver, _ string) error { _, err := d.Networks(ctx); return err }},
		{OpFreeze, 0, freeze},
		{OpFreezeExport, 0, freeze},
		{OpCheckpoints, 0, func(d hypervisors.Driver, vm string) error { _, err := d.Checkpoints(ctx, vm); return err }},
		{OpKeepCheckpoint, 0, func(d hypervisors.Driver, vm string) error { return d.KeepCheckpoint(ctx, vm, "") }},
		{OpCheckRestore, 0, func(d hypervisors.Driver, vm string) error { return restore(d, vm, nothing) }},
		{OpBeginRestore, 0, func(d hypervisors.Driver, vm string) error { return restore(d, vm, nothing) }},
		{OpBeginVolume, 1, func(d hypervisors.Driver, vm string) error { return restore(d, vm, nothing) }},
		{OpFinish, 0, func(d hypervisors.Driver, vm string) error { return restore(d, vm, finish) }},
		{OpStart, 0, func(d hypervisors.Driver, vm string) error { return d.Start(ctx, vm) }},
		{OpStop, 0, func(d hypervisors.Driver, vm string) error { return d.Stop(ctx, vm, false) }},
		{OpCleanUp, 0, func(d hypervisors.Driver, _ string) error {
			return d.CleanUp(ctx, hypervisors.Owed{Kind: owedJob, Name: "cairn-x"})
		}},
		{OpLeftovers, 0, func(d hypervisors.Driver, _ string) error { _, err := d.Leftovers(ctx); return err }},
	} {
		t.Run(tt.op, func(t *testing.T) {
			p := newPlatform(t, Options{})
			vm := p.AddVM(VMSpec{Name: "vm", Disks: []int64{1 << 20, 1 << 20}})
			f := p.Inject(tt.op, &Fault{Err: broken, Skip: tt.skip, Times: 1})
			if err := tt.call(p.Driver(), vm.ID); !errors.Is(err, broken) || f.Fired() != 1 {
				t.Errorf("with a fault in %s: %v, fired %d times", tt.op, err, f.Fired())
			}
			left, err := p.Driver().Leftovers(ctx)
			if err != nil || len(left) > 0 {
				t.Errorf("left: %+v, %v", left, err)
			}
			if len(p.vms) != 1 {
				t.Errorf("%d VMs are left, want 1", len(p.vms))
			}
		})
	}
}

func TestBlockedCallEndsWithItsContext(t *testing.T) {
	p := newPlatform(t, Options{})
	vm := p.AddVM(VMSpec{Name: "vm", Disks: []int64{1 << 20}})
	block := make(chan struct{})
	f := p.Inject(OpFreezeExport, &Fault{Block: block})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := p.Driver().Freeze(ctx, hypervisors.FreezeRequest{VM: vm.ID, Tag: "t", Track: true})
		ended <- err
	}()
	for f.Fired() == 0 {
		select {
		case err := <-ended:
			t.Fatalf("the freeze was not blocked: %v", err)
		default:
		}
	}
	cancel()
	if err := <-ended; fault.KindOf(err) != fault.Canceled {
		t.Errorf("canceled while blocked: %v", err)
	}
	close(block)
	fz, err := p.Driver().Freeze(t.Context(), hypervisors.FreezeRequest{VM: vm.ID, Tag: "t"})
	if err != nil {
		t.Fatalf("after the block was lifted: %v", err)
	}
	if err := fz.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMoversMeetFaults(t *testing.T) {
	p := newPlatform(t, Options{FreeBytes: 100 << 10})
	vm := p.AddVM(VMSpec{Name: "vm", Disks: []int64{1 << 20}})
	ctx := t.Context()
	f, err := p.Driver().Freeze(ctx, hypervisors.FreezeRequest{VM: vm.ID, Tag: "t"})
	if err != nil {
		t.Fatal(err)
	}
	src, err := nbdtransport.OpenSource(ctx, f.Info().Disks[0].Export)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	bad := p.Inject(OpReadDisk, &Fault{Err: errors.New("unreadable sector"), Times: 1})
	if _, err := src.ReadAt(make([]byte, 4096), 0); err == nil || bad.Fired() != 1 {
		t.Errorf("read with a fault: %v, fired %d times", err, bad.Fired())
	}
	if err := f.Release(ctx); err != nil {
		t.Fatal(err)
	}

	r, err := p.Driver().BeginRestore(ctx, hypervisors.RestoreRequest{
		Tag: "t", Mode: hypervisors.RestoreNew, Name: "new", VM: vm, Disks: []hypervisors.RestoreDisk{{ID: "disk0"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	dst, err := nbdtransport.OpenTarget(ctx, r.Disks()[0].Export)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if _, err := dst.WriteAt(make([]byte, 64<<10), 0); err != nil {
		t.Errorf("write while there is room: %v", err)
	}
	if _, err := dst.WriteAt(make([]byte, 64<<10), 64<<10); fault.KindOf(err) != fault.Transient {
		t.Errorf("write to a full datastore: %v (kind %v), want a transient error", err, fault.KindOf(err))
	}
	if err := r.Abandon(ctx); err != nil {
		t.Error(err)
	}
}

func TestHistoryIsLost(t *testing.T) {
	for name, lose := range map[string]func(p *Platform, vm string) error{
		"crash":  func(p *Platform, vm string) error { return p.Crash(vm) },
		"resize": func(p *Platform, vm string) error { return p.Resize(vm, "disk0", 2<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlatform(t, Options{})
			vm := p.AddVM(VMSpec{Name: "vm", Disks: []int64{1 << 20}})
			freeze := func(tag, since string) hypervisors.FrozenInfo {
				t.Helper()
				f, err := p.Driver().Freeze(t.Context(), hypervisors.FreezeRequest{VM: vm.ID, Tag: tag, Since: since, Track: true})
				if err != nil {
					t.Fatal(err)
				}
				if err := f.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
				return f.Info()
			}
			first := freeze("a", "").Checkpoint
			if d := freeze("b", first).Disks[0]; d.FullReason != "" || d.Export.DirtyContext == "" {
				t.Fatalf("before: %+v, want an incremental", d)
			}
			if err := lose(p, vm.ID); err != nil {
				t.Fatal(err)
			}
			if d := freeze("c", first).Disks[0]; d.FullReason == "" || d.Export.DirtyContext != "" {
				t.Errorf("after: %+v, want a full with a reason", d)
			}
		})
	}
}
