package kvmlab_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	nbdtransport "github.com/cairn-backup/cairn/datamover/transport/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/hypervisortest"
	"github.com/cairn-backup/cairn/hypervisors/kvm"
	"github.com/cairn-backup/cairn/internal/nocloud"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// openDriver returns a driver whose sockets and UEFI variables lie in the lab, where it meets no other test's.
func openDriver(t *testing.T, l *kvmlab.Lab) *kvm.Driver {
	t.Helper()
	sockets := filepath.Join(l.Dir(), "sockets")
	if err := os.Mkdir(sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chown", "libvirt-qemu", sockets).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v: %s", err, out)
	}
	d, err := kvm.Open(t.Context(), kvm.Config{URI: l.URI(), Options: map[string]string{kvm.OptSocketDir: sockets, kvm.OptNVRAMDir: l.Dir()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close driver: %v", err)
		}
	})
	return d
}

// TestConformance runs the driver suite against real libvirt and QEMU. Its tests share two VMs, which they leave as
// they were. The suite cleans up whatever it finds on its libvirtd, so that this is one of its own.
func TestConformance(t *testing.T) {
	l := kvmlab.New(t, kvmlab.Options{Private: true})
	ctx := t.Context()
	running, err := l.Run(ctx, kvmlab.Spec{Name: "running", Rate: -1, NIC: true, AreaBytes: 2 << 20, Disks: []kvmlab.Disk{
		{MiB: 24, Fill: 2 << 20}, {MiB: 16}, {MiB: 1, Kind: kvmlab.CDROM},
	}})
	if err != nil {
		t.Fatal(err)
	}
	stopped, err := l.Define(ctx, kvmlab.Spec{Name: "a-stopped-one", Rate: -1, AreaBytes: 2 << 20, Disks: []kvmlab.Disk{{MiB: 16, Fill: 2 << 20}}})
	if err != nil {
		t.Fatal(err)
	}
	mover, err := l.Run(ctx, kvmlab.Spec{Name: "mover", Mover: true})
	if err != nil {
		t.Fatal(err)
	}
	d := openDriver(t, l)
	image := moverImage(t, l)
	hypervisortest.Run(t, func(*testing.T) hypervisortest.Fixture {
		f := fixture(l, d, running, stopped, mover)
		f.MoverImage = image
		return f
	})
}

func fixture(l *kvmlab.Lab, d hypervisors.Driver, running, stopped, mover *kvmlab.VM) hypervisortest.Fixture {
	find := func(t testing.TB, id string) *kvmlab.VM {
		vm, err := l.Find(context.WithoutCancel(t.Context()), id)
		if err != nil {
			t.Fatal(err)
		}
		return vm
	}
	return hypervisortest.Fixture{
		Driver: d, Running: running.UUID, Stopped: stopped.UUID, Mover: mover.UUID,
		NoSuchVM: "6f8e5c60-0000-4000-8000-0123456789ab",
		Write: func(t testing.TB) {
			if _, err := running.Write(t.Context(), 3); err != nil {
				t.Error(err)
			}
		},
		Background: func(t testing.TB) func() {
			rate := func(r float64) {
				if err := running.SetRate(context.WithoutCancel(t.Context()), r); err != nil {
					t.Error(err)
				}
			}
			rate(10)
			return func() { rate(0) }
		},
		Content: func(t testing.TB, vm, disk string) []byte {
			data, err := find(t, vm).Content(t.Context(), disk)
			if err != nil {
				t.Error(err)
			}
			return data
		},
		Remove: func(t testing.TB, vm string) {
			if err := find(t, vm).Remove(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		},
		OpenSource: func(ctx context.Context, e hypervisors.Export) (hypervisors.FrozenDisk, error) {
			if e.Transport == hypervisors.TransportHotadd {
				return mover.OpenSource(ctx, e)
			}
			return nbdtransport.OpenSource(ctx, e)
		},
		OpenTarget: func(ctx context.Context, e hypervisors.Export) (hypervisors.TargetDisk, error) {
			if e.Transport == hypervisors.TransportHotadd {
				return mover.OpenTarget(ctx, e)
			}
			return nbdtransport.OpenTarget(ctx, e)
		},
		Foreign: func(t testing.TB) (string, func() bool) {
			const name = "another-tool"
			virsh := func(args ...string) string {
				out, err := l.Virsh(context.WithoutCancel(t.Context()), args...)
				if err != nil {
					t.Error(err)
				}
				return out
			}
			virsh("checkpoint-create-as", running.Name, name)
			t.Cleanup(func() { virsh("checkpoint-delete", running.Name, name) })
			return name, func() bool { return strings.Contains(virsh("checkpoint-list", running.Name, "--name"), name) }
		},
	}
}

// TestQuiesceOnARealGuest freezes a file system through the guest agent and looks whether it is clean in the frozen
// disk, and that the guest writes on afterwards.
func TestQuiesceOnARealGuest(t *testing.T) {
	l := kvmlab.New(t, kvmlab.Options{})
	ctx := t.Context()
	vm, err := l.Run(ctx, kvmlab.Spec{Name: "quiesce", Agent: true, Rate: 5, Disks: []kvmlab.Disk{{MiB: 48, Kind: kvmlab.FileSystem}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.WaitAgent(ctx); err != nil {
		t.Fatal(err)
	}
	d := openDriver(t, l)
	for _, tt := range []struct {
		mode  hypervisors.Quiesce
		want  hypervisors.Consistency
		dirty bool
	}{
		{hypervisors.QuiesceNever, hypervisors.CrashConsistent, true},
		{hypervisors.QuiesceTry, hypervisors.FilesystemConsistent, false},
		{hypervisors.QuiesceRequire, hypervisors.FilesystemConsistent, false},
	} {
		f, err := d.Freeze(ctx, hypervisors.FreezeRequest{
			VM: vm.UUID, Tag: "quiesce-" + string(tt.mode), Quiesce: tt.mode, Owe: func(context.Context, hypervisors.Owed) error { return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		info := f.Info()
		if info.Consistency != tt.want || info.ConsistencyNote != "" {
			t.Errorf("quiesce %q: %q (%s), want %q", tt.mode, info.Consistency, info.ConsistencyNote, tt.want)
		}
		src, err := nbdtransport.OpenSource(ctx, info.Disks[0].Export)
		if err != nil {
			t.Fatal(err)
		}
		if dirty, err := kvmlab.NeedsRecovery(src); err != nil || dirty != tt.dirty {
			t.Errorf("quiesce %q: the file system needs recovery: %v (%v), want %v", tt.mode, dirty, err, tt.dirty)
		}
		src.Close()
		if err := f.Release(ctx); err != nil {
			t.Error(err)
		}
		if _, err := vm.Write(ctx, 1); err != nil {
			t.Errorf("quiesce %q: the guest does not write any more: %v", tt.mode, err)
		}
	}
}

// TestRestoredVMBoots restores a UEFI VM that was frozen while it wrote, and starts it beside the original: its guest
// must find its disks whole. It runs on a libvirtd of its own, which is restarted in between.
func TestRestoredVMBoots(t *testing.T) {
	l := kvmlab.New(t, kvmlab.Options{Private: true})
	ctx := t.Context()
	vm, err := l.Run(ctx, kvmlab.Spec{Name: "source", UEFI: true, NIC: true, Rate: 10, AreaBytes: 2 << 20, Disks: []kvmlab.Disk{{MiB: 24}, {MiB: 16, Raw: true}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Write(ctx, 5); err != nil {
		t.Fatal(err)
	}
	d := openDriver(t, l)
	never := func(context.Context, hypervisors.Owed) error { return nil }
	f, err := d.Freeze(ctx, hypervisors.FreezeRequest{VM: vm.UUID, Tag: "frozen-" + l.Pool(), Quiesce: hypervisors.QuiesceNever, Owe: never})
	if err != nil {
		t.Fatal(err)
	}
	info := f.Info()
	req := hypervisors.RestoreRequest{Tag: "restored-" + l.Pool(), Mode: hypervisors.RestoreNew, Name: vm.Name + "-restored", VM: info.VM, Documents: info.Documents, Owe: never}
	for _, disk := range info.Disks {
		req.Disks = append(req.Disks, hypervisors.RestoreDisk{ID: disk.Disk.ID, SizeBytes: disk.Disk.SizeBytes})
	}
	r, err := d.BeginRestore(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	for i, target := range r.Disks() {
		copyDisk(t, info.Disks[i].Export, target.Export)
	}
	if err := f.Release(ctx); err != nil {
		t.Error(err)
	}
	restored, err := r.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if restored.Firmware != hypervisors.UEFI || restored.NVRAM == "" || restored.NVRAM == info.VM.NVRAM {
		t.Errorf("restored firmware %q with NVRAM %q, the source's is %q", restored.Firmware, restored.NVRAM, info.VM.NVRAM)
	}
	if err := l.Daemon().Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(ctx, restored.ID); err != nil {
		t.Fatal(err)
	}
	copied, err := l.Find(ctx, restored.ID)
	if err != nil {
		t.Fatal(err)
	}
	st, err := copied.Status(ctx)
	if err != nil || len(st.Boot) != 1 || st.Boot[0].Disks != 2 || st.Boot[0].Round < 5 {
		t.Errorf("guest of the restored VM: %+v, %v; want two disks verified at round 5 or later", st, err)
	}
	if _, err := vm.Write(ctx, 1); err != nil {
		t.Errorf("the original does not write any more: %v", err)
	}
}

func copyDisk(t *testing.T, from, to hypervisors.Export) {
	t.Helper()
	src, err := nbdtransport.OpenSource(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := nbdtransport.OpenTarget(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	p := make([]byte, src.Size())
	if _, err := src.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := dst.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := dst.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestLeavesNothing looks for what a closed lab has left.
func TestLeavesNothing(t *testing.T) {
	l := kvmlab.New(t, kvmlab.Options{})
	vm, err := l.Define(t.Context(), kvmlab.Spec{Name: "gone", UEFI: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Find(t.Context(), vm.Name); err == nil {
		t.Errorf("%s is still there", vm.Name)
	}
	if out, err := l.Virsh(t.Context(), "pool-list", "--all", "--name"); err != nil || strings.Contains(out, l.Pool()) {
		t.Errorf("pool %s is still there (%v)", l.Pool(), err)
	}
	if _, err := os.Stat(l.Dir()); err == nil {
		t.Errorf("%s is still there", l.Dir())
	}
	if left, _ := filepath.Glob("/var/lib/libvirt/qemu/nvram/" + vm.Name + "*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// nbdMap asks an export for its extents, to send them along where a disk cannot tell them.
func nbdMap(ctx context.Context, e hypervisors.Export) (hypervisors.ExtentMap, error) {
	d, err := nbdtransport.OpenSource(ctx, e)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return hypervisors.NewExtentMap(d.Size(), d.Extents(ctx))
}

// moverImage is a deployment whose image a VM can be made of, though nothing boots from it; TestDeployedMoverBoots has
// the real one.
func moverImage(t *testing.T, l *kvmlab.Lab) hypervisors.MoverRequest {
	t.Helper()
	file := filepath.Join(l.Dir(), "image.qcow2")
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", file, "64M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return hypervisors.MoverRequest{
		Image: bytes.NewReader(image), ImageBytes: int64(len(image)), Seed: nocloud.Seed("i", "n", []byte("cairn: {}\n")),
		Datastore: l.Pool(), Network: "user", MemoryBytes: 128 << 20, CPUs: 1,
	}
}
