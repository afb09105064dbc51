package kvm_test

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// TestChangeHistory walks one VM through what can happen to its record of changes.
func TestChangeHistory(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	vm := b.run("history", kvmlab.Disk{MiB: 16}, kvmlab.Disk{MiB: 8, Raw: true})

	f := b.freeze(vm.UUID, "")
	image, last := b.read(info(f, "vda").Export), f.Info().Checkpoint
	if raw := info(f, "vdb"); raw.FullReason != "" || raw.Export.DirtyContext != "" {
		t.Errorf("raw disk of a first backup: %+v", raw)
	}
	if w := strings.Join(f.Info().Warnings, " "); !strings.Contains(w, "vdb will be read whole by the next backup") {
		t.Errorf("warnings %q do not name the raw disk", w)
	}
	b.ok(f.Release(ctx))
	b.write(vm)

	t.Run("raw disk", func(t *testing.T) {
		b := b.in(t)
		f := b.freeze(vm.UUID, last)
		if n := b.apply(image, info(f, "vda").Export); n == 0 || n > 4<<20 {
			t.Errorf("%d bytes are dirty", n)
		}
		b.same(image, b.content(vm, "vda"), "vda")
		if raw := info(f, "vdb"); !strings.Contains(raw.FullReason, "raw") {
			t.Errorf("reason of the raw disk: %q", raw.FullReason)
		}
		last = f.Info().Checkpoint
		b.ok(f.Release(ctx))
		b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, last))
	})

	t.Run("checkpoint dropped while the export is open", func(t *testing.T) {
		b := b.in(t)
		b.write(vm)
		f := b.freeze(vm.UUID, last)
		b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, f.Info().Checkpoint))
		b.apply(image, info(f, "vda").Export)
		b.ok(f.Release(ctx))
		b.same(image, b.content(vm, "vda"), "vda")
		last = f.Info().Checkpoint
		cps, err := b.d.Checkpoints(ctx, vm.UUID)
		b.ok(err)
		if len(cps) != 1 || cps[0].Name != last {
			t.Errorf("checkpoints %+v, want only %s", cps, last)
		}
	})

	t.Run("stopped", func(t *testing.T) {
		b := b.in(t)
		b.write(vm)
		b.ok(vm.Stop(ctx))
		f := b.freeze(vm.UUID, last)
		b.apply(image, info(f, "vda").Export)
		b.same(image, b.content(vm, "vda"), "vda of the stopped VM")
		b.same(b.read(info(f, "vdb").Export), b.content(vm, "vdb"), "vdb of the stopped VM")
		if got := f.Info().Checkpoint; got != last {
			t.Errorf("checkpoint %q, want %q as before", got, last)
		}
		b.ok(f.Release(ctx))
		b.clean(hypervisors.OwedCheckpoint)
		b.ok(vm.Start(ctx))
		b.write(vm)
		g := b.freeze(vm.UUID, last)
		b.apply(image, info(g, "vda").Export)
		b.same(image, b.content(vm, "vda"), "vda after the start")
		last = g.Info().Checkpoint
		b.ok(g.Release(ctx))
		b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, last))
	})

	t.Run("snapshot in between", func(t *testing.T) {
		b := b.in(t)
		b.write(vm)
		_, err := b.lab.Virsh(ctx, "snapshot-create-as", vm.Name, "s1", "--disk-only", "--no-metadata",
			"--diskspec", "vdb,snapshot=no", "--diskspec", "vda,snapshot=external,file="+b.lab.PoolDir()+"/over.qcow2")
		b.ok(err)
		b.write(vm)
		_, err = b.lab.Virsh(ctx, "pool-refresh", b.lab.Pool())
		b.ok(err)
		f := b.freeze(vm.UUID, last)
		running := append([]byte(nil), image...)
		b.apply(running, info(f, "vda").Export)
		b.same(running, b.content(vm, "vda"), "vda over a snapshot")
		b.ok(f.Release(ctx))
		b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, last)) // an abandoned run
		b.ok(vm.Stop(ctx))
		g := b.freeze(vm.UUID, last)
		if reason := info(g, "vda").FullReason; reason != "" {
			t.Fatalf("vda of the stopped VM with a snapshot is read whole: %s", reason)
		}
		b.apply(image, info(g, "vda").Export)
		b.same(image, b.content(vm, "vda"), "vda of the stopped VM with a snapshot")
		b.ok(g.Release(ctx))
		b.ok(vm.Start(ctx))
		_, err = b.lab.Virsh(ctx, "blockcommit", vm.Name, "vda", "--active", "--pivot", "--wait")
		b.ok(err)
	})

	t.Run("unclean stop", func(t *testing.T) {
		b := b.in(t)
		b.write(vm)
		f := b.freeze(vm.UUID, last)
		last = f.Info().Checkpoint
		b.ok(f.Release(ctx))
		b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, last))
		b.ok(vm.Kill(ctx))
		b.ok(vm.Start(ctx))
		_, err := vm.Status(ctx)
		b.ok(err)
		f = b.freeze(vm.UUID, last)
		if got := info(f, "vda"); !strings.Contains(got.FullReason, "not stopped cleanly") || got.Export.DirtyContext != "" {
			t.Errorf("after an unclean stop: reason %q, context %q", got.FullReason, got.Export.DirtyContext)
		}
		image = b.read(info(f, "vda").Export)
		b.same(image, b.content(vm, "vda"), "vda after an unclean stop")
		broken := last
		last = f.Info().Checkpoint
		b.ok(f.Release(ctx))
		b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, last))
		cps, err := b.d.Checkpoints(ctx, vm.UUID)
		b.ok(err)
		if len(cps) != 1 || cps[0].Name != last || last == broken {
			t.Errorf("checkpoints %+v, want only a new one, %q", cps, last)
		}
		b.write(vm)
		f = b.freeze(vm.UUID, last)
		b.apply(image, info(f, "vda").Export)
		b.same(image, b.content(vm, "vda"), "vda by the new record")
		last = f.Info().Checkpoint
		b.ok(f.Release(ctx))
	})

	t.Run("resized and added", func(t *testing.T) {
		b := b.in(t)
		_, err := b.lab.Virsh(ctx, "blockresize", vm.Name, "vda", "20M")
		b.ok(err)
		b.tool("qemu-img", "create", "-q", "-f", "qcow2", b.lab.PoolDir()+"/more.qcow2", "4M")
		_, err = b.lab.Virsh(ctx, "attach-disk", vm.Name, b.lab.PoolDir()+"/more.qcow2", "vdc", "--targetbus", "virtio",
			"--driver", "qemu", "--subdriver", "qcow2", "--live", "--config")
		b.ok(err)
		f := b.freeze(vm.UUID, last)
		if got := info(f, "vda"); !strings.Contains(got.FullReason, "resized") || got.Export.SizeBytes != 20<<20 {
			t.Errorf("resized disk: reason %q, %d bytes", got.FullReason, got.Export.SizeBytes)
		}
		if got := info(f, "vdc"); !strings.Contains(got.FullReason, "added") {
			t.Errorf("added disk: reason %q", got.FullReason)
		}
		last = f.Info().Checkpoint
		b.ok(f.Release(ctx))
		f = b.freeze(vm.UUID, last)
		for _, id := range []string{"vda", "vdc"} {
			if got := info(f, id); got.Export.DirtyContext == "" {
				t.Errorf("%s is read whole: %s", id, got.FullReason)
			}
		}
		b.ok(f.Release(ctx))
	})

	t.Run("checkpoints of a stopped VM", func(t *testing.T) {
		b := b.in(t)
		b.ok(vm.Stop(ctx))
		b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, ""))
		disks, err := vm.Disks(ctx)
		b.ok(err)
		if out := string(b.tool("qemu-img", "info", disks["vda"])); strings.Contains(out, "bitmaps:") {
			t.Errorf("bitmaps are left in the image:\n%s", out)
		}
		b.clean()
	})
}

// TestOldImage backs up a disk of the qcow2 version that cannot keep bitmaps, beside one that can.
func TestOldImage(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	vm, err := b.lab.Define(ctx, kvmlab.Spec{Name: "old", Rate: -1, AreaBytes: 2 << 20, Disks: []kvmlab.Disk{{MiB: 16}, {MiB: 8, Kind: kvmlab.Unused}}})
	b.ok(err)
	disks, err := vm.Disks(ctx)
	b.ok(err)
	b.tool("qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", disks["vdb"])
	b.ok(vm.Start(ctx))
	f := b.freeze(vm.UUID, "")
	if w := strings.Join(f.Info().Warnings, " "); !strings.Contains(w, "0.10") {
		t.Errorf("warnings %q do not name the old image", w)
	}
	last := f.Info().Checkpoint
	b.ok(f.Release(ctx))
	f = b.freeze(vm.UUID, last)
	if got := info(f, "vda"); got.Export.DirtyContext == "" {
		t.Errorf("vda is read whole: %s", got.FullReason)
	}
	if got := info(f, "vdb"); got.FullReason == "" {
		t.Error("the old image is incremental")
	}
	b.ok(f.Release(ctx))
	b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, ""))
	b.clean()
}

// TestThingsDie lets the daemon and QEMU end while a disk is frozen.
func TestThingsDie(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	vm := b.run("die", kvmlab.Disk{MiB: 16})
	t.Run("libvirtd restarted", func(t *testing.T) {
		b := b.in(t)
		f := b.freeze(vm.UUID, "")
		want := b.read(info(f, "vda").Export)
		b.ok(b.lab.Daemon().Signal(ctx, syscall.SIGTERM))
		_, err := b.d.Checkpoints(ctx, vm.UUID)
		if err == nil || fault.KindOf(err) != fault.Transient {
			t.Errorf("call without libvirtd: %v, want a transient error", err)
		}
		if meaning, advice := fault.Explanation(err); meaning == "" || advice == "" {
			t.Errorf("%v is not explained", err)
		}
		b.same(b.read(info(f, "vda").Export), want, "export without libvirtd")
		b.ok(b.lab.Daemon().Start(ctx))
		b.ok(f.Release(ctx))
		b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, ""))
		b.clean()
	})
	t.Run("QEMU killed", func(t *testing.T) {
		b := b.in(t)
		f := b.freeze(vm.UUID, "")
		b.ok(vm.Kill(ctx))
		b.ok(f.Release(ctx))
		b.clean(hypervisors.OwedCheckpoint)
		b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, ""))
		b.clean()
		b.ok(vm.Start(ctx))
		_, err := vm.Status(ctx)
		b.ok(err)
	})
	t.Run("libvirtd hangs", func(t *testing.T) {
		b := b.in(t)
		b.book.owed = nil
		_, err := b.d.VM(ctx, vm.UUID) // connected
		b.ok(err)
		frozen, cancel := context.WithCancel(ctx)
		req := b.request(vm.UUID, "")
		req.Owe = func(ctx context.Context, o hypervisors.Owed) error {
			if o.Kind == "backup-job" { // the last one before the call that makes it
				b.ok(b.lab.Daemon().Signal(context.WithoutCancel(ctx), syscall.SIGSTOP))
				time.AfterFunc(200*time.Millisecond, cancel)
			}
			return b.owe(ctx, o)
		}
		began := time.Now()
		_, err = b.d.Freeze(frozen, req)
		if fault.KindOf(err) != fault.Canceled {
			t.Errorf("canceled freeze: %v", err)
		}
		// The promise of the product is 5 s; a lost one would be a minute.
		if took := time.Since(began); took > 45*time.Second {
			t.Errorf("a canceled freeze returned after %s", took)
		}
		b.ok(b.lab.Daemon().Signal(ctx, syscall.SIGCONT))
		for i := len(b.book.owed) - 1; i >= 0; i-- {
			b.ok(b.d.CleanUp(ctx, b.book.owed[i]))
		}
		b.clean()
		b.ok(b.freeze(vm.UUID, "").Release(ctx))
		b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, ""))
	})
}

// TestBusyVM refuses a VM on which another tool works.
func TestBusyVM(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	vm := b.run("busy", kvmlab.Disk{MiB: 16})
	_, err := b.lab.Virsh(ctx, "blockcopy", vm.Name, "vda", b.lab.PoolDir()+"/copy.qcow2", "--transient-job", "--format", "qcow2")
	b.ok(err)
	_, err = b.d.Freeze(ctx, b.request(vm.UUID, ""))
	if fault.KindOf(err) != fault.Conflict {
		t.Errorf("freeze beside a block job: %v", err)
	}
	if _, advice := fault.Explanation(err); advice == "" {
		t.Errorf("%v has no advice", err)
	}
	_, err = b.lab.Virsh(ctx, "blockjob", vm.Name, "vda", "--abort")
	b.ok(err)
	_, err = b.lab.Virsh(ctx, "suspend", vm.Name)
	b.ok(err)
	f := b.freeze(vm.UUID, "")
	if got := f.Info(); got.VM.Power != hypervisors.PowerPaused || got.ConsistencyNote == "" {
		t.Errorf("paused VM: power %q, note %q", got.VM.Power, got.ConsistencyNote)
	}
	b.same(b.read(info(f, "vda").Export), b.read(info(f, "vda").Export), "two reads")
	b.ok(f.Release(ctx))
	b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, ""))
	b.clean()
}
