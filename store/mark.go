package store

import (
	"context"
	"math/bits"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// marker finds what images and documents need, entry by entry. Any error makes its result worthless.
type marker struct {
	r     *Repository
	fresh bool // look at every leaf; else what the index keeps of leaves looked at before is good enough
	packs map[seal.ID]*live
	seen  map[Hash]struct{} // inner nodes, heads and document pieces
	spans []index.Span
}

// live says which entries of a pack are needed.
type live struct {
	bits  []uint64
	count uint32
}

func (l *live) has(slot uint32) bool {
	return l != nil && int(slot/64) < len(l.bits) && l.bits[slot/64]&(1<<(slot%64)) != 0
}

// add marks a run of slots.
func (l *live) add(from, count uint32) {
	if need := int((from + count + 63) / 64); need > len(l.bits) {
		l.bits = append(l.bits, make([]uint64, need-len(l.bits))...)
	}
	for ; count > 0 && from%64 != 0; from, count = from+1, count-1 {
		l.addOne(from)
	}
	for ; count >= 64; from, count = from+64, count-64 {
		l.count += 64 - uint32(bits.OnesCount64(l.bits[from/64]))
		l.bits[from/64] = ^uint64(0)
	}
	for ; count > 0; from, count = from+1, count-1 {
		l.addOne(from)
	}
}

func (l *live) addOne(slot uint32) {
	if bit := uint64(1) << (slot % 64); l.bits[slot/64]&bit == 0 {
		l.bits[slot/64] |= bit
		l.count++
	}
}

func newMarker(r *Repository) *marker {
	return &marker{r: r, packs: map[seal.ID]*live{}, seen: map[Hash]struct{}{}}
}

func (m *marker) add(s index.Span) {
	l := m.packs[s.Pack]
	if l == nil {
		l = &live{}
		m.packs[s.Pack] = l
	}
	l.add(s.From, s.Count)
}

// first marks an object and reports whether it is the first time.
func (m *marker) first(id Hash) (bool, error) {
	if _, ok := m.seen[id]; ok {
		return false, nil
	}
	m.seen[id] = struct{}{}
	places, err := m.r.copies(id)
	if err != nil {
		return true, err
	}
	for _, at := range places {
		m.add(index.Span{Pack: at.Pack, From: at.Slot, Count: 1})
	}
	return true, nil
}

// copies returns where an object is; that it is nowhere is an error.
func (r *Repository) copies(id Hash) (places []index.Location, err error) {
	err = r.moving(id, func(at []index.Location) error {
		places = at
		if len(at) == 0 {
			return missing(id.Short())
		}
		return nil
	})
	return places, err
}

// moving calls use with the places of an object, and again if they changed while it failed: a compaction may have put
// the object elsewhere meanwhile. The places are use's to keep.
func (r *Repository) moving(id Hash, use func([]index.Location) error) error {
	places, err := r.lookup(id)
	if err != nil {
		return err
	}
	for {
		useErr := use(places)
		if useErr == nil || !damaged(useErr) {
			return useErr
		}
		now, err := r.lookup(id)
		if err != nil {
			return err
		}
		if slices.Equal(places, now) && r.catchUp(false) {
			if now, err = r.lookup(id); err != nil {
				return err
			}
		}
		if slices.Equal(places, now) {
			return useErr
		}
		places = now
	}
}

func (r *Repository) lookup(id Hash) ([]index.Location, error) {
	places, err := r.idx.Lookup(nil, id)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "look up", id.Short(), err)
	}
	return places, nil
}

// image marks everything an image needs.
func (m *marker) image(ctx context.Context, ref ImageRef) error {
	if first, err := m.first(ref.Root); !first || err != nil {
		return err
	}
	head, err := m.r.imageHead(ctx, ref)
	if err != nil {
		return err
	}
	if head.Height == 0 || head.Top.IsZero() {
		return nil
	}
	return m.node(ctx, head.Top, head.Height-1)
}

func (m *marker) node(ctx context.Context, id Hash, level uint8) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if level == 0 {
		return m.leaf(ctx, id)
	}
	if first, err := m.first(id); !first || err != nil {
		return err
	}
	n, err := m.r.node(ctx, id, level)
	if err != nil {
		return err
	}
	for _, child := range n.Children {
		if child.IsZero() {
			continue
		}
		if err := m.node(ctx, child, level-1); err != nil {
			return err
		}
	}
	return nil
}

// leaf marks a leaf and what its chunks need. One whose own entry is marked was marked before.
func (m *marker) leaf(ctx context.Context, id Hash) error {
	spans, err := m.r.leafNeeds(ctx, m.spans[:0], id, m.fresh)
	if err != nil {
		return err
	}
	m.spans = spans
	if m.packs[spans[0].Pack].has(spans[0].From) {
		return nil
	}
	for _, s := range spans {
		m.add(s)
	}
	return nil
}

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

// roots are what must be kept now.
type roots struct {
	images    map[ImageRef]struct{}
	documents map[Hash]struct{}
}

// roots returns what restore points, sessions and readers of this process rely on.
func (r *Repository) roots() roots {
	out := roots{map[ImageRef]struct{}{}, map[Hash]struct{}{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.points {
		out.add(p)
	}
	r.addRunning(out)
	return out
}

func (rs roots) add(p *point) {
	for _, im := range p.Images {
		rs.images[im.Ref] = struct{}{}
	}
	for _, pieces := range p.pieces {
		for _, id := range pieces {
			rs.documents[id] = struct{}{}
		}
	}
}

// addRunning adds what sessions and readers rely on. r.mu is held.
func (r *Repository) addRunning(out roots) {
	for s := range r.sessions {
		s.mu.Lock()
		for ref := range s.images {
			out.images[ref] = struct{}{}
		}
		s.mu.Unlock()
	}
	for ref := range r.reading {
		out.images[ref] = struct{}{}
	}
}

// unmarked returns the part of the roots not marked yet.
func (m *marker) unmarked(all roots) roots {
	out := roots{map[ImageRef]struct{}{}, map[Hash]struct{}{}}
	for ref := range all.images {
		if _, ok := m.seen[ref.Root]; !ok {
			out.images[ref] = struct{}{}
		}
	}
	for id := range all.documents {
		if _, ok := m.seen[id]; !ok {
			out.documents[id] = struct{}{}
		}
	}
	return out
}

func (m *marker) mark(ctx context.Context, rs roots) error {
	for ref := range rs.images {
		if err := m.image(ctx, ref); err != nil {
			return fault.Context("mark image", ref.Root.Short(), err)
		}
	}
	for id := range rs.documents {
		if _, err := m.first(id); err != nil {
			return err
		}
	}
	return nil
}
