package kvmlab_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/kvm"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/kvmlab"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// hotBench is a source VM, a mover VM and a driver.
type hotBench struct {
	*testing.T
	lab           *kvmlab.Lab
	d             *kvm.Driver
	source, mover *kvmlab.VM
	mu            *sync.Mutex
	tags          *int
	owed          *[]hypervisors.Owed
}

func newHotBench(t *testing.T, mover kvmlab.Spec, disks ...kvmlab.Disk) *hotBench {
	l := kvmlab.New(t, kvmlab.Options{Private: true})
	b := &hotBench{T: t, lab: l, mu: &sync.Mutex{}, tags: new(int), owed: &[]hypervisors.Owed{}}
	var err error
	mover.Name, mover.Mover = "mover", true
	b.mover, err = l.Run(t.Context(), mover)
	b.ok(err)
	b.source, err = l.Run(t.Context(), kvmlab.Spec{Name: "source", Rate: -1, AreaBytes: 2 << 20, Disks: disks})
	b.ok(err)
	b.d = openDriver(t, l)
	return b
}

func (b *hotBench) ok(err error) {
	b.Helper()
	if err != nil {
		meaning, advice := fault.Explanation(err)
		b.Fatalf("%v (%v) %s %s", err, fault.KindOf(err), meaning, advice)
	}
}

func (b *hotBench) owe(_ context.Context, o hypervisors.Owed) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	*b.owed = append(*b.owed, o)
	return nil
}

func (b *hotBench) tag() string {
	*b.tags++
	return fmt.Sprintf("hot%d", *b.tags)
}

// freeze returns a frozen VM and its tag.
func (b *hotBench) freeze(since string) (hypervisors.Frozen, string) {
	b.Helper()
	req := hypervisors.FreezeRequest{VM: b.source.UUID, Tag: b.tag(), Quiesce: hypervisors.QuiesceNever, Track: true, Since: since, Owe: b.owe}
	f, err := b.d.Freeze(b.Context(), req)
	b.ok(err)
	b.Cleanup(func() { b.end("release", f.Release) })
	return f, req.Tag
}

func (b *hotBench) end(what string, f func(context.Context) error) {
	b.Helper()
	if err := f(context.WithoutCancel(b.Context())); err != nil {
		b.Errorf("%s: %v", what, err)
	}
}

func (b *hotBench) attach(tag string, x hypervisors.Export) hypervisors.Attached {
	b.Helper()
	a, err := b.d.Attach(b.Context(), hypervisors.AttachRequest{Mover: b.mover.UUID, Tag: tag, Export: x, Serial: hypervisors.NewSerial(), Owe: b.owe})
	b.ok(err)
	b.Cleanup(func() { b.end("detach", a.Detach) })
	return a
}

// nbdcopy reads an export by a tool that is not ours.
func (b *hotBench) nbdcopy(x hypervisors.Export) []byte {
	b.Helper()
	to := filepath.Join(b.TempDir(), "copy")
	if out, err := exec.CommandContext(b.Context(), "nbdcopy", "nbd+unix:///"+x.Name+"?socket="+x.Address, to).CombinedOutput(); err != nil {
		b.Fatalf("nbdcopy: %v: %s", err, out)
	}
	p, err := os.ReadFile(to)
	b.ok(err)
	return p
}

// mapOf is what the manager does for a disk that goes by hotadd.
func (b *hotBench) mapOf(x hypervisors.Export) hypervisors.ExtentMap {
	b.Helper()
	m, err := nbdMap(b.Context(), x)
	b.ok(err)
	return m
}

// repository makes one in a directory, and a mover that works through the guest of the mover VM.
func (b *hotBench) repository() (*store.Repository, *agent.Local, *agent.Access) {
	b.Helper()
	dir := b.TempDir()
	key, err := store.NewKeyFile(filepath.Join(dir, "key"))
	b.ok(err)
	where, err := file.Create(filepath.Join(dir, "repository"))
	b.ok(err)
	b.ok(store.Create(b.Context(), where, key, store.CreateOptions{Name: "hotadd"}))
	r, err := store.Open(b.Context(), where, key, store.Options{})
	b.ok(err)
	b.Cleanup(func() {
		if err := r.Close(); err != nil {
			b.Error(err)
		}
	})
	access := &agent.Access{}
	m := agent.NewLocal(func(context.Context, string) (agent.Access, error) { return *access, nil })
	m.Transports = map[hypervisors.Transport]agent.Opener{hypervisors.TransportHotadd: b.mover}
	return r, m, access
}

// TestHotadd backs a running VM up through a mover VM's guest, in full and by its changes, and restores it so.
func TestHotadd(t *testing.T) {
	b := newHotBench(t, kvmlab.Spec{}, kvmlab.Disk{MiB: 24, Fill: 4 << 20})
	ctx := t.Context()
	r, m, access := b.repository()
	backup := func(since string, parent *store.ImageRef) (agent.BackupResult, hypervisors.FrozenInfo, []byte) {
		f, tag := b.freeze(since)
		x := f.Info().Disks[0].Export
		want := b.nbdcopy(x)
		a := b.attach(tag, x)
		e := a.Export()
		e.Extents = b.mapOf(x)
		s, err := r.Begin(ctx, store.SessionOptions{Series: "hotadd/source", Writer: "test"})
		b.ok(err)
		*access = agent.Access{Session: agent.SessionOf(s)}
		res, err := m.Backup(ctx, agent.BackupTask{ID: tag, Disk: "vda", Export: e, Parent: parent}, nil)
		b.ok(err)
		_, err = s.Publish(ctx, store.Manifest{Series: "hotadd/source", Time: time.Now(), Images: []store.NamedImage{{Name: "vda", Ref: res.Image}}})
		b.ok(err)
		b.end("detach", a.Detach)
		b.end("release", f.Release)
		image, err := r.OpenImage(ctx, res.Image)
		b.ok(err)
		got := make([]byte, image.Size())
		_, err = image.ReadAt(got, 0)
		b.ok(err)
		b.ok(image.Close())
		if !bytes.Equal(got, want) {
			t.Error("what the mover read is not what nbdcopy read")
		}
		return res, f.Info(), want
	}
	full, info, _ := backup("", nil)
	if full.BytesRead == 0 || full.BytesRead >= 24<<20 {
		t.Errorf("the full backup read %d bytes; it should leave out what is known to be zeros", full.BytesRead)
	}
	_, err := b.source.Write(ctx, 2)
	b.ok(err)
	inc, info, want := backup(info.Checkpoint, &full.Image)
	if reason := info.Disks[0].FullReason; reason != "" || inc.BytesRead == 0 || inc.BytesRead > full.BytesRead/2 {
		t.Errorf("the incremental backup read %d bytes, the full one %d (%s)", inc.BytesRead, full.BytesRead, reason)
	}
	t.Logf("read in full %d, by changes %d of %d bytes", full.BytesRead, inc.BytesRead, inc.BytesTotal)

	req := hypervisors.RestoreRequest{
		Tag: b.tag(), Mode: hypervisors.RestoreNew, Name: b.source.Name + "-restored", VM: info.VM, Documents: info.Documents, Owe: b.owe,
		Disks: []hypervisors.RestoreDisk{{ID: "vda"}},
	}
	restoring, err := b.d.BeginRestore(ctx, req)
	b.ok(err)
	a := b.attach(req.Tag, restoring.Disks()[0].Export)
	*access = agent.Access{Repository: agent.RepositoryOf(r)}
	res, err := m.Restore(ctx, agent.RestoreTask{ID: req.Tag, Disk: "vda", Image: inc.Image, Export: a.Export()}, nil)
	b.ok(err)
	b.end("detach", a.Detach)
	vm, err := restoring.Finish(ctx)
	b.ok(err)
	if res.BytesRead == 0 {
		t.Error("nothing was restored")
	}
	restored, err := b.lab.Find(ctx, vm.ID)
	b.ok(err)
	got, err := restored.Content(ctx, "vda")
	b.ok(err)
	if !bytes.Equal(got, want) {
		t.Error("the restored disk differs")
	}
	b.end("remove checkpoints", func(ctx context.Context) error { return b.d.KeepCheckpoint(ctx, b.source.UUID, "") })
	left, err := b.d.Leftovers(ctx)
	b.ok(err)
	if len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}

// TestHotaddRefusedInTheGuest lets a mover see what it must not touch, and lose what it works on.
func TestHotaddRefusedInTheGuest(t *testing.T) {
	b := newHotBench(t, kvmlab.Spec{}, kvmlab.Disk{MiB: 16, Fill: 8 << 20})
	ctx := t.Context()
	refused := func(err error, kind fault.Kind, words string) {
		t.Helper()
		meaning, advice := fault.Explanation(err)
		if err == nil || fault.KindOf(err) != kind || !strings.Contains(err.Error()+" "+meaning, words) || meaning == "" || advice == "" {
			t.Errorf("%v (%v) %q %q, want %v with %q", err, fault.KindOf(err), meaning, advice, kind, words)
		}
	}
	f, tag := b.freeze("")
	x := f.Info().Disks[0].Export
	a := b.attach(tag, x)

	small := a.Export()
	small.SizeBytes /= 2
	_, err := b.mover.OpenSource(ctx, small)
	refused(err, fault.Conflict, "were announced")
	write := a.Export()
	write.Writable = true
	_, err = b.mover.OpenTarget(ctx, write)
	refused(err, fault.Denied, "read-only")
	other := a.Export()
	other.Serial = hypervisors.NewSerial()
	short, cancel := context.WithTimeout(ctx, time.Second)
	_, err = b.mover.OpenSource(short, other)
	cancel()
	refused(err, fault.Transient, "does not see")

	// libvirt itself refuses the serial twice only for what we attach.
	twin := filepath.Join(b.lab.PoolDir(), "twin.raw")
	b.ok(os.WriteFile(twin, make([]byte, 1<<20), 0o644))
	doc := filepath.Join(b.lab.Dir(), "twin.xml")
	b.ok(os.WriteFile(doc, []byte(`<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='`+twin+
		`'/><target dev='vdz' bus='virtio'/><serial>`+a.Export().Serial+`</serial></disk>`), 0o600))
	_, err = b.lab.Virsh(ctx, "attach-device", b.mover.Name, doc, "--live")
	b.ok(err)
	for { // until the guest sees it, too
		d, err := b.mover.OpenSource(ctx, a.Export())
		if err != nil {
			refused(err, fault.Conflict, "2 disks have this serial")
			break
		}
		b.ok(d.Close())
	}
	_, err = b.lab.Virsh(ctx, "detach-device", b.mover.Name, doc, "--live")
	b.ok(err)
	for {
		d, err := b.mover.OpenSource(ctx, a.Export())
		if err == nil {
			b.ok(d.Close())
			break
		}
		refused(err, fault.Conflict, "2 disks have this serial")
	}

	b.refusesMounted(refused)

	d, err := b.mover.OpenSource(ctx, a.Export())
	b.ok(err)
	p := make([]byte, 1<<20)
	_, err = d.ReadAt(p, 0)
	b.ok(err)
	b.ok(b.source.Kill(ctx)) // the disk's QEMU is gone, the disk is still plugged in
	if _, err := d.ReadAt(p, 8<<20); err == nil {
		t.Error("read from a VM that was killed")
	}
	b.ok(d.Close())
	b.end("detach", a.Detach)
	b.ok(b.source.Start(ctx))
	_, err = b.source.Status(ctx)
	b.ok(err)
	f, tag = b.freeze("")
	a = b.attach(tag, f.Info().Disks[0].Export)
	d, err = b.mover.OpenSource(ctx, a.Export())
	b.ok(err)
	_, err = d.ReadAt(p, 0)
	b.ok(err)
	b.end("detach", a.Detach) // under the mover's hands
	if _, err = d.ReadAt(p, 8<<20); err == nil {
		t.Error("read from a disk that is unplugged")
	}
	b.ok(d.Close())

	a = b.attach(tag, f.Info().Disks[0].Export)
	b.ok(b.mover.Stop(ctx))
	b.end("detach from a mover that is off", a.Detach)
	_, err = b.d.Attach(ctx, hypervisors.AttachRequest{Mover: b.mover.UUID, Tag: tag, Export: f.Info().Disks[0].Export, Serial: hypervisors.NewSerial(), Owe: b.owe})
	refused(err, fault.Conflict, "not running")
}

// refusesMounted plugs in a disk that somebody in the mover's guest mounts.
func (b *hotBench) refusesMounted(refused func(err error, kind fault.Kind, words string)) {
	b.Helper()
	ctx := b.Context()
	image, doc, serial := filepath.Join(b.lab.PoolDir(), "mounted.raw"), filepath.Join(b.lab.Dir(), "mounted.xml"), "lab-mounted"
	if out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", image, "4M").CombinedOutput(); err != nil {
		b.Fatalf("mke2fs: %v: %s", err, out)
	}
	b.ok(os.WriteFile(doc, []byte(`<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='`+image+
		`'/><target dev='vdy' bus='virtio'/><serial>`+serial+`</serial></disk>`), 0o600))
	_, err := b.lab.Virsh(ctx, "attach-device", b.mover.Name, doc, "--live")
	b.ok(err)
	x := hypervisors.Export{Transport: hypervisors.TransportHotadd, Serial: serial, SizeBytes: 4 << 20}
	for err = b.mover.Mount(ctx, serial); err != nil; err = b.mover.Mount(ctx, serial) {
		if fault.KindOf(err) != fault.NotFound { // until the guest sees it
			b.Fatal(err)
		}
	}
	_, err = b.mover.OpenSource(ctx, x)
	refused(err, fault.Conflict, "is mounted at /mounted")
	b.ok(b.mover.Unmount(ctx))
	d, err := b.mover.OpenSource(ctx, x)
	b.ok(err)
	b.ok(d.Close())
	_, err = b.lab.Virsh(ctx, "detach-device", b.mover.Name, doc, "--live")
	b.ok(err)
}

// TestHotaddAtOnce plugs several disks into one mover in the same moment, as the transfers of one task do.
func TestHotaddAtOnce(t *testing.T) {
	b := newHotBench(t, kvmlab.Spec{}, kvmlab.Disk{MiB: 8, Fill: 1 << 20}, kvmlab.Disk{MiB: 8}, kvmlab.Disk{MiB: 8})
	f, tag := b.freeze("")
	disks := f.Info().Disks
	plugged, errs := make([]hypervisors.Attached, len(disks)), make([]error, len(disks))
	var wg sync.WaitGroup
	for i, d := range disks {
		wg.Go(func() {
			plugged[i], errs[i] = b.d.Attach(t.Context(), hypervisors.AttachRequest{
				Mover: b.mover.UUID, Tag: tag, Export: d.Export, Serial: hypervisors.NewSerial(), Owe: b.owe,
			})
		})
	}
	wg.Wait()
	for i, a := range plugged {
		b.ok(errs[i])
		d, err := b.mover.OpenSource(t.Context(), a.Export())
		b.ok(err)
		got := make([]byte, d.Size())
		_, err = d.ReadAt(got, 0)
		b.ok(err)
		b.ok(d.Close())
		if !bytes.Equal(got, b.nbdcopy(disks[i].Export)) {
			t.Errorf("disk %s in the mover is another one", disks[i].Disk.ID)
		}
		b.end("detach", a.Detach)
	}
}

// TestHotaddByPCI has a mover without a SCSI controller: there are only so many slots, and a guest that stands still
// lets go of nothing.
func TestHotaddByPCI(t *testing.T) {
	b := newHotBench(t, kvmlab.Spec{NoSCSI: true}, kvmlab.Disk{MiB: 8, Fill: 1 << 20})
	ctx := t.Context()
	f, tag := b.freeze("")
	x := f.Info().Disks[0].Export
	a := b.attach(tag, x)
	d, err := b.mover.OpenSource(ctx, a.Export())
	b.ok(err)
	got, want := make([]byte, d.Size()), b.nbdcopy(x)
	_, err = d.ReadAt(got, 0)
	b.ok(err)
	if !bytes.Equal(got, want) {
		t.Error("what the mover read is not what nbdcopy read")
	}
	b.ok(d.Close())

	_, err = b.lab.Virsh(ctx, "suspend", b.mover.Name)
	b.ok(err)
	short, cancel := context.WithTimeout(ctx, 10*time.Second)
	err = a.Detach(short)
	cancel()
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Transient || !strings.Contains(meaning, "does not answer") || advice == "" {
		t.Errorf("detach from a guest that stands still: %v (%v) %q", err, fault.KindOf(err), meaning)
	}
	_, err = b.lab.Virsh(ctx, "resume", b.mover.Name)
	b.ok(err)
	b.end("detach", a.Detach)

	for i := 0; ; i++ {
		image := filepath.Join(b.lab.PoolDir(), fmt.Sprintf("fill%d.raw", i))
		b.ok(os.WriteFile(image, make([]byte, 1<<16), 0o644))
		if _, err := b.lab.Virsh(ctx, "attach-disk", b.mover.Name, image, "vd"+string(rune('b'+i)), "--targetbus", "virtio", "--live"); err != nil {
			if !strings.Contains(err.Error(), "PCI slots") || i == 0 {
				t.Fatal(err)
			}
			break
		}
	}
	_, err = b.d.Attach(ctx, hypervisors.AttachRequest{Mover: b.mover.UUID, Tag: tag, Export: x, Serial: hypervisors.NewSerial(), Owe: b.owe})
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Conflict || !strings.Contains(meaning, "no place") || !strings.Contains(advice, "virtio-scsi") {
		t.Errorf("attach without a free slot: %v (%v) %q %q", err, fault.KindOf(err), meaning, advice)
	}
}
