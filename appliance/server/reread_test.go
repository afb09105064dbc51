package server

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
)

// reread reads the restore points of the bench's repository into the catalog, and returns the task that has done it.
func (b *bench) reread() catalog.Task {
	b.t.Helper()
	if err := b.RunMaintenance(b.t.Context(), admin, catalog.MaintainReread); err != nil {
		b.t.Fatal(err)
	}
	got := b.maintained()[catalog.MaintainReread]
	if got.LastError != nil || len(got.LastParts) != 1 || got.LastParts[0].ID != b.repo {
		b.t.Fatalf("reread = %+v", got)
	}
	run := got.Runs[got.LastParts[0].RunID]
	if run.Kind != catalog.KindReread || len(run.Tasks) != 1 {
		b.t.Fatalf("run = %+v", run)
	}
	b.await(b.watch.end(run.Tasks[0].ID))
	task, err := b.GetTask(b.t.Context(), run.Tasks[0].ID)
	if err != nil {
		b.t.Fatal(err)
	}
	return task
}

func (b *bench) rereads(when string, want catalog.Reread) {
	b.t.Helper()
	got := b.reread()
	if got.State != catalog.Succeeded || got.Result == nil || got.Result.Reread == nil {
		b.t.Errorf("%s: %s, %+v, %+v; want %+v", when, got.State, got.Result, got.Error, want)
	} else if *got.Result.Reread != want {
		b.t.Errorf("%s: %+v, want %+v", when, *got.Result.Reread, want)
	}
}

// What a catalog has lost is found, what a repository has lost is forgotten, and what a task is about to enter is left to it.
func TestRereadMakesTheCatalogTrue(t *testing.T) {
	b := stillBench(t)
	lost, gone, kept := b.backup(), b.backup(), b.backup()
	b.rereads("as it is", catalog.Reread{Points: 3})

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
	b.rereads("beside a backup", catalog.Reread{Points: 2, Removed: 1})
	state(catalog.Succeeded)
	b.rereads("after it", catalog.Reread{Points: 2, Added: 1})
	got, err := b.catalog.RestorePoint(t.Context(), lost.ID)
	if err != nil || got.VMID != lost.VMID || got.TaskID != lost.TaskID || !got.Time.Equal(lost.Time) || got.SizeBytes != lost.SizeBytes {
		t.Errorf("it is %+v, %v; was %+v", got, err, lost)
	}
	if ids := b.points(); len(ids) != 2 || !ids[lost.ID] || !ids[kept.ID] {
		t.Errorf("restore points %v", ids)
	}
}

// A budget that is smaller than any record lets one be read at a time; nothing that waits is forgotten, and the run says how much it read.
func TestRereadKeepsToItsBudget(t *testing.T) {
	b := stillBench(t)
	all := []string{b.backup().ID, b.backup().ID, b.backup().ID}
	for _, id := range all[:2] {
		if err := b.catalog.DeleteRestorePoint(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	m := b.maintained()[catalog.MaintainReread].Maintenance
	m.BudgetBytes = 1
	if err := b.ReplaceMaintenance(t.Context(), admin, m); err != nil {
		t.Fatal(err)
	}
	task := b.reread()
	if task.Result == nil || task.Result.Reread == nil || *task.Result.Reread != (catalog.Reread{Points: 3, Added: 1, Left: 1}) ||
		task.Result.BytesRead <= 1 || task.Progress.Sum().BytesRead != task.Result.BytesRead {
		t.Errorf("within a budget: %+v, %+v", task.Result, task.Progress)
	}
	b.rereads("the rest", catalog.Reread{Points: 3, Added: 1})
	var ids []string
	for id := range b.points() {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	slices.Sort(all)
	if !slices.Equal(ids, all) {
		t.Errorf("restore points %v, want %v", ids, all)
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
	if got := b.reread(); got.State != catalog.Failed || got.Error == nil {
		t.Errorf("away: %s, %+v", got.State, got.Error)
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
	b.rereads("back again", catalog.Reread{Points: 1})
}
