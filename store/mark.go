package store

import (
	"context"
	"math/bits"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/seal"
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
