package protect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// RereadSpec is what is wanted of a reading of a repository's restore points.
type RereadSpec struct {
	Budget int64 `json:"budget,omitempty"` // bytes of records that one run reads, at least one record; 0 is all
}

// RequestReread makes the task that makes the catalog's restore points those of a repository.
func (p *Protector) RequestReread(ctx context.Context, repositoryID string, spec RereadSpec) (*catalog.Task, error) {
	if _, err := p.repositories(ctx, repositoryID); err != nil {
		return nil, err
	}
	return &catalog.Task{Subject: "reread/" + repositoryID, RepositoryID: repositoryID, Spec: encode(spec)}, nil
}

// rereading is how far the reading of a repository is.
type rereading struct {
	*Protector
	t      *jobs.Task
	repo   *store.Repository
	budget int64

	records     map[string]int64 // of all restore points in the repository, with their bytes
	busy        map[string]bool  // tasks that have not ended: what they have published is left to them, for they account for it, too
	read, total int64            // bytes of records
	found       []catalog.RestorePoint
	out         catalog.Reread
}

// Reread is the handler of reread tasks: what a repository has and the catalog does not is taken in, what it has not is forgotten. It runs
// beside everything else.
func (p *Protector) Reread(ctx context.Context, t *jobs.Task) error {
	var spec RereadSpec
	repo, err := begin(ctx, t, &spec, p.repositories)
	if err != nil {
		return err
	}
	t.SetPhase(ctx, "reading restore points")
	w := &rereading{Protector: p, t: t, repo: repo, budget: spec.Budget, busy: map[string]bool{}}
	known, err := p.catalog.RestorePointIDs(ctx, t.RepositoryID)
	if err != nil {
		return err
	}
	if w.records, err = repo.Records(ctx); err != nil {
		return fault.Context("list restore points of repository", t.RepositoryID, err)
	}
	// An empty directory in its place would make everything forgotten.
	if err := p.there(ctx, t.RepositoryID); err != nil {
		return err
	}
	active, err := p.catalog.ActiveTasks(ctx)
	if err != nil {
		return err
	}
	for _, a := range active {
		w.busy[a.ID] = true
	}
	w.out.Points = len(w.records)
	err = errors.Join(w.takeIn(ctx, known), w.forget(ctx, known))
	after := context.WithoutCancel(ctx)
	if resultErr := t.SetResult(after, catalog.Result{BytesRead: w.read, Reread: &w.out}); resultErr != nil {
		return errors.Join(err, resultErr)
	}
	t.Event(after, w.words())
	return err
}

// takeIn reads the records that the catalog does not know, as far as the budget reaches, and enters them.
func (w *rereading) takeIn(ctx context.Context, known map[string]bool) error {
	unknown := slices.DeleteFunc(slices.Sorted(maps.Keys(w.records)), func(id string) bool { return known[id] })
	for _, id := range unknown {
		w.total += w.records[id]
	}
	if w.budget > 0 {
		w.total = min(w.total, w.budget)
	}
	var errs []error
	for i, id := range unknown {
		if w.budget > 0 && w.read > 0 && w.read+w.records[id] > w.budget {
			w.out.Left = len(unknown) - i
			break
		}
		if err := w.readOne(ctx, id); err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			break
		}
		w.t.SetProgress(ctx, catalog.DiskProgress{Disk: "all", BytesTotal: w.total, BytesScanned: min(w.read, w.total), BytesRead: w.read})
	}
	return errors.Join(append(errs, w.enter(ctx))...)
}

// readOne reads the record of a restore point.
func (w *rereading) readOne(ctx context.Context, id string) error {
	point, err := w.repo.RestorePoint(ctx, id)
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return nil // pruned since the listing
	}
	if err != nil {
		return err
	}
	w.read += w.records[id]
	if w.busy[point.Labels[labelTask]] {
		return nil
	}
	row, err := w.rowOf(ctx, w.t.RepositoryID, point)
	if err == nil {
		w.found = append(w.found, row)
	}
	return err
}

// enter puts what was found into the catalog, and forgets again what was pruned between the look at the repository and that. What is pruned
// from now on has a row that goes with it.
func (w *rereading) enter(ctx context.Context) error {
	added, err := w.catalog.AddRestorePoints(ctx, w.found) // not what a backup has entered meanwhile
	if err != nil {
		return err
	}
	w.out.Added = len(added)
	var errs []error
	for _, row := range w.found {
		if _, err := w.repo.RestorePoint(ctx, row.ID); err == nil || fault.KindOf(err) != fault.NotFound {
			continue
		}
		w.out.Points--
		if added[row.ID] {
			w.out.Added--
		}
		errs = append(errs, w.catalog.DeleteRestorePoint(ctx, row.ID))
	}
	return errors.Join(errs...)
}

// forget removes what the repository had not any more when it was looked at.
func (w *rereading) forget(ctx context.Context, known map[string]bool) error {
	var errs []error
	for id := range known {
		if _, there := w.records[id]; there {
			continue
		}
		if err := w.catalog.DeleteRestorePoint(ctx, id); err != nil {
			errs = append(errs, err)
			continue
		}
		w.out.Removed++
	}
	return errors.Join(errs...)
}

func (w *rereading) words() string {
	text := fmt.Sprintf("The repository has %d restore points: %d that the catalog did not know are taken in, %d that are not there any more are forgotten",
		w.out.Points, w.out.Added, w.out.Removed)
	if w.out.Left > 0 {
		text += fmt.Sprintf(", %d wait for the next time because the budget is used up", w.out.Left)
	}
	return text + "."
}
