package storage

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
)

const (
	mib   = 1 << 20
	block = 64 << 10
	size  = 8 * mib
)

func start(t testing.TB) *Site {
	t.Helper()
	nbdtest.Require(t, "qemu-storage-daemon", "qemu-img")
	dir, err := os.MkdirTemp("", "site")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return s
}

// vm is a disk with its guest, and what the guest knows to be on it.
type vm struct {
	t     testing.TB
	site  *Site
	disk  string
	guest *Image
	want  []byte
}

func newVM(t testing.TB, s *Site, disk string, f Format) *vm {
	t.Helper()
	ok(t, s.CreateDisk(t.Context(), DiskSpec{ID: disk, Volume: disk + "-v1", SizeBytes: size, Format: f}))
	g, err := s.Guest(t.Context(), disk)
	ok(t, err)
	return &vm{t: t, site: s, disk: disk, guest: g, want: make([]byte, size)}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (v *vm) write(b byte, blocks ...int64) {
	v.t.Helper()
	for _, i := range blocks {
		p := v.want[i*block : (i+1)*block]
		copy(p, bytes.Repeat([]byte{b}, block))
		_, err := v.guest.WriteAt(p, i*block)
		ok(v.t, err)
	}
}

func (v *vm) check(what string, r interface {
	ReadAt(p []byte, off int64) (int, error)
}, want []byte) {
	v.t.Helper()
	got := make([]byte, len(want))
	if _, err := r.ReadAt(got, 0); err != nil {
		v.t.Errorf("%s: %v", what, err)
		return
	}
	for i := range got {
		if got[i] != want[i] {
			v.t.Errorf("%s: byte %d is %d, want %d", what, i, got[i], want[i])
			return
		}
	}
}

func (v *vm) volume(id string) *Image {
	v.t.Helper()
	i, err := v.site.OpenVolume(v.t.Context(), id)
	ok(v.t, err)
	return i
}

func (v *vm) snapshot(id string) []byte {
	v.t.Helper()
	ok(v.t, v.site.Snapshot(v.t.Context(), NewVolume{v.disk, id}))
	return bytes.Clone(v.want)
}

// chain returns the ids of a disk's volumes.
func (v *vm) chain() (out []string) {
	v.t.Helper()
	d, err := v.site.Disk(v.disk)
	ok(v.t, err)
	for _, x := range d.Volumes {
		out = append(out, x.ID)
	}
	return out
}

// reader is an export that is open for reading.
func reader(t testing.TB, e *Export) *nbd.Client {
	t.Helper()
	cfg := nbd.Config{Network: "unix", Address: e.Socket, Export: e.Name, Contexts: []string{nbd.BaseAllocation}}
	if e.DirtyContext != "" {
		cfg.Contexts = append(cfg.Contexts, e.DirtyContext)
	}
	c, err := nbd.Dial(t.Context(), cfg)
	ok(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

type clientReader struct{ *nbd.Client }

func (c clientReader) ReadAt(p []byte, off int64) (int, error) {
	return len(p), c.Read(context.Background(), p, off)
}

// changed lists the blocks that an export calls dirty.
func changed(t testing.TB, e *Export, c *nbd.Client) (out []int64) {
	t.Helper()
	for off := int64(0); off < e.SizeBytes; {
		status, err := c.BlockStatus(t.Context(), off, e.SizeBytes-off)
		ok(t, err)
		for _, x := range status[e.DirtyContext] {
			for b := off / block; x.Flags&nbd.StateDirty != 0 && b*block < off+x.Length; b++ {
				out = append(out, b)
			}
			off += x.Length
		}
	}
	return out
}

func TestSnapshotsAndMerges(t *testing.T) {
	for _, f := range []Format{Raw, Cow} {
		t.Run(string(f), func(t *testing.T) {
			s := start(t)
			v := newVM(t, s, "d", f)
			v.write(1, 0, 1, 2)
			first := v.snapshot("d-v2")
			v.write(2, 1, 5)
			second := v.snapshot("d-v3")
			v.write(3, 2, 5, 100)
			if diff := cmp.Diff([]string{"d-v1", "d-v2", "d-v3"}, v.chain()); diff != "" {
				t.Fatalf("volumes (-want +got):\n%s", diff)
			}
			v1, v2 := v.volume("d-v1"), v.volume("d-v2")
			v.check("first snapshot", v1, first)
			v.check("second snapshot", v2, second)
			v.check("guest", v.guest, v.want)
			ok(t, errors.Join(v1.Close(), v2.Close()))

			ok(t, s.Merge(t.Context(), "d", "d-v1")) // in the middle
			if diff := cmp.Diff([]string{"d-v1", "d-v3"}, v.chain()); diff != "" {
				t.Fatalf("volumes (-want +got):\n%s", diff)
			}
			v1 = v.volume("d-v1")
			v.check("second snapshot, merged into the first", v1, second)
			ok(t, v1.Close())
			v.write(4, 7)
			ok(t, s.Merge(t.Context(), "d", "d-v1")) // of what the guest writes
			v.write(5, 8)
			v.check("guest", v.guest, v.want)
			if diff := cmp.Diff([]string{"d-v1"}, v.chain()); diff != "" {
				t.Fatalf("volumes (-want +got):\n%s", diff)
			}
			for _, e := range []error{s.Merge(t.Context(), "d", "d-v1"), s.Merge(t.Context(), "d", "d-v9"), s.Merge(t.Context(), "x", "d-v1")} {
				if k := fault.KindOf(e); k != fault.Conflict && k != fault.NotFound {
					t.Errorf("merge of what cannot be: %v", e)
				}
			}
		})
	}
}

func TestMergeWhileTheGuestWrites(t *testing.T) {
	s := start(t)
	v := newVM(t, s, "d", Cow)
	v.write(1, 0, 10, 20)
	v.snapshot("d-v2")
	v.write(2, 1, 11)
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				done <- n
				return
			default:
				v.write(byte(n), int64(n%128))
			}
		}
	}()
	err := s.Merge(t.Context(), "d", "d-v1")
	close(stop)
	if n := <-done; err != nil || n == 0 {
		t.Fatalf("%v after %d writes", err, n)
	}
	v.check("guest", v.guest, v.want)
}

func TestSnapshotOfSeveralDisksIsAllOrNothing(t *testing.T) {
	s := start(t)
	a, b := newVM(t, s, "a", Cow), newVM(t, s, "b", Raw)
	err := s.Snapshot(t.Context(), NewVolume{"a", "a-v2"}, NewVolume{"b", "a-v1"})
	if fault.KindOf(err) != fault.Exists {
		t.Errorf("a volume's id twice: %v", err)
	}
	for _, v := range []*vm{a, b} {
		if len(v.chain()) != 1 {
			t.Errorf("disk %s has volumes %v", v.disk, v.chain())
		}
	}
	ok(t, s.Snapshot(t.Context(), NewVolume{"b", "b-v2"}, NewVolume{"a", "a-v2"}))
	if len(a.chain()) != 2 || len(b.chain()) != 2 {
		t.Errorf("volumes %v and %v", a.chain(), b.chain())
	}
}

func TestIncrementalBackups(t *testing.T) {
	s := start(t)
	v, raw := newVM(t, s, "d", Cow), newVM(t, s, "r", Raw)
	v.write(1, 0, 1, 2)
	raw.write(1, 3)
	full, err := s.StartBackup(t.Context(), BackupSpec{ID: "b1", Disks: []BackupDisk{{ID: "d"}, {ID: "r"}}, Checkpoint: "c1"})
	ok(t, err)
	frozen, frozenRaw := bytes.Clone(v.want), bytes.Clone(raw.want)
	v.write(2, 2, 3)
	raw.write(2, 3)
	if !full.Checkpointed("d") || full.Checkpointed("r") || full.Incremental("d") {
		t.Error("a full backup makes a checkpoint of the qcow2 disk only")
	}
	for disk, want := range map[string][]byte{"d": frozen, "r": frozenRaw} {
		e, err := full.Export(t.Context(), disk)
		ok(t, err)
		v.check("backup of "+disk, clientReader{reader(t, e)}, want)
		ok(t, e.Close(t.Context()))
	}
	if err := s.Merge(t.Context(), "d", "d-v1"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("merge during a backup: %v", err)
	}
	_, err = s.StartBackup(t.Context(), BackupSpec{ID: "b2", Disks: []BackupDisk{{ID: "d"}}})
	if fault.KindOf(err) != fault.Conflict {
		t.Errorf("a second backup: %v", err)
	}
	ok(t, full.Stop(t.Context()))

	// Changes lie in two volumes by now.
	v.snapshot("d-v2")
	v.write(3, 9)
	inc, err := s.StartBackup(t.Context(), BackupSpec{ID: "b3", Disks: []BackupDisk{{ID: "d", From: "c1"}}, Checkpoint: "c2"})
	ok(t, err)
	frozen = bytes.Clone(v.want)
	v.write(4, 50)
	e, err := inc.Export(t.Context(), "d")
	ok(t, err)
	c := reader(t, e)
	v.check("incremental backup", clientReader{c}, frozen)
	if diff := cmp.Diff([]int64{2, 3, 9}, changed(t, e, c)); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}
	ok(t, errors.Join(c.Close(), e.Close(t.Context()), inc.Stop(t.Context())))

	// And in one again.
	ok(t, s.Merge(t.Context(), "d", "d-v1"))
	v.write(5, 60)
	for from, want := range map[string][]int64{"c1": {2, 3, 9, 50, 60}, "c2": {50, 60}} {
		got := incremental(t, s, v, from)
		for _, b := range want {
			if !got[b] {
				t.Errorf("since %s block %d is not among %v", from, b, got)
			}
		}
	}
	_, err = s.StartBackup(t.Context(), BackupSpec{ID: "b4", Disks: []BackupDisk{{ID: "d", From: "c9"}}})
	if fault.KindOf(err) != fault.NotFound {
		t.Errorf("an unknown checkpoint: %v", err)
	}
	ok(t, s.DeleteCheckpoint(t.Context(), "d", "c1"))
	list, err := s.Checkpoints(t.Context(), "d")
	if diff := cmp.Diff([]Checkpoint{{Name: "c2"}}, list); diff != "" || err != nil {
		t.Errorf("%v, checkpoints (-want +got):\n%s", err, diff)
	}
}

// incremental returns what a backup calls changed.
func incremental(t testing.TB, s *Site, v *vm, from string) map[int64]bool {
	t.Helper()
	b, err := s.StartBackup(t.Context(), BackupSpec{ID: "inc", Disks: []BackupDisk{{ID: v.disk, From: from}}})
	ok(t, err)
	e, err := b.Export(t.Context(), v.disk)
	ok(t, err)
	c := reader(t, e)
	v.check("incremental backup", clientReader{c}, v.want)
	out := map[int64]bool{}
	for _, i := range changed(t, e, c) {
		out[i] = true
	}
	ok(t, errors.Join(c.Close(), e.Close(t.Context()), b.Stop(t.Context())))
	return out
}

func TestCrash(t *testing.T) {
	s := start(t)
	v := newVM(t, s, "d", Cow)
	v.write(1, 0)
	b, err := s.StartBackup(t.Context(), BackupSpec{ID: "b", Disks: []BackupDisk{{ID: "d"}}, Checkpoint: "c1"})
	ok(t, err)
	ok(t, b.Stop(t.Context()))
	v.write(2, 1)
	v.snapshot("d-v2")
	v.write(3, 2)
	ok(t, v.guest.Flush(t.Context()))
	ok(t, s.Crash(t.Context()))
	if _, err := v.guest.WriteAt([]byte{1}, 0); err == nil {
		t.Error("the guest has survived its host")
	}
	g, err := s.Guest(t.Context(), "d")
	ok(t, err)
	v.guest = g
	v.check("guest", g, v.want)
	_, err = s.StartBackup(t.Context(), BackupSpec{ID: "b2", Disks: []BackupDisk{{ID: "d", From: "c1"}}})
	if k := fault.KindOf(err); k != fault.Conflict && k != fault.NotFound {
		t.Errorf("backup since a checkpoint from before the crash: %v", err)
	}
	ok(t, s.DeleteCheckpoint(t.Context(), "d", "c1"))
	ok(t, s.Merge(t.Context(), "d", "d-v1"))
	v.check("guest", g, v.want)
}

func TestResizeAndDelete(t *testing.T) {
	s := start(t)
	v := newVM(t, s, "d", Cow)
	v.write(1, 0)
	v.snapshot("d-v2")
	ok(t, s.Resize(t.Context(), "d", 2*size))
	v.want = append(v.want, make([]byte, size)...)
	if v.guest.Size() != 2*size {
		t.Errorf("the guest sees %d bytes", v.guest.Size())
	}
	v.write(2, 200)
	v.check("guest", v.guest, v.want)
	if err := s.Resize(t.Context(), "d", size); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a smaller size: %v", err)
	}
	e, err := s.ExportVolume(t.Context(), "d-v1", false)
	ok(t, err)
	if err := s.DeleteDisk(t.Context(), "d"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a disk that is exported: %v", err)
	}
	ok(t, e.Close(t.Context()))
	ok(t, s.DeleteDisk(t.Context(), "d"))
	if _, err := s.Disk("d"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a disk that was deleted: %v", err)
	}
	ok(t, s.CreateDisk(t.Context(), DiskSpec{ID: "d", Volume: "d-v1", SizeBytes: size, Format: Raw, Preallocated: true}))
	d, err := s.Disk("d")
	if err != nil || d.Active().ActualBytes < size {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestPlug(t *testing.T) {
	s := start(t)
	v := newVM(t, s, "d", Cow)
	v.write(1, 0, 5)
	frozen := v.snapshot("d-v2")
	v.write(2, 5, 6)
	p, err := s.Plug(t.Context(), "d-v1")
	ok(t, err)
	f, err := os.OpenFile(p.Path, os.O_RDWR, 0)
	ok(t, err)
	v.check("plugged snapshot", f, frozen)
	_, err = f.WriteAt([]byte("journal"), 0)
	ok(t, errors.Join(err, f.Close(), p.Unplug(t.Context()), p.Unplug(t.Context())))
	v1 := v.volume("d-v1")
	v.check("what was written to the plugged disk is not in the snapshot", v1, frozen)
	ok(t, v1.Close())

	ok(t, s.CreateDisk(t.Context(), DiskSpec{ID: "n", Volume: "n-v1", SizeBytes: size, Format: Cow}))
	p, err = s.Plug(t.Context(), "n-v1")
	ok(t, err)
	ok(t, os.WriteFile(p.Path, []byte("restored"), 0))
	ok(t, p.Unplug(t.Context()))
	n := v.volume("n-v1")
	got := make([]byte, 8)
	_, err = n.ReadAt(got, 0)
	ok(t, errors.Join(err, n.Close()))
	if string(got) != "restored" {
		t.Errorf("the new disk begins with %q", got)
	}
	p, err = s.Plug(t.Context(), "n-v1")
	ok(t, err)
	ok(t, s.Crash(t.Context()))
	ok(t, p.Unplug(t.Context()))
}

// TestHistories compares random histories of writes, snapshots, merges and backups with what the guest knows.
func TestHistories(t *testing.T) {
	seed := seeded.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	s := start(t)
	v := newVM(t, s, "d", Cow)
	since := map[int64]bool{} // the last checkpoint
	last := ""
	for i := range 60 {
		switch rnd.IntN(6) {
		case 0:
			v.snapshot("v" + string(rune('a'+i%26)) + string(rune('a'+i/26)))
		case 1:
			if c := v.chain(); len(c) > 1 {
				ok(t, s.Merge(t.Context(), "d", c[rnd.IntN(len(c)-1)]))
			}
		case 2:
			name := "c" + string(rune('a'+i%26)) + string(rune('a'+i/26))
			b, err := s.StartBackup(t.Context(), BackupSpec{ID: name, Disks: []BackupDisk{{"d", last}}, Checkpoint: name})
			ok(t, err)
			frozen := bytes.Clone(v.want)
			later := rnd.Int64N(size / block)
			v.write(byte(i), later)
			e, err := b.Export(t.Context(), "d")
			ok(t, err)
			c := reader(t, e)
			v.check("backup", clientReader{c}, frozen)
			if last != "" {
				got := map[int64]bool{}
				for _, x := range changed(t, e, c) {
					got[x] = true
				}
				for x := range since {
					if !got[x] {
						t.Fatalf("step %d: block %d changed since %s and is not among %v", i, x, last, got)
					}
				}
			}
			ok(t, errors.Join(c.Close(), e.Close(t.Context()), b.Stop(t.Context())))
			if last != "" {
				ok(t, s.DeleteCheckpoint(t.Context(), "d", last))
			}
			last, since = name, map[int64]bool{later: true}
		default:
			x := rnd.Int64N(size / block)
			v.write(byte(i), x)
			since[x] = true
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	v.check("guest", v.guest, v.want)
}
