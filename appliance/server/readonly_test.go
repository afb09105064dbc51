package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
)

// readOnly mounts the repository's directory over itself for reading only, and returns what makes it writable again.
func (b *bench) readOnly() (writable func()) {
	b.t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CAIRN_LAB") == "1" {
			b.t.Fatal("mounting needs root")
		}
		b.t.Skip("mounting needs root")
	}
	dir := filepath.Join(b.root, "repo")
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	remount := func(flags uintptr) {
		b.t.Helper()
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
			b.t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	return func() { remount(0) }
}

// TestRepositoryOnReadOnlyDisk starts the manager when the repository's file system has become read-only, as after a
// disk error: everything can be restored, nothing is written, and backups go on once it can be written to again.
func TestRepositoryOnReadOnlyDisk(t *testing.T) {
	b := newBench(t)
	point := b.backup()
	disk0, disk1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	var writable func()
	b.restart(func() { writable = b.readOnly() })

	b.restoresTo(point.ID, "copy", disk0, disk1)
	if info := b.info(); info.Status != catalog.HealthProblem || info.LastError == nil || !strings.Contains(info.LastError.Meaning, "read-only") {
		t.Errorf("repository = %s, %+v", info.Status, info.LastError)
	}
	refused := b.ended(b.startBackup())
	if refused.State != catalog.Failed || refused.Error.Kind != fault.Conflict.String() || refused.Error.Advice == "" {
		t.Errorf("backup to a read-only directory = %s, %+v", refused.State, refused.Error)
	}
	b.clean()

	writable()
	next := b.backup()
	if info := b.info(); info.Status != catalog.HealthOK || info.LastError != nil {
		t.Errorf("repository = %s, %+v", info.Status, info.LastError)
	}
	b.restoresTo(next.ID, "copy2", disk0, disk1)
	b.restoresTo(point.ID, "copy3", disk0, disk1)
}

// TestAttachReadOnlyCopy attaches a copy of a repository that can only be read, and restores from it.
func TestAttachReadOnlyCopy(t *testing.T) {
	b := newBench(t)
	point := b.backup()
	disk0, disk1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	if _, err := b.DetachRepository(t.Context(), b.repo); err != nil {
		t.Fatal(err)
	}
	b.readOnly()
	row, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "copy", Path: filepath.Join(b.root, "repo"), Attach: true})
	if err != nil {
		t.Fatal(err)
	}
	if row.Status != catalog.HealthProblem {
		t.Errorf("repository = %s, %+v", row.Status, row.LastError)
	}
	b.restoresTo(point.ID, "copy", disk0, disk1)
}
