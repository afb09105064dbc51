package store

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/seal"
)

// ownership finds out who needs each entry. Trees are walked level by level from the top, all images at once, so a
// node that many need is looked at once. An entry costs the four bytes of its set's number; a leaf about fifty.
type ownership struct {
	r       *Repository
	sets    ownerSets
	levels  []map[Hash]uint32    // nodes not looked at yet, by level, with who needs them
	heads   map[ImageRef]uint32  // image heads
	pieces  map[Hash]uint32      // pieces of documents
	packs   map[seal.ID][]uint32 // the set of each entry
	unknown int                  // damaged objects
	spans   []index.Span
}

func newOwnership(r *Repository) *ownership {
	return &ownership{
		r: r, sets: newOwnerSets(), heads: map[ImageRef]uint32{}, pieces: map[Hash]uint32{}, packs: map[seal.ID][]uint32{},
	}
}

// owns says that an owner needs what is below roots.
func (o *ownership) owns(ctx context.Context, owner uint32, rs roots) error {
	set := o.sets.of(owner)
	for ref := range rs.images {
		o.heads[ref] = o.sets.union(o.heads[ref], set)
	}
	for id := range rs.documents {
		o.pieces[id] = o.sets.union(o.pieces[id], set)
	}
	return ctx.Err()
}

// descend gives every entry its set.
func (o *ownership) descend(ctx context.Context) error {
	for id, set := range o.pieces {
		if err := o.tolerate(ctx, o.object(id, set)); err != nil {
			return err
		}
	}
	for ref, set := range o.heads {
		if err := o.tolerate(ctx, o.head(ctx, ref, set)); err != nil {
			return err
		}
	}
	for level := len(o.levels) - 1; level >= 0; level-- {
		for id, set := range o.levels[level] {
			if err := o.tolerate(ctx, o.node(ctx, id, uint8(level), set)); err != nil {
				return err
			}
		}
		o.levels[level] = nil
	}
	return nil
}

// tolerate counts damage: of what is below, nothing is known.
func (o *ownership) tolerate(ctx context.Context, err error) error {
	if err != nil && ctx.Err() == nil && damaged(err) {
		o.unknown++
		return nil
	}
	return err
}

func (o *ownership) object(id Hash, set uint32) error {
	places, err := o.r.copies(id)
	for _, at := range places {
		o.give(index.Span{Pack: at.Pack, From: at.Slot, Count: 1}, set)
	}
	return err
}

func (o *ownership) head(ctx context.Context, ref ImageRef, set uint32) error {
	if err := o.object(ref.Root, set); err != nil {
		return err
	}
	head, err := o.r.imageHead(ctx, ref)
	if err == nil && head.Height > 0 && !head.Top.IsZero() {
		o.below(head.Height-1, head.Top, set)
	}
	return err
}

func (o *ownership) below(level uint8, id Hash, set uint32) {
	for len(o.levels) <= int(level) {
		o.levels = append(o.levels, map[Hash]uint32{})
	}
	o.levels[level][id] = o.sets.union(o.levels[level][id], set)
}

func (o *ownership) node(ctx context.Context, id Hash, level uint8, set uint32) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if level == 0 {
		spans, err := o.r.leafNeeds(ctx, o.spans[:0], id, false)
		o.spans = spans
		for _, s := range spans {
			o.give(s, set)
		}
		return err
	}
	if err := o.object(id, set); err != nil {
		return err
	}
	n, err := o.r.node(ctx, id, level)
	if err != nil {
		return err
	}
	for _, child := range n.Children {
		if !child.IsZero() {
			o.below(level-1, child, set)
		}
	}
	return nil
}

// give adds the owners in a set to those of a run of entries.
func (o *ownership) give(s index.Span, set uint32) {
	slots := o.packs[s.Pack]
	if slots == nil {
		p, ok := o.r.idx.Pack(s.Pack)
		if !ok {
			return
		}
		slots = make([]uint32, p.Entries)
		o.packs[s.Pack] = slots
	}
	for i := s.From; i < s.From+s.Count && int(i) < len(slots); i++ {
		slots[i] = o.sets.union(slots[i], set)
	}
}

// ownerRun is owners from, from+1, ... end-1. Owners are numbered so that those which share much follow each other.
type ownerRun struct{ from, end uint32 }

// ownerSets numbers sets of owners; equal sets have one number, and 0 is the empty set.
type ownerSets struct {
	list   [][]ownerRun
	number map[string]uint32
	unions map[[2]uint32]uint32
}

func newOwnerSets() ownerSets {
	return ownerSets{list: [][]ownerRun{nil}, number: map[string]uint32{"": 0}, unions: map[[2]uint32]uint32{}}
}

// of returns the set of one owner.
func (s *ownerSets) of(owner uint32) uint32 { return s.intern([]ownerRun{{owner, owner + 1}}) }

func (s *ownerSets) intern(runs []ownerRun) uint32 {
	key := make([]byte, 0, 8*len(runs))
	for _, run := range runs {
		key = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(key, run.from), run.end)
	}
	n, ok := s.number[string(key)]
	if !ok {
		n = uint32(len(s.list))
		s.list = append(s.list, runs)
		s.number[string(key)] = n
	}
	return n
}

// maxUnions bounds the memory for unions worked out before.
const maxUnions = 1 << 20

func (s *ownerSets) union(a, b uint32) uint32 {
	switch {
	case a == b || b == 0:
		return a
	case a == 0:
		return b
	case a > b:
		a, b = b, a
	}
	if n, ok := s.unions[[2]uint32{a, b}]; ok {
		return n
	}
	runs := slices.Concat(s.list[a], s.list[b])
	slices.SortFunc(runs, func(x, y ownerRun) int { return int(x.from) - int(y.from) })
	joined := runs[:1]
	for _, run := range runs[1:] {
		if last := &joined[len(joined)-1]; run.from <= last.end {
			last.end = max(last.end, run.end)
		} else {
			joined = append(joined, run)
		}
	}
	if len(s.unions) >= maxUnions {
		clear(s.unions)
	}
	n := s.intern(slices.Clip(joined))
	s.unions[[2]uint32{a, b}] = n
	return n
}

// rootsBut returns what everything but some restore points relies on.
func (r *Repository) rootsBut(ids ...string) roots {
	out := roots{map[ImageRef]struct{}{}, map[Hash]struct{}{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, p := range r.points {
		if !slices.Contains(ids, id) {
			out.add(p)
		}
	}
	r.addRunning(out)
	return out
}
