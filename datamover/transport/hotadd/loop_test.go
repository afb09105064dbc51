//go:build linux

package hotadd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/datamover/blockdev"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// loop is a real block device over a file, in a guest in whose sysfs it has our serial.
type loop struct {
	name, file string
	size       int64
	root       string // of the guest's sys and proc
	options    Options
}

// newLoop makes one with content; loop devices themselves have no serial.
func newLoop(t *testing.T, content []byte) *loop {
	t.Helper()
	l := &loop{file: filepath.Join(t.TempDir(), "disk"), size: int64(len(content)), root: t.TempDir()}
	if err := os.WriteFile(l.file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", l.file).CombinedOutput()
	if err != nil {
		if os.Getenv("CAIRN_LAB") == "1" {
			t.Fatalf("losetup: %v: %s", err, out)
		}
		t.Skipf("needs root and loop devices: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	l.name = filepath.Base(device)
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	l.options = Options{Wait: 10 * time.Second, Depth: 3, System: blockdev.System{Sys: filepath.Join(l.root, "sys"), Dev: "/dev", Proc: "/proc"}}
	if err := os.MkdirAll(filepath.Join(l.root, "sys/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

// plug makes the guest see the disk.
func (l *loop) plug(t *testing.T) {
	t.Helper()
	files := tree{}
	dir := filepath.Join("sys/block", l.name)
	for _, name := range []string{"dev", "ro", "size", "queue/logical_block_size"} {
		b, err := os.ReadFile(filepath.Join("/sys/block", l.name, name))
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Join(dir, name)] = string(b)
	}
	plug(t, l.root, files)
	plug(t, l.root, tree{filepath.Join(dir, "device/vpd_pg80"): page(0x80, serial)}) // last: now it can be found
}

// unplug makes the guest see it no more.
func (l *loop) unplug(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(l.root, "sys/block", l.name)); err != nil {
		t.Fatal(err)
	}
}

func (l *loop) export(writable bool) hypervisors.Export {
	return hypervisors.Export{Transport: hypervisors.TransportHotadd, Serial: serial, SizeBytes: l.size, Writable: writable}
}

func (l *loop) source(t *testing.T, e hypervisors.Export) hypervisors.FrozenDisk {
	t.Helper()
	d, err := l.options.OpenSource(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func (l *loop) target(t *testing.T) hypervisors.TargetDisk {
	t.Helper()
	d, err := l.options.OpenTarget(t.Context(), l.export(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func random(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func TestReadsWhatIsThere(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	content := random(r, 5<<20+512)
	l := newLoop(t, content)
	l.plug(t)
	d := l.source(t, l.export(false))
	if d.Size() != l.size {
		t.Fatalf("size %d, want %d", d.Size(), l.size)
	}
	var wg sync.WaitGroup
	for _, at := range [][2]int{{0, 5<<20 + 512}, {1, 1}, {511, 2}, {513, 3 << 20}, {1 << 20, 1 << 20}, {1<<20 - 1, 1<<20 + 2}, {5<<20 + 511, 1}, {4096, 0}} {
		wg.Go(func() {
			p := make([]byte, at[1])
			if n, err := d.ReadAt(p, int64(at[0])); err != nil || n != len(p) || !bytes.Equal(p, content[at[0]:at[0]+at[1]]) {
				t.Errorf("%d bytes at %d: %d read, %v, equal: %v", at[1], at[0], n, err, bytes.Equal(p, content[at[0]:at[0]+at[1]]))
			}
		})
	}
	wg.Wait()
	p := make([]byte, 1000)
	if n, err := d.ReadAt(p, l.size-600); n != 600 || !errors.Is(err, io.EOF) || !bytes.Equal(p[:600], content[len(content)-600:]) {
		t.Errorf("across the end: %d, %v", n, err)
	}
	if n, err := d.ReadAt(p, l.size+1); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %d, %v", n, err)
	}
	if _, err := d.ReadAt(p, -1); fault.KindOf(err) != fault.Invalid {
		t.Errorf("before the beginning: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := d.ReadAt(p, 0); fault.KindOf(err) != fault.Canceled {
		t.Errorf("after Close: %v", err)
	}
}

func TestSourceTellsWhatTheManagerKnew(t *testing.T) {
	l := newLoop(t, make([]byte, 1<<20))
	l.plug(t)
	want := []hypervisors.Extent{
		{Length: 256 << 10, State: hypervisors.Unchanged}, {Offset: 256 << 10, Length: 512 << 10}, {Offset: 768 << 10, Length: 256 << 10, State: hypervisors.Zero},
	}
	m, err := hypervisors.NewExtentMap(l.size, func(yield func(hypervisors.Extent, error) bool) {
		for _, e := range want {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	e := l.export(false)
	for name, tt := range map[string]struct {
		m    hypervisors.ExtentMap
		want []hypervisors.Extent
	}{"with a map": {m, want}, "without": {nil, []hypervisors.Extent{{Length: 1 << 20}}}} {
		e.Extents = tt.m
		d := l.source(t, e)
		var got []hypervisors.Extent
		for x, err := range d.Extents(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, x)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("extents %s (-want +got):\n%s", name, diff)
		}
		_ = d.Close()
	}
}

// TestWritesLikeMemory does random writes, zeros and flushes on a disk and in memory.
func TestWritesLikeMemory(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	content := random(r, 4<<20+1536)
	l := newLoop(t, content)
	l.size -= 100 // an image whose size is no whole number of sectors is rounded up by the platform
	l.plug(t)
	d := l.target(t)
	back := l.source(t, l.export(true)) // a restore that reads back has both open
	for i := range 300 {
		off := r.Int64N(l.size)
		n := min(1+r.Int64N(1<<r.IntN(22)), l.size-off)
		if r.IntN(2) == 0 {
			off, n = roundDown(off, 512), max(roundDown(n, 512), min(512, l.size-roundDown(off, 512)))
		}
		part := content[off : off+n]
		var err error
		if i%3 == 0 {
			clear(part)
			err = d.Zero(t.Context(), off, n)
		} else {
			copy(part, random(r, len(part)))
			_, err = d.WriteAt(part, off)
		}
		if err != nil {
			t.Fatalf("step %d, %d bytes at %d: %v", i, n, off, err)
		}
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, l.size)
	if _, err := back.ReadAt(got, 0); err != nil || !bytes.Equal(got, content[:l.size]) {
		t.Errorf("read back: %v, equal: %v", err, bytes.Equal(got, content[:l.size]))
	}
	onDisk, err := os.ReadFile(l.file)
	if err != nil || !bytes.Equal(onDisk, content) {
		t.Errorf("the file below: %v, equal: %v", err, bytes.Equal(onDisk, content))
	}
	for _, at := range [][2]int64{{-1, 1}, {0, l.size + 1}, {l.size + 1, 0}, {l.size, 1}} {
		if _, err := d.WriteAt(make([]byte, at[1]), at[0]); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("write %v: %v", at, err)
		}
		if err := d.Zero(t.Context(), at[0], at[1]); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("zero %v: %v", at, err)
		}
	}
	if err := d.Zero(t.Context(), 5, 0); err != nil {
		t.Errorf("zero nothing: %v", err)
	}
}

// TestZeroGivesSpaceBack looks whether the file below has a hole, also by the way that may not make one.
func TestZeroGivesSpaceBack(t *testing.T) {
	content := random(rand.New(rand.NewPCG(9, 10)), 8<<20)
	for _, punch := range []bool{true, false} {
		l := newLoop(t, content)
		l.plug(t)
		d := l.target(t)
		d.(*target).cannotPunch.Store(!punch)
		if err := d.Zero(t.Context(), 1<<20, 6<<20); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(content)
		clear(want[1<<20 : 7<<20])
		got, err := os.ReadFile(l.file)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("punch %v: the content differs, %v", punch, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(l.file, &st); err != nil {
			t.Fatal(err)
		}
		if hole := st.Blocks*512 < 3<<20; punch && !hole {
			t.Errorf("the file has %d KiB, want a hole of 6 MiB", st.Blocks/2)
		}
		_ = d.Close()
	}
}

func TestWaitsUntilItIsPlugged(t *testing.T) {
	l := newLoop(t, bytes.Repeat([]byte("cairn..."), 1024))
	began := make(chan error, 1)
	go func() {
		d, err := l.options.OpenSource(context.WithoutCancel(t.Context()), l.export(false))
		if err == nil {
			p := make([]byte, 8)
			if _, err = d.ReadAt(p, 0); err == nil && string(p) != "cairn..." {
				err = fmt.Errorf("read %q", p)
			}
			_ = d.Close()
		}
		began <- err
	}()
	select {
	case err := <-began:
		t.Fatalf("opened before it was plugged in: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	l.plug(t)
	if err := <-began; err != nil {
		t.Error(err)
	}
}

func TestNobodyElseUsesIt(t *testing.T) {
	l := newLoop(t, make([]byte, 4<<20))
	l.plug(t)
	d := l.target(t)
	if _, err := l.options.OpenTarget(t.Context(), l.export(true)); fault.KindOf(err) != fault.Conflict {
		t.Errorf("opened for writing twice: %v", err)
	}
	if _, err := l.options.OpenSource(t.Context(), l.export(false)); fault.KindOf(err) != fault.Conflict {
		t.Errorf("opened as a frozen disk while it is written: %v", err)
	}
	_ = d.Close()
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "/dev/"+l.name).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount("/dev/"+l.name, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	_, err := l.options.OpenSource(t.Context(), l.export(false))
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "mounted at "+dir) {
		t.Errorf("a mounted disk: %v", err)
	}
}

func TestNameGivenToAnotherDisk(t *testing.T) {
	l := newLoop(t, make([]byte, 1<<20))
	l.options.Wait = 20 * time.Millisecond
	l.plug(t)
	plug(t, l.root, tree{filepath.Join("sys/block", l.name, "dev"): "7:1048575\n"})
	if _, err := l.options.OpenSource(t.Context(), l.export(false)); fault.KindOf(err) != fault.Transient {
		t.Errorf("the node is another device's: %v", err)
	}
}

// TestDiskFails lets the file below vanish, with and without the disk.
func TestDiskFails(t *testing.T) {
	for words, unplugged := range map[string]bool{"unplugged from the mover": true, "hypervisor reports an error": false} {
		l := newLoop(t, random(rand.New(rand.NewPCG(11, 12)), 4<<20))
		l.plug(t)
		d := l.source(t, l.export(false))
		p := make([]byte, 1<<20)
		if _, err := d.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if unplugged {
			l.unplug(t)
		}
		if err := os.Truncate(l.file, 0); err != nil {
			t.Fatal(err)
		}
		_, err := d.ReadAt(p, 2<<20)
		meaning, advice := fault.Explanation(err)
		if fault.KindOf(err) != fault.Transient || !strings.Contains(meaning, words) || advice == "" {
			t.Errorf("read: %v (%v) %q, want words of %q", err, fault.KindOf(err), meaning, words)
		}
		_ = d.Close()
	}
}

// TestCloseThoughTheDiskHangs holds requests as a dead host would: calls return, and Close does not before the requests
// have ended.
func TestCloseThoughTheDiskHangs(t *testing.T) {
	l := newLoop(t, make([]byte, 1<<20))
	l.plug(t)
	d := l.target(t).(*target)
	host := make(chan struct{})
	began, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- d.do(context.Background(), request{run: func([]byte) error {
			close(began)
			<-host
			return nil
		}})
	}()
	<-began
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.do(ctx, request{run: func([]byte) error { <-host; return nil }}); fault.KindOf(err) != fault.Canceled {
		t.Errorf("canceled: %v", err)
	}
	closed := make(chan struct{}, 2)
	for range 2 { // a task closes twice: when it is cancelled, and when it returns
		go func() {
			_ = d.Close()
			closed <- struct{}{}
		}()
	}
	if err := <-ended; fault.KindOf(err) != fault.Canceled {
		t.Errorf("request under way at Close: %v", err)
	}
	select {
	case <-closed:
		t.Error("Close returned while the kernel works on the disk")
	default:
	}
	if _, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFD, 0); err != nil {
		t.Errorf("the disk was given back while the kernel works on it: %v", err)
	}
	close(host)
	<-closed
	<-closed
	if _, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("the disk is still open: %v", err)
	}
}
