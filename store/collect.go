package store

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// Prune removes restore points, durably. The space they alone took is freed by the next Collect. All ids are looked
// at before the first is removed; running the same Prune again after an error is safe but for NotFound.
func (r *Repository) Prune(ctx context.Context, ids ...string) error {
	if err := r.writable("prune"); err != nil {
		return err
	}
	r.collecting.Lock()
	defer r.collecting.Unlock()
	for _, id := range ids {
		if _, err := parsePointID(id); err != nil {
			return err
		}
		// A damaged restore point can be pruned too, so it is enough that its file is there.
		if _, err := r.b.Stat(ctx, manifestName(id)); err != nil {
			return fault.Context("prune restore point", id, err)
		}
	}
	for _, id := range ids {
		if err := r.fence(ctx); err != nil {
			return err
		}
		fault.Point("store.prune.fenced")
		if err := r.unpublish(ctx, id); err != nil {
			return fault.Context("prune restore point", id, err)
		}
		fault.Point("store.prune.unpublished")
	}
	return nil
}

func (r *Repository) unpublish(ctx context.Context, id string) error {
	err := r.b.Delete(ctx, manifestName(id))
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		// It may be gone from sight and come back after a power cut: its packs must stay until that is settled.
		if fault.KindOf(err) != fault.Canceled {
			r.unsafe = err
		}
		return err
	}
	delete(r.points, id)
	return nil
}

// Collect removes packs that no restore point, running session or open reader needs. It may run beside anything.
// Any error while it lists, reads or marks makes it delete nothing.
func (r *Repository) Collect(ctx context.Context, o CollectOptions) (CollectReport, error) {
	report := CollectReport{DryRun: o.DryRun}
	if err := r.writable("collect"); err != nil {
		return report, err
	}
	r.collecting.Lock()
	defer r.collecting.Unlock()
	r.mu.Lock()
	err := r.unsafe
	r.mu.Unlock()
	if err != nil {
		return report, fault.Wrap(fault.Conflict, "collect", r.b.Location(), err).Explain(
			"An earlier removal of a restore point failed half-way, so it is not certain what is still needed. Nothing was deleted.",
			"Restart the program; opening the repository again settles it.")
	}
	// An owner that was overtaken does not know the packs of the next one: it should hear of that, not of damage.
	if err := r.fence(ctx); err != nil {
		return report, fault.Context("collect", r.b.Location(), err)
	}
	free, err := r.decide(ctx, o, &report)
	if err != nil {
		return report, fault.Context("collect", r.b.Location(), err)
	}
	if o.DryRun {
		return report, nil
	}
	if err := r.remove(ctx, free, &report); err != nil {
		return report, fault.Context("collect", r.b.Location(), err)
	}
	r.restock(ctx)
	return report, nil
}

// decide marks, then chooses under the exclusive lock, and makes the index forget what is chosen: from there on no
// session can come to rely on it.
func (r *Repository) decide(ctx context.Context, o CollectOptions, report *CollectReport) ([]seal.ID, error) {
	there, err := r.listPacks(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.refresh(ctx); err != nil {
		return nil, err
	}
	m := newMarker(r)
	rest := r.roots()
	for {
		if err := m.mark(ctx, rest); err != nil {
			return nil, err
		}
		r.gc.Lock()
		rest = m.unmarked(r.roots())
		if len(rest.images)+len(rest.documents) == 0 {
			break
		}
		r.gc.Unlock() // something was published or opened meanwhile: mark that too
	}
	defer r.gc.Unlock()
	fault.Point("store.collect.marked")
	pinned := r.pinned()
	var free []seal.ID
	for id, size := range there {
		_, marked := m.packs[id]
		_, waits := pinned[id]
		_, indexed := r.idx.Pack(id)
		switch {
		case marked || !indexed: // one that could not be read is nobody's to delete
			report.PacksKept++
			report.BytesKept += size
		case waits:
			report.PacksWaiting++
			report.BytesKept += size
		default:
			report.PacksFreed++
			report.BytesFreed += size
			free = append(free, id)
		}
	}
	if o.DryRun {
		return nil, nil
	}
	return free, r.forget(free)
}

func (r *Repository) pinned() map[seal.ID]struct{} {
	out := map[seal.ID]struct{}{}
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.sessions {
		s.mu.Lock()
		for id := range s.pins {
			out[id] = struct{}{}
		}
		s.mu.Unlock()
	}
	return out
}

func (r *Repository) forget(free []seal.ID) error {
	for _, id := range free {
		r.directories.Forget(id)
		r.prints.Forget(id)
	}
	if err := r.idx.Forget(free...); err != nil {
		return fault.Wrap(fault.Internal, "forget packs", "", err)
	}
	return nil
}

// full reports whether err says that there is no room left.
func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

func trashName(id seal.ID) string {
	return trashFolder + strings.TrimPrefix(pack.Name(id), pack.Folder)[3:]
}

// remove puts the packs aside, then unlinks them. What an error leaves is known again to the index.
func (r *Repository) remove(ctx context.Context, free []seal.ID, report *CollectReport) (err error) {
	defer func() {
		if err != nil {
			report.PacksFreed, report.BytesFreed = 0, 0
			err = errors.Join(err, r.syncIndex(context.WithoutCancel(ctx)))
		}
	}()
	fault.Point("store.collect.forgotten")
	if err := r.fence(ctx); err != nil {
		return err
	}
	for _, id := range free {
		err := r.b.Rename(ctx, pack.Name(id), trashName(id))
		if err != nil && (full(err) || fault.KindOf(err) == fault.Exists) {
			// Too full even to put it aside; or a power cut kept both names of one that was put aside before.
			err = r.b.Delete(ctx, pack.Name(id))
		}
		if err != nil {
			return err
		}
		fault.Point("store.collect.put-aside")
	}
	fault.Point("store.collect.all-put-aside")
	if err := r.emptyTrash(ctx); err != nil {
		return err
	}
	fault.Point("store.collect.trash-empty")
	if err := r.idx.Sweep(); err != nil {
		return fault.Wrap(fault.Internal, "sweep index", "", err)
	}
	fault.Point("store.collect.swept")
	return nil
}

// emptyTrash removes what this and interrupted earlier collects have put aside.
func (r *Repository) emptyTrash(ctx context.Context) error {
	var names []string
	for info, err := range r.b.List(ctx, trashFolder) {
		if err != nil {
			return err
		}
		names = append(names, info.Name)
	}
	if err := r.fence(ctx); err != nil {
		return err
	}
	for _, name := range names {
		if err := r.b.Delete(ctx, name); err != nil {
			return err
		}
		fault.Point("store.collect.unlinked")
	}
	return nil
}
