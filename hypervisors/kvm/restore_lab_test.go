package kvm_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// restorable is a stopped VM and what a restore needs of it.
type restorable struct {
	vm    *kvmlab.VM
	info  hypervisors.FrozenInfo
	image []byte // of vda
}

func (b *bench) saved(vm *kvmlab.VM) restorable {
	b.Helper()
	f := b.freeze(vm.UUID, "")
	s := restorable{vm: vm, info: f.Info(), image: b.read(info(f, "vda").Export)}
	b.ok(f.Release(b.Context()))
	return s
}

func (b *bench) restoreRequest(s restorable, name string) hypervisors.RestoreRequest {
	req := hypervisors.RestoreRequest{
		Tag: b.tag(), Mode: hypervisors.RestoreNew, Name: name, VM: s.info.VM, Documents: s.info.Documents, Owe: b.owe,
		Disks: []hypervisors.RestoreDisk{{ID: "vda"}},
	}
	if name == "" {
		req.Mode = hypervisors.RestoreInPlace
	}
	return req
}

// restore carries a request out up to Finish.
func (b *bench) restore(req hypervisors.RestoreRequest, image []byte) hypervisors.VM {
	b.Helper()
	r, err := b.d.BeginRestore(b.Context(), req)
	b.ok(err)
	b.Cleanup(func() { _ = r.Abandon(context.WithoutCancel(b.Context())) })
	b.fill(r, image)
	vm, err := r.Finish(b.Context())
	b.ok(err)
	return vm
}

func (b *bench) fill(r hypervisors.Restoring, image []byte) {
	b.Helper()
	file := filepath.Join(b.TempDir(), "image")
	b.ok(os.WriteFile(file, image, 0o600))
	b.tool("nbdcopy", "--flush", "--destination-is-zero", file, uri(r.Disks()[0].Export))
}

// rollBack cleans up what was owed since the bench began, as a manager does after a crash.
func (b *bench) rollBack() {
	b.Helper()
	for range 2 {
		for _, o := range slices.Backward(b.book.owed) {
			b.ok(b.d.CleanUp(b.Context(), o))
		}
	}
	b.book.owed = nil
}

func TestRestoreUEFI(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	vm, err := b.lab.Define(ctx, kvmlab.Spec{Name: "efi", UEFI: true, Rate: -1, AreaBytes: 2 << 20, NIC: true, Disks: []kvmlab.Disk{{MiB: 16}, {MiB: 1, Kind: kvmlab.CDROM}}})
	b.ok(err)
	// The directories of a libvirtd of our own are elsewhere; this file is where both see it.
	nvram := filepath.Join(b.lab.Dir(), "efi_VARS.fd")
	doc, err := vm.XML(ctx)
	b.ok(err)
	file := filepath.Join(b.lab.Dir(), "efi-moved.xml")
	b.ok(os.WriteFile(file, []byte(strings.Replace(doc, "</firmware>", "</firmware><nvram>"+nvram+"</nvram>", 1)), 0o600))
	_, err = b.lab.Virsh(ctx, "define", file)
	b.ok(err)
	b.writeOnce(vm)
	data, err := os.ReadFile(nvram)
	b.ok(err)

	s := b.saved(vm)
	if s.info.VM.Firmware != hypervisors.UEFI || !slices.ContainsFunc(s.info.Documents, func(d hypervisors.Document) bool {
		return d.Name == "nvram.fd" && bytes.Equal(d.Data, data)
	}) {
		t.Fatalf("firmware %q with %d documents: the UEFI variables are missing", s.info.VM.Firmware, len(s.info.Documents))
	}
	// Both change after the backup; by hand, because a guest takes long to boot by UEFI.
	b.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 1M", s.info.Disks[0].Disk.Path)
	b.ok(os.WriteFile(nvram, bytes.Repeat([]byte{7}, len(data)), 0o600))
	req := b.restoreRequest(s, "")
	restored := b.restore(req, s.image)
	if restored.ID != vm.UUID || !strings.Contains(restored.NVRAM, "cairn-"+req.Tag) {
		t.Errorf("restored in place: %s with variables in %s", restored.ID, restored.NVRAM)
	}
	got, err := os.ReadFile(restored.NVRAM)
	b.ok(err)
	b.same(got, data, "UEFI variables")
	b.same(b.content(vm, "vda"), s.image, "vda")
	if _, err := os.Stat(s.info.Disks[0].Disk.Path); err == nil {
		t.Errorf("the replaced disk %s is still there", s.info.Disks[0].Disk.Path)
	}
	b.ok(vm.Start(ctx))
	st, err := vm.Status(ctx)
	b.ok(err)
	if len(st.Boot) == 0 {
		t.Error("the guest checked nothing at boot")
	}
	b.rollBack() // after a crash: the restore is complete, and stays so
	_, err = vm.Check(ctx)
	b.ok(err)
}

// writeOnce lets a stopped VM's guest write, and stops it.
func (b *bench) writeOnce(vm *kvmlab.VM) {
	b.Helper()
	b.ok(vm.Start(b.Context()))
	b.write(vm)
	b.ok(vm.Stop(b.Context()))
}

func TestRestoreRolledBack(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	vm := b.run("roll", kvmlab.Disk{MiB: 16})
	b.write(vm)
	s := b.saved(vm)
	b.book.owed = nil
	b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, ""))

	t.Run("after the VM was defined", func(t *testing.T) {
		b := b.in(t)
		got := b.restore(b.restoreRequest(s, "rolled-back"), s.image)
		b.rollBack()
		if _, err := b.d.VM(ctx, got.ID); fault.KindOf(err) != fault.NotFound {
			t.Errorf("the VM of an unfinished restore: %v, want that it is gone", err)
		}
		b.clean()
	})
	t.Run("a VM that was adopted", func(t *testing.T) {
		b := b.in(t)
		req := b.restoreRequest(s, "adopted")
		req.Disks[0].Format = hypervisors.Raw
		got := b.restore(req, s.image)
		b.ok(b.d.Start(ctx, got.ID))
		b.rollBack()
		now, err := b.d.VM(ctx, got.ID)
		b.ok(err)
		if now.Power != hypervisors.PowerOn || now.Disks[0].Format != hypervisors.Raw {
			t.Errorf("a restored VM that runs: %+v", now)
		}
		found, err := b.lab.Find(ctx, got.ID)
		b.ok(err)
		_, err = found.Status(ctx)
		b.ok(err)
		b.clean() // its volume is no leftover
		b.ok(b.d.Stop(ctx, got.ID, true))
		b.ok(found.Remove(ctx))
	})
	t.Run("in place, before it was switched", func(t *testing.T) {
		b := b.in(t)
		b.ok(vm.Stop(ctx))
		r, err := b.d.BeginRestore(ctx, b.restoreRequest(s, ""))
		b.ok(err)
		b.fill(r, make([]byte, len(s.image)))
		b.rollBack()
		b.clean()
		b.same(b.content(vm, "vda"), s.image, "the original")
		if _, err := r.Finish(ctx); err == nil {
			t.Error("a restore was finished after its volumes were cleaned up")
		}
		b.ok(r.Abandon(ctx))
		b.same(b.content(vm, "vda"), s.image, "the original")
		b.clean()
	})
}

func TestRestoreRefusals(t *testing.T) {
	// A libvirtd of our own would not see the file system that this test mounts. Others use the machine's one, too, so
	// that this test looks at its own things only.
	b := benchIn(t, kvmlab.New(t, kvmlab.Options{}))
	ctx := t.Context()
	vm, err := b.lab.Define(ctx, kvmlab.Spec{Name: "no", Rate: -1, NIC: true, Disks: []kvmlab.Disk{{MiB: 32}}})
	b.ok(err)
	s := b.saved(vm)
	small := filepath.Join(b.lab.Dir(), "small")
	b.ok(os.Mkdir(small, 0o755))
	b.tool("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small)
	t.Cleanup(func() { b.in(t).toolAtEnd("umount", small) })
	for _, p := range [][]string{
		{"pool-define-as", "small", "dir", "--target", small},
		{"pool-define-as", "off", "dir", "--target", filepath.Join(b.lab.Dir(), "off")},
	} {
		p[1] += b.lab.Pool()
		_, err := b.lab.Virsh(ctx, p...)
		b.ok(err)
		t.Cleanup(func() {
			b := b.in(t)
			_, _ = b.try("virsh", "-c", b.lab.URI(), "pool-destroy", p[1]) // not all of them are started
			b.toolAtEnd("virsh", "-c", b.lab.URI(), "pool-undefine", p[1])
		})
	}
	_, err = b.lab.Virsh(ctx, "pool-start", "small"+b.lab.Pool())
	b.ok(err)
	tests := []struct {
		name   string
		change func(*hypervisors.RestoreRequest)
		want   fault.Kind
	}{
		{"too little room", func(r *hypervisors.RestoreRequest) {
			r.Disks[0].Datastore = "small" + b.lab.Pool()
			r.VM.Disks[0].UsedBytes = 0
		}, fault.Conflict},
		{"pool is not active", func(r *hypervisors.RestoreRequest) { r.Disks[0].Datastore = "off" + b.lab.Pool() }, fault.Conflict},
		{"no pool known", func(r *hypervisors.RestoreRequest) { r.VM.Disks[0].Datastore = "" }, fault.Invalid},
		{"smaller than the source", func(r *hypervisors.RestoreRequest) { r.Disks[0].SizeBytes = 1 << 20 }, fault.Invalid},
		{"unknown disk", func(r *hypervisors.RestoreRequest) { r.Disks[0].ID = "vdz" }, fault.Invalid},
		{"same disk twice", func(r *hypervisors.RestoreRequest) { r.Disks = append(r.Disks, r.Disks[0]) }, fault.Invalid},
		{"name with a slash", func(r *hypervisors.RestoreRequest) { r.Name = "a/b" }, fault.Invalid},
		{"name of a helper", func(r *hypervisors.RestoreRequest) { r.Name = "cairn-x" }, fault.Invalid},
		{"network that is not there", func(r *hypervisors.RestoreRequest) { r.Networks = map[string]string{"user": "network:nope"} }, fault.NotFound},
		{"network that is no network", func(r *hypervisors.RestoreRequest) { r.Networks = map[string]string{"user": "nope"} }, fault.Invalid},
		{"source network that is not there", func(r *hypervisors.RestoreRequest) { r.Networks = map[string]string{"bridge:x": "user"} }, fault.Invalid},
		{"bad tag", func(r *hypervisors.RestoreRequest) { r.Tag = "../x" }, fault.Invalid},
		{"no configuration", func(r *hypervisors.RestoreRequest) { r.Documents = nil }, fault.Invalid},
		{"machine that is not there", func(r *hypervisors.RestoreRequest) {
			r.Documents = []hypervisors.Document{{Name: "domain.xml", Data: bytes.Replace(r.Documents[0].Data, []byte("pc-q35"), []byte("pc-q99"), 1)}}
		}, fault.Conflict},
	}
	for _, tt := range tests {
		req := b.restoreRequest(s, "never")
		req.VM.Disks = slices.Clone(req.VM.Disks)
		tt.change(&req)
		err := b.d.CheckRestore(ctx, req)
		if err == nil || fault.KindOf(err) != tt.want {
			t.Errorf("%s: %v, want an error of kind %v", tt.name, err, tt.want)
		}
	}
	b.book.owed = nil
	req := b.restoreRequest(s, "full")
	req.Disks[0].Datastore = "small" + b.lab.Pool()
	req.VM.Disks = slices.Clone(req.VM.Disks)
	req.VM.Disks[0].UsedBytes = 1 << 20 // a lie: the pool fills up while the disk is written
	r, err := b.d.BeginRestore(ctx, req)
	b.ok(err)
	file := filepath.Join(t.TempDir(), "image")
	b.ok(os.WriteFile(file, bytes.Repeat([]byte{1}, 32<<20), 0o600))
	if out, err := b.try("nbdcopy", "--flush", file, uri(r.Disks()[0].Export)); err == nil {
		t.Errorf("32 MiB were written to 8 MiB: %s", out)
	}
	b.ok(r.Abandon(ctx))
	if left, _ := filepath.Glob(small + "/*"); len(left) > 0 {
		t.Errorf("left in the full pool: %v", left)
	}
}
