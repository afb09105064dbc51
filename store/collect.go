package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// Prune removes restore points, durably. The space they alone took is freed by the next Collect. All ids are looked
// at before the first is removed; running the same Prune again after an error is safe but for NotFound.
func (r *Repository) Prune(ctx context.Context, ids ...string) error {
	ctx, leave, err := r.enter(ctx, "prune")
	if err != nil {
		return err
	}
	defer leave()
	if err := r.writable("prune"); err != nil {
		return err
	}
	r.pruning.Lock()
	defer r.pruning.Unlock()
	ids = once(ids) // the second removal of one would look like one that failed half-way
	for _, id := range ids {
		if _, err := parsePointID(id); err != nil {
			return err
		}
		// A damaged restore point can be pruned too, so it is enough that its file is there.
		if _, err := r.b.Stat(ctx, manifestName(id)); err != nil {
			return fault.Context("prune restore point", id, err)
		}
	}
	if err := r.fence(ctx); err != nil {
		return err
	}
	plan, err := r.planPruned(ctx, ids)
	if err != nil {
		return fault.Context("prune restore points", r.b.Location(), err)
	}
	err = r.recordPruned(ctx, plan)
	if full(err) && r.b.Delete(ctx, reserveName) == nil { // what it is for
		err = r.recordPruned(ctx, plan)
	}
	if full(err) {
		// A full repository must let go of restore points all the same: the record is written when there is room again.
		defer func() {
			if err := r.recordPruned(ctx, plan); err != nil {
				r.log.Warn("what was pruned could not be recorded; a check will miss it", "err", err)
			}
		}()
	} else if err != nil {
		return fault.Context("prune restore points", r.b.Location(), err)
	}
	for _, id := range ids {
		if err := r.fence(ctx); err != nil {
			return err
		}
		fault.Point("store.prune.fenced")
		if err := r.dropWaiting(ctx, id); err != nil {
			return fault.Context("prune restore point", id, err)
		}
		if err := r.unpublish(ctx, id); err != nil {
			return fault.Context("prune restore point", id, err)
		}
		fault.Point("store.prune.unpublished")
	}
	return nil
}

// once drops repetitions.
func once(ids []string) (out []string) {
	for _, id := range ids {
		if !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
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

// Collect removes packs that no restore point, running session or open reader needs, and moves what is needed of packs
// that are mostly dead into new ones. It may run beside anything. Any error while it lists, reads or marks makes it
// delete nothing; one while packs are rewritten ends it, and what it had removed until then was needed by nothing.
func (r *Repository) Collect(ctx context.Context, o CollectOptions) (CollectReport, error) {
	ctx, leave, err := r.enter(ctx, "collect")
	if err != nil {
		return CollectReport{DryRun: o.DryRun}, err
	}
	defer leave()
	report := CollectReport{DryRun: o.DryRun}
	if err := r.writable("collect"); err != nil {
		return report, err
	}
	r.collecting.Lock()
	defer r.collecting.Unlock()
	if err := r.collect(ctx, o, &report); err != nil {
		return report, fault.Context("collect", r.b.Location(), err)
	}
	return report, nil
}

func (r *Repository) collect(ctx context.Context, o CollectOptions, report *CollectReport) error {
	p, err := r.decide(ctx, o, report)
	if err != nil {
		return err
	}
	// Before anything is removed, all of it is looked at: an error up to here deletes nothing.
	victims, err := r.weigh(ctx, o, p, report)
	if err != nil || o.DryRun {
		return errors.Join(err, r.unforget(ctx, p, err))
	}
	if err := r.remove(ctx, p.free); err != nil {
		report.PacksFreed, report.BytesFreed = 0, 0
		return err
	}
	r.restock(ctx)
	if err := r.compact(ctx, p.m, victims, report); err != nil {
		return err
	}
	if err := r.swept(p.m); err != nil {
		return fault.Wrap(fault.Internal, "sweep index", "", err)
	}
	fault.Point("store.collect.swept")
	r.restock(ctx)
	return nil
}

// plan is what a collect has decided.
type plan struct {
	m      *marker
	there  map[seal.ID]int64
	pinned map[seal.ID]struct{}
	free   []seal.ID // nothing in them is needed; forgotten, unless it is a dry run
	kept   []seal.ID // something in them is needed
}

// unforget makes the index know again what it forgot if nothing comes of the plan.
func (r *Repository) unforget(ctx context.Context, p *plan, err error) error {
	if err == nil || len(p.free) == 0 {
		return nil
	}
	return r.syncIndex(context.WithoutCancel(ctx))
}

// decide marks, then chooses under the exclusive lock, and makes the index forget what is chosen: from there on no
// session can come to rely on it.
func (r *Repository) decide(ctx context.Context, o CollectOptions, report *CollectReport) (*plan, error) {
	if err := r.settled(); err != nil {
		return nil, err
	}
	// An owner that was overtaken does not know the packs of the next one: it should hear of that, not of damage.
	if err := r.fence(ctx); err != nil {
		return nil, err
	}
	there, err := r.listPacks(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.refresh(ctx); err != nil {
		return nil, err
	}
	p := &plan{m: newMarker(r), there: there}
	if err := p.m.markAll(ctx); err != nil {
		return nil, err
	}
	fault.Point("store.collect.marked")
	defer r.gc.Unlock()
	if err := r.settled(); err != nil {
		return nil, err
	}
	p.pinned = r.pinned()
	for id, size := range there {
		_, waits := p.pinned[id]
		_, indexed := r.idx.Pack(id)
		switch {
		case !indexed: // one that could not be read is nobody's to delete
			report.PacksUnreadable++
			report.PacksKept++
			report.BytesKept += size
			report.LiveBytes += size
		case p.m.packs[id] != nil:
			report.PacksKept++
			report.BytesKept += size
			p.kept = append(p.kept, id)
		case waits:
			report.PacksWaiting++
			report.BytesKept += size
			report.DeadBytes += size
			report.LeftBytes += size
		default:
			report.PacksFreed++
			report.BytesFreed += size
			report.DeadBytes += size
			p.free = append(p.free, id)
		}
	}
	if o.DryRun {
		return p, nil
	}
	return p, r.forget(p.free)
}

// settled answers an error after a removal of a restore point that may or may not last.
func (r *Repository) settled() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unsafe == nil {
		return nil
	}
	return fault.Wrap(fault.Conflict, "decide", "", r.unsafe).Explain(
		"An earlier removal of a restore point failed half-way, so it is not certain what is still needed. Nothing was deleted.",
		"Restart the program; opening the repository again settles it.")
}

// markAll marks what is needed, and returns with r.gc held exclusively and nothing unmarked, unless it fails.
func (m *marker) markAll(ctx context.Context) error {
	rest := m.unmarked(m.r.roots())
	for {
		if err := m.mark(ctx, rest); err != nil {
			return err
		}
		m.r.gc.Lock()
		rest = m.unmarked(m.r.roots())
		if len(rest.images)+len(rest.documents) == 0 {
			return nil
		}
		m.r.gc.Unlock() // something was published or opened meanwhile: mark that too
	}
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

// remove puts packs that are forgotten aside, then unlinks them. What an error leaves is known again to the index.
func (r *Repository) remove(ctx context.Context, packs []seal.ID) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, r.syncIndex(context.WithoutCancel(ctx)))
		}
	}()
	if err := r.fence(ctx); err != nil {
		return err
	}
	fault.Point("store.collect.forgotten")
	for _, id := range packs {
		err := r.b.Rename(ctx, pack.Name(id), trashName(id))
		if err != nil && (full(err) || fault.KindOf(err) == fault.Exists) {
			// Too full even to put it aside; or a power cut kept both names of one that was put aside before.
			// It has its new name already if it was the fsync after the rename that had no room.
			if err = r.b.Delete(ctx, pack.Name(id)); fault.KindOf(err) == fault.NotFound {
				err = nil
			}
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
	return nil
}

// swept frees the room of what the index has forgotten.
func (r *Repository) swept(m *marker) error {
	if !r.idx.Forgotten() {
		return nil
	}
	return errors.Join(r.idx.Tidy(), r.idx.SweepLeaves(func(s index.Span) bool { return m.packs[s.Pack].has(s.From) }))
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
