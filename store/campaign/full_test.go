package campaign

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/campaign/mounts"
	"github.com/cairn-backup/cairn/store/campaign/workload"
)

// fullRig is a repository on a small file system, its index on the same one.
type fullRig struct {
	t      *testing.T
	at     string
	key    store.Key
	b      *file.Store
	r      *store.Repository
	disk   []byte
	made   int
	failed int
}

func (f *fullRig) open() {
	f.t.Helper()
	var err error
	if f.b, err = file.Create(filepath.Join(f.at, "repo")); err != nil {
		f.t.Fatal(err)
	}
	if f.r, err = store.Open(f.t.Context(), f.b, f.key, store.Options{IndexDir: filepath.Join(f.at, "index")}); err != nil {
		f.t.Fatalf("open (%d backups made, %d failed): %v", f.made, f.failed, err)
	}
}

func (f *fullRig) close() {
	f.t.Helper()
	if err := errors.Join(f.r.Close(), f.b.Close()); err != nil {
		f.t.Errorf("close: %v", err)
	}
}

// backup stores a disk with nothing in common with those before.
func (f *fullRig) backup() error {
	rnd := random(uint64(f.made+f.failed), 77)
	for i := range f.disk {
		f.disk[i] = byte(rnd.Uint32())
	}
	_, err := workload.Backup(f.t.Context(), f.r, "vm", f.disk, nil)
	if err != nil {
		f.failed++
		return err
	}
	f.made++
	return nil
}

// mustSayFull checks that the error says in plain words that there is no room.
func (f *fullRig) mustSayFull(err error) {
	f.t.Helper()
	meaning, advice := fault.Explanation(err)
	if fault.KindOf(err) != fault.Transient || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(meaning, "full") || advice == "" {
		f.t.Errorf("a backup on a full disk failed with %v (%v), meaning %q, advice %q", err, fault.KindOf(err), meaning, advice)
	}
}

// mustBeWhole checks every restore point: all that were made, but for those that were pruned.
func (f *fullRig) mustBeWhole(want int) []store.RestorePoint {
	f.t.Helper()
	points, err := f.r.RestorePoints(f.t.Context())
	if err != nil || len(points) != want {
		f.t.Fatalf("%d restore points, want %d: %v", len(points), want, err)
	}
	for _, p := range points {
		if err := workload.Whole(f.t.Context(), f.r, p); err != nil {
			f.t.Fatal(err)
		}
	}
	return points
}

// fill takes the last byte and the last inode of the file system.
func (f *fullRig) fill() {
	f.t.Helper()
	dir := filepath.Join(f.at, "foreign")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, syscall.ENOSPC) {
		f.t.Fatal(err)
	}
	for n := range 5000 { // a tmpfs has more inodes than anybody can use up
		out, err := os.Create(filepath.Join(dir, fmt.Sprint(n)))
		if err != nil {
			return
		}
		for size := 1 << 20; size > 0; {
			if _, err = out.Write(make([]byte, size)); err != nil {
				size /= 2
			}
			if off, _ := out.Seek(0, 1); off > 8<<20 {
				break
			}
		}
		out.Close()
	}
}

func TestCampaignFullDisk(t *testing.T) {
	mounts.Need(t)
	tests := []struct {
		name  string
		disk  int // bytes of a disk
		mount func(dir, at string) error
	}{
		{"ext4 of 64 MiB", 3 << 20, func(dir, at string) error {
			image := filepath.Join(dir, "image")
			return errors.Join(mounts.Ext4(image, 64<<20), mounts.Loop(image, at, ""))
		}},
		{"tmpfs of 32 MiB", 3 << 20, func(_, at string) error { return mounts.Tmpfs(at, 32<<20, "") }},
		{"ext4 without inodes", 100 << 10, func(dir, at string) error {
			image := filepath.Join(dir, "image")
			return errors.Join(mounts.Ext4(image, 64<<20, "-N", "160"), mounts.Loop(image, at, ""))
		}},
		{"tmpfs without inodes", 100 << 10, func(_, at string) error { return mounts.Tmpfs(at, 32<<20, "nr_inodes=120") }},
	}
	injected, fired, lost := 0, 0, 0
	for _, tt := range tests {
		injected++
		whole := t.Run(tt.name, func(t *testing.T) {
			dir := mounts.Dir(t)
			f := &fullRig{t: t, at: filepath.Join(dir, "disk"), disk: make([]byte, tt.disk)}
			if err := tt.mount(dir, f.at); err != nil {
				t.Fatal(err)
			}
			fullDisk(f, filepath.Join(dir, "key"))
			fired++
			t.Logf("%d backups made, %d failed", f.made, f.failed)
		})
		if !whole {
			lost++
		}
	}
	report(t, "full-disk", injected, fired, lost)
}

func fullDisk(f *fullRig, keyFile string) {
	t := f.t
	var err error
	if f.key, err = workload.Key(keyFile); err != nil {
		t.Fatal(err)
	}
	if f.b, err = file.Create(filepath.Join(f.at, "repo")); err != nil {
		t.Fatal(err)
	}
	if err := store.Create(t.Context(), f.b, f.key, store.CreateOptions{ChunkBytes: workload.ChunkBytes}); err != nil {
		t.Fatal(err)
	}
	f.open()
	// Until one fails.
	for {
		if err := f.backup(); err != nil {
			f.mustSayFull(err)
			break
		}
	}
	if f.made < 3 {
		t.Fatalf("only %d backups were made", f.made)
	}
	f.mustBeWhole(f.made)
	// To the last byte, and with another process.
	f.fill()
	f.mustSayFull(f.backup())
	f.mustBeWhole(f.made)
	f.close()
	f.open()
	points := f.mustBeWhole(f.made)
	f.mustSayFull(f.backup())
	// Delete and collect still work, and make room.
	pruned := f.made / 2
	for _, p := range points[:pruned] {
		if err := f.r.Prune(t.Context(), p.ID); err != nil {
			t.Fatalf("prune on the full disk: %v", err)
		}
	}
	report, err := f.r.Collect(t.Context(), store.CollectOptions{})
	if err != nil || report.PacksFreed == 0 {
		t.Fatalf("collect on the full disk = %+v, %v", report, err)
	}
	f.mustBeWhole(f.made - pruned)
	if err := f.backup(); err != nil {
		t.Fatalf("backup after the collect: %v", err)
	}
	f.mustBeWhole(f.made - pruned)
	f.close()
	f.open()
	f.mustBeWhole(f.made - pruned)
	if err := workload.Litter(filepath.Join(f.at, "repo")); err != nil {
		t.Error(err)
	}
	f.close()
}
