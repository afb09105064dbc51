package store

import (
	"context"

	"github.com/cairn-backup/cairn/internal/fault"
)

// current runs use, which reads what restore points need for which needs is true. Beside the owner of the repository,
// what use went by may be out of date: restore points were pruned and collected, packs rewritten. So if something is
// damaged or missing then, restore points and packs are looked at again: if no such restore point is left the answer is
// NotFound; if other packs are there now, use is run once more, until it has failed with packs that did not change.
func (r *Repository) current(ctx context.Context, needs func(*point) bool, use func() error) error {
	for {
		seen := r.packsSeen.Load()
		err := use()
		if err == nil || !r.o.ReadOnly || !damaged(err) || ctx.Err() != nil {
			return err
		}
		// Packs first: a restore point that is there after them had its packs.
		caughtUp := r.catchUp(true)
		if lookErr := r.refresh(ctx); lookErr != nil && fault.KindOf(lookErr) != fault.Corrupt {
			return err
		}
		if !r.anyPoint(needs) {
			return fault.Wrap(fault.NotFound, "read repository", r.b.Location(), err).Explain(
				"The restore point was removed by the process that owns the repository while it was being read.",
				"List the restore points again, and choose another.")
		}
		if !caughtUp || r.packsSeen.Load() == seen {
			return r.lost(err)
		}
	}
}

func (r *Repository) anyPoint(needs func(*point) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.points {
		if needs(p) {
			return true
		}
	}
	return false
}

// named tells the restore point of an id.
func named(id string) func(*point) bool { return func(p *point) bool { return p.ID == id } }

// holds tells restore points that have an image.
func holds(ref ImageRef) func(*point) bool {
	return func(p *point) bool {
		for _, im := range p.Images {
			if im.Ref == ref {
				return true
			}
		}
		return false
	}
}

// current is the repository's, for what the image needs.
func (i *ImageReader) current(ctx context.Context, use func() error) error {
	return i.r.current(ctx, holds(i.ref), use)
}
