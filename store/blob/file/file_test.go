package file

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

func newStore(t *testing.T) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a", "b")
	s, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, dir
}

func names(t *testing.T, s *Store, prefix string) []string {
	t.Helper()
	var out []string
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, info.Name)
	}
	slices.Sort(out)
	return out
}

func TestPutOnce(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	if err := blob.Put(ctx, s, "x/y/one", []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := blob.Put(ctx, s, "x/y/one", []byte("second")); fault.KindOf(err) != fault.Exists {
		t.Errorf("second put: %v, want exists", err)
	}
	got, err := blob.Get(ctx, s, "x/y/one", 100)
	if err != nil || string(got) != "first" {
		t.Errorf("Get = %q, %v", got, err)
	}
	if _, err := blob.Get(ctx, s, "x/y/one", 4); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("Get of too much: %v, want corrupt", err)
	}
	if tmp, err := os.ReadDir(filepath.Join(s.Location(), tmpDir)); err != nil || len(tmp) > 0 {
		t.Errorf("tmp holds %v, %v", tmp, err)
	}
}

func TestNothingIsVisibleBeforeCommit(t *testing.T) {
	s, _ := newStore(t)
	w, err := s.Create(t.Context(), "f/one")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("part")); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s, "f/"); len(got) > 0 {
		t.Errorf("visible: %v", got)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err == nil {
		t.Error("commit after abort")
	}
	if got := names(t, s, "f/"); len(got) > 0 {
		t.Errorf("visible after abort: %v", got)
	}
}

func TestReadListRenameDelete(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	for _, name := range []string{"p/aa/1", "p/bb/2", "q/3"} {
		if err := blob.Put(ctx, s, name, []byte("content of "+name)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"p/aa/1", "p/bb/2"}, names(t, s, "p/")); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	if got := names(t, s, "none/"); len(got) > 0 {
		t.Errorf("List of nothing = %v", got)
	}
	p := make([]byte, 4)
	if err := s.ReadAt(ctx, "q/3", p, 3); err != nil || string(p) != "tent" {
		t.Errorf("ReadAt = %q, %v", p, err)
	}
	if err := s.ReadAt(ctx, "q/3", make([]byte, 100), 3); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("ReadAt beyond the end: %v, want corrupt", err)
	}
	if err := s.Rename(ctx, "q/3", "p/aa/1"); fault.KindOf(err) != fault.Exists {
		t.Errorf("Rename onto another: %v, want exists", err)
	}
	if err := s.Rename(ctx, "q/3", "t/3"); err != nil {
		t.Fatal(err)
	}
	if err := s.ReadAt(ctx, "q/3", p, 0); fault.KindOf(err) != fault.NotFound {
		t.Errorf("ReadAt of what was renamed: %v, want not found", err)
	}
	if err := s.Delete(ctx, "t/3"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, "t/3"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("second delete: %v, want not found", err)
	}
}

func TestNamesCannotLeaveTheDirectory(t *testing.T) {
	s, dir := newStore(t)
	if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "outside"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../outside", "/etc/passwd", "", ".", "a/../../outside", "lock", "tmp/x", "a//b"} {
		if err := blob.Put(t.Context(), s, name, nil); fault.KindOf(err) != fault.Invalid {
			t.Errorf("Put(%q): %v, want invalid", name, err)
		}
		if err := s.ReadAt(t.Context(), name, make([]byte, 1), 0); fault.KindOf(err) != fault.Invalid {
			t.Errorf("ReadAt(%q): %v, want invalid", name, err)
		}
	}
}

func TestUnmountedDiskIsNotAnEmptyOne(t *testing.T) {
	s, dir := newStore(t)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	var got error
	for _, err := range s.List(t.Context(), "packs/") {
		got = err
	}
	if fault.KindOf(got) != fault.Transient {
		t.Errorf("List of a directory that is gone: %v, want transient", got)
	}
	if _, err := s.Stat(t.Context(), "packs/1"); fault.KindOf(err) != fault.Transient {
		t.Errorf("Stat in a directory that is gone: %v, want transient", err)
	}
	if _, err := Open(dir); fault.KindOf(err) != fault.NotFound {
		t.Errorf("Open: %v, want not found", err)
	}
}

func TestAcquire(t *testing.T) {
	s, dir := newStore(t)
	if err := blob.Put(t.Context(), s, "x/1", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), "x/2"); err != nil { // never committed, as by a process that was killed
		t.Fatal(err)
	}
	release, err := s.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if tmp, err := os.ReadDir(filepath.Join(dir, tmpDir)); err != nil || len(tmp) > 0 {
		t.Errorf("tmp holds %v, %v", tmp, err)
	}
	other, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = other.Acquire(t.Context())
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Conflict || !strings.Contains(meaning, "process ") || advice == "" {
		t.Errorf("second Acquire: %v, %q, %q", err, meaning, advice)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if release, err = other.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
}

// failing is a file system whose files cannot be synced.
type failing struct {
	OS
	syncs int
}

type failingFile struct {
	File
	fs *failing
}

func (f *failing) Create(name string) (File, error) {
	file, err := f.OS.Create(name)
	return &failingFile{file, f}, err
}

func (f *failingFile) Sync() error {
	f.fs.syncs++
	if f.fs.syncs == 1 {
		return errors.New("the disk said no")
	}
	return nil // as kernels answer the second time
}

func TestFailedSyncIsFinal(t *testing.T) {
	fsys := &failing{}
	s, err := CreateFS(fsys, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Create(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := w.Commit(t.Context()); err == nil {
			t.Error("commit after a failed fsync")
		}
	}
	if fsys.syncs != 1 {
		t.Errorf("%d fsyncs; the second would have lied", fsys.syncs)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	if got := names(t, s, ""); len(got) > 0 {
		t.Errorf("visible: %v", got)
	}
}

func TestManyFilesReadAtOnce(t *testing.T) {
	s, _ := newStore(t)
	ctx := context.Background()
	for i := range 2 * maxOpen {
		if err := blob.Put(ctx, s, "x/"+strings.Repeat("n", i+1), bytes.Repeat([]byte{byte(i)}, 10)); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	for range 4 {
		go func() {
			var errs []error
			for i := range 4 * maxOpen {
				n := i % (2 * maxOpen)
				p := make([]byte, 10)
				err := s.ReadAt(ctx, "x/"+strings.Repeat("n", n+1), p, 0)
				if err == nil && p[9] != byte(n) {
					err = errors.New("wrong content")
				}
				errs = append(errs, err)
			}
			done <- errors.Join(errs...)
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := len(s.files.open); n > maxOpen {
		t.Errorf("%d files open", n)
	}
}

// readOnly is a file system that was mounted for reading.
type readOnly struct{ OS }

func (readOnly) Create(name string) (File, error) {
	return nil, &os.PathError{Op: "open", Path: name, Err: syscall.EROFS}
}

func (readOnly) Lock(name, _ string) (func() error, string, error) {
	return nil, "", &os.PathError{Op: "open", Path: name, Err: syscall.EROFS}
}

func TestReadOnlyFileSystemIsSaid(t *testing.T) {
	s, err := OpenFS(readOnly{}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, lockErr := s.Acquire(t.Context())
	for op, err := range map[string]error{"put": blob.Put(t.Context(), s, "a", []byte("x")), "acquire": lockErr} {
		meaning, advice := fault.Explanation(err)
		if err == nil || fault.KindOf(err) != fault.Conflict || !strings.Contains(meaning, "read-only") || advice == "" {
			t.Errorf("%s: %v (%v), %q, %q, want conflict", op, err, fault.KindOf(err), meaning, advice)
		}
	}
}
