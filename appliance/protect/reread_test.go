package protect

import (
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
)

// TestRereadCountsWhatItHasEntered has a backup that enters its restore point between the look at the catalog and the entering.
func TestRereadCountsWhatItHasEntered(t *testing.T) {
	s := newSeries(t)
	lost, meanwhile, pruned := s.point(1, "a"), s.point(2, "b"), s.point(3, "c")
	w := &rereading{Protector: s.Protector, t: &jobs.Task{Task: catalog.Task{RepositoryID: "repo_1"}}, repo: s.repo, busy: map[string]bool{}}
	var err error
	if w.records, err = s.repo.Records(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.out.Points = len(w.records)
	for _, id := range []string{lost, meanwhile, pruned} {
		if err := w.readOne(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.catalog.DeleteRestorePoint(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	if err := s.repo.Prune(t.Context(), pruned); err != nil {
		t.Fatal(err)
	}
	if err := w.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := (catalog.Reread{Points: 2, Added: 1}); w.out != want {
		t.Errorf("%+v, want %+v", w.out, want)
	}
	if ids, err := s.catalog.RestorePointIDs(t.Context(), "repo_1"); err != nil || len(ids) != 2 || !ids[lost] || !ids[meanwhile] {
		t.Errorf("the catalog has %v, %v", ids, err)
	}
}
