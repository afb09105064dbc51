package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
)

// memRepo is a repository on a crashfs with one restore point.
type memRepo struct {
	fs    *crashfs.FS
	b     *file.Store
	repo  *Repository
	point RestorePoint
	disk  []byte
}

func newMemRepo(t *testing.T) *memRepo {
	t.Helper()
	m := &memRepo{fs: crashfs.New(), disk: make([]byte, 12*chunk.MinBytes)}
	if err := errors.Join(m.fs.Mkdir("/disk"), m.fs.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	var err error
	if m.b, err = file.CreateFS(m.fs, "/disk/repo"); err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), m.b, Key{}, CreateOptions{ChunkBytes: chunk.MinBytes}); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	fill(rand.New(rand.NewPCG(4, 4)), m.disk)
	if m.point, err = crashBackup(t.Context(), m.repo, m.disk, nil); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *memRepo) open(t *testing.T) {
	t.Helper()
	var err error
	if m.repo, err = Open(t.Context(), m.b, Key{}, Options{}); err != nil {
		t.Fatal(err)
	}
	repo := m.repo
	t.Cleanup(func() { _ = repo.Close() }) // of one whose backend fails for ever, too
}

// TestErrorAtEveryCall lets each file operation of a backup fail, once or from then on.
func TestErrorAtEveryCall(t *testing.T) {
	counting := newMemRepo(t)
	calls := 0
	counting.fs.Fail = func(string, string) error { calls++; return nil }
	if err := attempt(counting); err != nil {
		t.Fatal(err)
	}
	runs, failed := 0, 0
	for n := 1; n <= calls; n++ {
		if raceEnabled && n%8 != 0 {
			continue
		}
		for variant := n % 2; variant < 4; variant += 2 {
			cause, forever := []error{syscall.EIO, syscall.ENOSPC}[(variant/2+n/2)%2], variant >= 2
			m, fired, err := attemptFailing(t, n, cause, forever)
			for try := 1; fired == "" && try < 8; try++ {
				// Packs that share a folder by their random names need fewer calls.
				m, fired, err = attemptFailing(t, n, cause, forever)
			}
			if fired == "" {
				t.Fatalf("call %d never came", n)
			}
			runs++
			if err != nil {
				failed++
			}
			if wrong := m.aftermath(t, err); wrong != nil {
				t.Fatalf("%v at call %d (%s), forever %v; backup said %v: %v", cause, n, fired, forever, err, wrong)
			}
		}
	}
	if failed < runs/2 {
		t.Errorf("only %d of %d backups failed", failed, runs)
	}
	t.Logf("%d calls, %d runs, %d failed backups", calls, runs, failed)
}

// attemptFailing lets the nth file operation of a backup fail, and those after it too if forever is set. fired names the
// last one that did.
func attemptFailing(t *testing.T, n int, cause error, forever bool) (m *memRepo, fired string, err error) {
	m = newMemRepo(t)
	call := 0
	m.fs.Fail = func(op, name string) error {
		call++
		if call == n || (forever && call > n) {
			fired = op + " " + name
			return cause
		}
		return nil
	}
	err = attempt(m)
	m.fs.Fail = nil
	return m, fired, err
}

// attempt is a backup, incremental on what is there, that cleans up after itself.
func attempt(m *memRepo) error {
	ctx := context.Background()
	disk := bytes.Clone(m.disk)
	copy(disk[20000:], "changed")
	s, err := m.repo.Begin(ctx, SessionOptions{Series: "vm"})
	if err != nil {
		return err
	}
	err = func() error {
		w, err := s.NewImage(ctx, ImageOptions{SizeBytes: int64(len(disk)), Parent: &m.point.Images[0].Ref})
		if err != nil {
			return err
		}
		if err := w.Write(ctx, 0, disk); err != nil {
			return err
		}
		ref, err := w.Finish(ctx)
		if err != nil {
			return err
		}
		p, err := s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}})
		if err == nil {
			m.point, m.disk = p, disk
		}
		return err
	}()
	if err != nil {
		return errors.Join(err, s.Abort(ctx))
	}
	return nil
}

// aftermath judges the repository after a backup that may have failed: as it is, and after a power cut.
func (m *memRepo) aftermath(t *testing.T, backup error) error {
	t.Helper()
	if _, ok := errors.AsType[*fault.Error](backup); backup != nil && !ok {
		return fmt.Errorf("an error without a kind: %w", backup)
	}
	if _, err := m.repo.Verify(t.Context(), m.point.ID, nil); err != nil {
		return fmt.Errorf("as it is: %w", err)
	}
	want := expect{must: map[string][]byte{m.point.ID: m.disk}, created: true}
	d := m.fs.Disk()
	for d.Step() {
	}
	if err := judge(d.Crash(crashfs.Everything, nil), Key{}, want, true); err != nil {
		return fmt.Errorf("after a power cut: %w", err)
	}
	if err := m.repo.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	m.open(t)
	defer m.repo.Close()
	if left := m.fs.Names("/disk/repo/tmp"); len(left) > 0 {
		return fmt.Errorf("left behind: %v", left)
	}
	return attempt(m)
}

func TestFullDisk(t *testing.T) {
	m := newMemRepo(t)
	ctx := t.Context()
	second, err := crashBackup(ctx, m.repo, bytes.Repeat([]byte("second "), 9000), nil)
	if err != nil {
		t.Fatal(err)
	}
	m.fs.Capacity = m.fs.Used() + 3000
	big := make([]byte, 100*chunk.MinBytes)
	fill(rand.New(rand.NewPCG(6, 6)), big)
	s, err := m.repo.Begin(ctx, SessionOptions{Series: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.NewImage(ctx, ImageOptions{SizeBytes: int64(len(big))})
	if err != nil {
		t.Fatal(err)
	}
	err = w.Write(ctx, 0, big)
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Transient || !strings.Contains(meaning, "full") || advice == "" {
		t.Errorf("write on a full disk: %v (%v), %q, %q", err, fault.KindOf(err), meaning, advice)
	}
	if _, err := s.Publish(ctx, Manifest{}); err == nil {
		t.Error("a session that failed was published")
	}
	if err := s.Abort(ctx); err != nil {
		t.Error(err)
	}
	if left := m.fs.Names("/disk/repo/tmp"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// Not a byte is free, and the program starts again.
	m.fs.Capacity = m.fs.Used()
	if err := m.repo.Close(); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	defer m.repo.Close()
	if _, err := m.repo.Verify(ctx, m.point.ID, nil); err != nil {
		t.Error(err)
	}
	m.fs.Capacity = m.fs.Used()
	if err := m.repo.Prune(ctx, m.point.ID); err != nil {
		t.Errorf("prune on a full disk: %v", err)
	}
	m.fs.Fail = func(op, _ string) error { // not even room for an entry in a directory
		if op == "mkdir" || op == "rename" || op == "create" || op == "link" {
			return syscall.ENOSPC
		}
		return nil
	}
	report, err := m.repo.Collect(ctx, CollectOptions{})
	if err != nil || report.PacksFreed == 0 {
		t.Errorf("collect on a full disk = %+v, %v", report, err)
	}
	m.fs.Fail = nil
	if _, err := m.repo.Verify(ctx, second.ID, nil); err != nil {
		t.Error(err)
	}
	if _, err := crashBackup(ctx, m.repo, m.disk[:4*chunk.MinBytes], nil); err != nil {
		t.Errorf("backup into the space that was freed: %v", err)
	}
}

// TestPruneOnAFullDiskIsRecordedFirst: the reserve makes room, so that a crash in between cannot lose the number.
func TestPruneOnAFullDiskIsRecordedFirst(t *testing.T) {
	m := newMemRepo(t)
	defer m.repo.Close()
	m.fs.Capacity = m.fs.Used()
	m.fs.Fail = func(op, name string) error {
		if op == "remove" && strings.Contains(name, "/"+manifestFolder) {
			return syscall.EIO
		}
		return nil
	}
	if err := m.repo.Prune(t.Context(), m.point.ID); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Prune = %v", err)
	}
	gone, err := m.repo.prunedOf(t.Context(), m.repo.seriesKey(m.point.Series))
	if err != nil || gone.last() != m.point.Sequence {
		t.Errorf("recorded up to %d, %v, want %d", gone.last(), err, m.point.Sequence)
	}
}

// TestCollectDeletesNothingAfterAnError fails each listing and reading of a collect in turn.
func TestCollectDeletesNothingAfterAnError(t *testing.T) {
	for n := 1; ; n++ {
		m := newMemRepo(t)
		gone, err := crashBackup(t.Context(), m.repo, bytes.Repeat([]byte("to be pruned"), 9000), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.repo.Prune(t.Context(), gone.ID); err != nil {
			t.Fatal(err)
		}
		if err := m.repo.Close(); err != nil { // empties the caches
			t.Fatal(err)
		}
		m.open(t)
		before := m.fs.Names("/disk/repo/packs")
		call, fired := 0, ""
		m.fs.Fail = func(op, name string) error {
			if op != "readdir" && op != "open" && op != "read" {
				return nil
			}
			call++
			if call == n {
				fired = op + " " + name
				return syscall.EIO
			}
			return nil
		}
		_, err = m.repo.Collect(t.Context(), CollectOptions{})
		m.fs.Fail = nil
		after := m.fs.Names("/disk/repo/packs")
		if fired == "" {
			if n < 8 {
				t.Errorf("only %d calls", n)
			}
			t.Logf("%d calls failed in turn", n-1)
			return
		}
		if err == nil {
			t.Errorf("collect went on after %s failed", fired)
		}
		// From the epoch's second look on, the choice is made and packs may be gone.
		if !slices.Equal(before, after) && !strings.Contains(fired, "epochs") && !strings.Contains(fired, "trash") {
			t.Errorf("%s failed: %d packs before, %d after", fired, len(before), len(after))
		}
		if _, err := m.repo.Verify(t.Context(), m.point.ID, nil); err != nil {
			t.Errorf("%s failed: %v", fired, err)
		}
		if err := m.repo.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
