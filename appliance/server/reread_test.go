package server

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
)

// reread is the result of reading the restore points of the bench's repository into the catalog.
func (b *bench) reread() catalog.MaintenancePart {
	b.t.Helper()
	got := b.maintain(catalog.MaintainReread)
	if len(got.LastParts) != 1 || got.LastParts[0].ID != b.repo {
		b.t.Fatalf("reread = %+v", got)
	}
	return got.LastParts[0]
}

func (b *bench) rereads(want string) {
	b.t.Helper()
	if got := b.reread(); got.Result != want || got.Error != nil {
		b.t.Errorf("result %q, %+v; want %q", got.Result, got.Error, want)
	}
}

// What a catalog has lost is found, what a repository has lost is forgotten, and what a task is about to enter is left to it.
func TestRereadMakesTheCatalogTrue(t *testing.T) {
	b := stillBench(t)
	lost, gone, kept := b.backup(), b.backup(), b.backup()
	b.rereads("3 restore points, 0 found, 0 forgotten")

	if err := b.catalog.DeleteRestorePoint(t.Context(), lost.ID); err != nil {
		t.Fatal(err)
	}
	repo, err := b.repository(t.Context(), b.repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Prune(t.Context(), gone.ID); err != nil {
		t.Fatal(err)
	}
	state := func(s catalog.State) {
		t.Helper()
		res, err := b.catalog.DB().ExecContext(t.Context(), "UPDATE tasks SET state = ? WHERE id = ?", s, lost.TaskID)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := res.RowsAffected(); n != 1 || err != nil {
			t.Fatalf("%d tasks changed, %v", n, err)
		}
	}
	state(catalog.Running) // as if it had published the restore point, and not entered it yet
	if err := b.RunMaintenance(t.Context(), admin, catalog.MaintainReread); err != nil {
		t.Fatal(err)
	}
	if got := b.maintained()[catalog.MaintainReread].LastParts[0]; got.Result != "2 restore points, 0 found, 1 forgotten" {
		t.Errorf("beside a backup: %+v", got)
	}
	state(catalog.Succeeded)
	b.rereads("2 restore points, 1 found, 0 forgotten")
	got, err := b.catalog.RestorePoint(t.Context(), lost.ID)
	if err != nil || got.VMID != lost.VMID || got.TaskID != lost.TaskID || !got.Time.Equal(lost.Time) || got.SizeBytes != lost.SizeBytes {
		t.Errorf("it is %+v, %v; was %+v", got, err, lost)
	}
	if ids := b.points(); len(ids) != 2 || !ids[lost.ID] || !ids[kept.ID] {
		t.Errorf("restore points %v", ids)
	}
}

// A repository that is not at its place, because its disk is not mounted for instance, loses nothing.
func TestRereadForgetsNothingOfARepositoryThatIsAway(t *testing.T) {
	b := stillBench(t)
	b.backup()
	dir := filepath.Join(b.root, "repo")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if got := b.reread(); got.Error == nil {
		t.Errorf("away: %+v", got)
	}
	if ids := b.points(); len(ids) != 1 {
		t.Errorf("%d restore points are left", len(ids))
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	b.rereads("1 restore points, 0 found, 0 forgotten")
}
