package erasure

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/blobtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// made is a new set in directories.
type made struct {
	t     *testing.T
	l     Layout
	paths []string
	plan  Plan
}

// memoryDir is a directory in memory if there is room: what these tests do to disks needs no real fsync.
func memoryDir(t testing.TB) string {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &st); err != nil || int64(st.Bavail)*st.Bsize < 512<<20 {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "cairn-erasure-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newSet(t *testing.T, l Layout) *made {
	t.Helper()
	d := &made{t: t, l: l}
	dir := memoryDir(t)
	var members []Member
	for i := range l.Members() {
		p := filepath.Join(dir, fmt.Sprintf("disk%d", i))
		d.paths = append(d.paths, p)
		members = append(members, Member{ID: fmt.Sprintf("d%d", i), Path: p})
	}
	var err error
	if d.plan, err = Create(context.Background(), members, l, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *made) open() *Store {
	d.t.Helper()
	return d.openWith(Options{}, d.paths...)
}

func (d *made) openWith(o Options, paths ...string) *Store {
	d.t.Helper()
	s, err := OpenPaths(context.Background(), o, paths...)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { s.Close() })
	return s
}

func (d *made) own(s *Store) (release func()) {
	d.t.Helper()
	r, err := s.Acquire(context.Background())
	if err != nil {
		d.t.Fatal(err)
	}
	return func() {
		d.t.Helper()
		if err := r(); err != nil {
			d.t.Error(err)
		}
	}
}

func TestConformance(t *testing.T) {
	for _, l := range []Layout{{1, 1}, {2, 1}, {4, 2}} {
		t.Run(l.String(), func(t *testing.T) {
			blobtest.Run(t, func(t *testing.T) (blob.Store, func() blob.Store) {
				d := newSet(t, l)
				return d.open(), func() blob.Store { return d.open() }
			})
		})
	}
}

// The suite again with as many members gone as may be.
func TestConformanceDegraded(t *testing.T) {
	for _, l := range []Layout{{1, 1}, {4, 2}} {
		t.Run(l.String(), func(t *testing.T) {
			blobtest.Run(t, func(t *testing.T) (blob.Store, func() blob.Store) {
				d := newSet(t, l)
				open := func() blob.Store { return d.openWith(Options{}, d.paths[l.Parity:]...) }
				s := d.openWith(Options{}, d.paths[l.Parity:]...)
				d.own(s)() // who is not there is recorded: only an owner may go on without a member
				return s, open
			})
		})
	}
}
