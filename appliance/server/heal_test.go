package server

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
)

// rot changes a byte in the data of every pack of the repository.
func (b *bench) rot() {
	b.t.Helper()
	err := filepath.WalkDir(filepath.Join(b.root, "repo", "packs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		p, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		p[140] ^= 1 // in the first frame
		return os.WriteFile(path, p, 0o600)
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) verify(point string) catalog.State {
	b.t.Helper()
	return b.ended(b.StartVerify(b.t.Context(), httpapi.Start{}, point)).State
}

// The backup after a verification that found damage is full, whole, and heals the restore point that was damaged.
func TestBackupAfterDamageHeals(t *testing.T) {
	b := newBench(t)
	old := b.backup()
	if got := b.verify(old.ID); got != catalog.Succeeded {
		t.Fatalf("verify = %s", got)
	}
	disk0, disk1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	b.rot()
	if got := b.verify(old.ID); got != catalog.Failed {
		t.Fatalf("verify of damaged = %s, want failed", got)
	}
	healed := b.backup()
	if healed.Kind != catalog.Full {
		t.Errorf("the backup after damage is %s", healed.Kind)
	}
	for _, id := range []string{healed.ID, old.ID} {
		if got := b.verify(id); got != catalog.Succeeded {
			t.Errorf("verify of %s = %s", id, got)
		}
		b.restoresTo(id, "copy-"+id, disk0, disk1)
	}
	if task := b.ended(b.StartCollect(t.Context(), httpapi.Start{}, b.repo, httpapi.CollectRequest{})); task.State != catalog.Succeeded {
		t.Errorf("collect = %s, %+v", task.State, task.Error)
	}
	for _, id := range []string{healed.ID, old.ID} {
		if got := b.verify(id); got != catalog.Succeeded {
			t.Errorf("verify of %s after the collect = %s", id, got)
		}
	}
	if next := b.backup(); next.Kind != catalog.Incremental {
		t.Errorf("the backup after healing is %s: %+v", next.Kind, next.Disks)
	}
	b.clean()
}
