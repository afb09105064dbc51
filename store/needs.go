package store

import (
	"context"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// leafNeeds appends what a leaf needs, a place of its own first: what the index keeps of an earlier time if all of
// that is there and sound, unless fresh is asked for; else it is worked out and kept.
func (r *Repository) leafNeeds(ctx context.Context, dst []index.Span, id Hash, fresh bool) ([]index.Span, error) {
	if !fresh {
		spans, ok, err := r.idx.Leaf(dst, id)
		if err != nil {
			return dst, fault.Wrap(fault.Internal, "look up", id.Short(), err)
		}
		if ok {
			return spans, nil
		}
	}
	own, err := r.copies(id)
	if err != nil {
		return dst, err
	}
	n, err := r.node(ctx, id, 0)
	if err != nil {
		return dst, err
	}
	sound := true
	needs := make([]index.Location, 0, tree.FanOut)
	chunks := make([]Hash, 0, tree.FanOut)
	for _, child := range n.Children {
		if !child.IsZero() {
			chunks = append(chunks, child)
		}
	}
	var rest []Hash // those that are not simply there
	err = r.idx.LookupAll(chunks, func(id Hash, places []index.Location) error {
		if len(places) == 0 || slices.ContainsFunc(places, func(at index.Location) bool { return at.Refs }) {
			rest = append(rest, id)
		} else {
			needs = append(needs, places...)
		}
		return nil
	})
	if err != nil {
		return dst, fault.Wrap(fault.Internal, "look up chunks of", id.Short(), err)
	}
	for _, child := range rest {
		var ok bool
		if needs, ok, err = r.chunkNeeds(ctx, needs, child); err != nil {
			return dst, err
		}
		sound = sound && ok
	}
	if sound && !fresh {
		if err := r.idx.SetLeaf(id, own, needs); err != nil {
			return dst, fault.Wrap(fault.Internal, "keep needs of leaf", id.Short(), err)
		}
	}
	for _, places := range [][]index.Location{own, needs} {
		for _, at := range places {
			dst = append(dst, index.Span{Pack: at.Pack, From: at.Slot, Count: 1})
		}
	}
	return dst, nil
}

// chunkNeeds appends every copy of a chunk that can be put together, and what its references need. sound is false if
// a copy was found damaged.
func (r *Repository) chunkNeeds(ctx context.Context, dst []index.Location, id Hash) (out []index.Location, sound bool, err error) {
	err = r.moving(id, func(places []index.Location) error {
		out, sound = dst, true
		whole := false
		var damage error
		for _, at := range places {
			needs, ok, err := r.needs(ctx, at)
			if err != nil && !damaged(err) {
				return err
			}
			if err != nil { // kept, but it needs another copy beside it
				out, sound, damage = append(out, at), false, err
				continue
			}
			if ok {
				whole = true
				out = append(out, needs...)
			}
		}
		switch {
		case whole:
			return nil
		case damage != nil:
			return damage
		}
		return missing("chunk " + id.Short())
	})
	return out, sound, err
}

func missing(what string) error {
	return fault.New(fault.Corrupt, "mark", what, "no pack has it").Explain(
		"A restore point needs something that is not in the repository any more.",
		"Run a check to see which restore points are damaged; put missing packs back from a copy, or prune those restore points.")
}

// needs returns what a stored copy of a chunk needs: itself, and for each reference the copies where the block
// physically is. ok is false if a block is nowhere: the copy is a remainder of something collected.
func (r *Repository) needs(ctx context.Context, at index.Location) (places []index.Location, ok bool, err error) {
	places = append(places, at)
	if !at.Refs {
		return places, true, nil
	}
	_, e, err := r.entry(ctx, at)
	if err != nil {
		return nil, false, err
	}
	for target, blocks := range targets(e.Refs) {
		held, ok, err := r.holding(ctx, target, blocks)
		if err != nil || !ok {
			return nil, false, err
		}
		places = append(places, held...)
	}
	return places, true, nil
}

// holders returns the packs that physically have a block that is referred to. If there are any, it also returns those
// too damaged to say.
func (r *Repository) holders(ctx context.Context, ref pack.Ref) (packs []seal.ID, err error) {
	places, ok, err := r.holding(ctx, ref.Target, 1<<ref.Block)
	if err != nil || !ok {
		return nil, err
	}
	for _, at := range places {
		packs = append(packs, at.Pack)
	}
	return packs, nil
}

// holding returns the copies of a chunk that physically have some of these blocks, and those too damaged to say. ok is
// false if a block is nowhere. All blocks at once: a chunk refers to as many blocks of its target as are unchanged.
func (r *Repository) holding(ctx context.Context, target Hash, blocks uint64) (held []index.Location, ok bool, err error) {
	err = r.moving(target, func(places []index.Location) error {
		held, ok = nil, false
		var unread []index.Location
		var damage error
		missing := blocks
		for _, at := range places {
			_, e, err := r.entry(ctx, at)
			if err != nil && !damaged(err) {
				return err
			}
			if err != nil {
				unread, damage = append(unread, at), err
				continue
			}
			if e.Type == pack.Chunk && e.ID == target && e.Present&blocks != 0 {
				held = append(held, at)
				missing &^= e.Present
			}
		}
		if missing != 0 {
			return damage
		}
		held, ok = append(held, unread...), true
		return nil
	})
	return held, ok, err
}
