package store

import (
	"context"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// marker finds the packs that images and documents need. Any error makes its result worthless.
type marker struct {
	r     *Repository
	packs map[seal.ID]struct{}
	seen  map[Hash]struct{} // nodes, heads and document pieces
}

func newMarker(r *Repository) *marker {
	return &marker{r: r, packs: map[seal.ID]struct{}{}, seen: map[Hash]struct{}{}}
}

// first marks an object and reports whether it is the first time.
func (m *marker) first(id Hash) (bool, error) {
	if _, ok := m.seen[id]; ok {
		return false, nil
	}
	m.seen[id] = struct{}{}
	places, err := m.r.idx.Lookup(nil, id)
	if err != nil {
		return true, fault.Wrap(fault.Internal, "look up", id.Short(), err)
	}
	if len(places) == 0 {
		return true, missing(id.Short())
	}
	for _, at := range places {
		m.packs[at.Pack] = struct{}{}
	}
	return true, nil
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
	if first, err := m.first(id); !first || err != nil {
		return err
	}
	n, err := m.r.node(ctx, id, level)
	if err != nil {
		return err
	}
	for _, child := range n.Children {
		switch {
		case child.IsZero():
		case level > 0:
			if err := m.node(ctx, child, level-1); err != nil {
				return err
			}
		default:
			if err := m.chunk(ctx, child); err != nil {
				return err
			}
		}
	}
	return nil
}

// chunk marks every copy of a chunk that can be put together, and what its references need.
func (m *marker) chunk(ctx context.Context, id Hash) error {
	places, err := m.r.idx.Lookup(nil, id)
	if err != nil {
		return fault.Wrap(fault.Internal, "look up", id.Short(), err)
	}
	whole := false
	var damage error
	for _, at := range places {
		needs, ok, err := m.r.needs(ctx, at)
		if err != nil && !damaged(err) {
			return err
		}
		if err != nil { // kept, but it needs another copy beside it
			m.packs[at.Pack], damage = struct{}{}, err
			continue
		}
		if !ok {
			continue
		}
		whole = true
		for _, p := range needs {
			m.packs[p] = struct{}{}
		}
	}
	switch {
	case whole:
		return nil
	case damage != nil:
		return damage
	}
	return missing("chunk " + id.Short())
}

func missing(what string) error {
	return fault.New(fault.Corrupt, "mark", what, "no pack has it").Explain(
		"A restore point needs something that is not in the repository any more.",
		"Run a check to see which restore points are damaged; put missing packs back from a copy, or prune those restore points.")
}

// needs returns the packs that a stored copy of a chunk needs: its own, and for each reference those where the block
// physically is. ok is false if a block is nowhere: the copy is a remainder of something collected.
func (r *Repository) needs(ctx context.Context, at index.Location) (packs []seal.ID, ok bool, err error) {
	packs = append(packs, at.Pack)
	if !at.Refs {
		return packs, true, nil
	}
	_, e, err := r.entry(ctx, at)
	if err != nil {
		return nil, false, err
	}
	for i, ref := range e.Refs {
		if i > 0 && ref == e.Refs[i-1] {
			continue
		}
		holders, err := r.holders(ctx, ref)
		if err != nil {
			return nil, false, err
		}
		if len(holders) == 0 {
			return nil, false, nil
		}
		packs = append(packs, holders...)
	}
	return packs, true, nil
}

// holders returns the packs that physically have a block that is referred to. If there are any, it also returns those
// too damaged to say.
func (r *Repository) holders(ctx context.Context, ref pack.Ref) (packs []seal.ID, err error) {
	var buf [4]index.Location
	places, err := r.idx.Lookup(buf[:0], ref.Target)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "look up", ref.Target.Short(), err)
	}
	var unread []seal.ID
	var damage error
	for _, at := range places {
		_, e, err := r.entry(ctx, at)
		if err != nil && !damaged(err) {
			return nil, err
		}
		if err != nil {
			unread, damage = append(unread, at.Pack), err
			continue
		}
		if _, ok := blockAt(e, ref.Block); ok && e.Type == pack.Chunk && e.ID == ref.Target {
			packs = append(packs, at.Pack)
		}
	}
	if len(packs) == 0 {
		return nil, damage
	}
	return append(packs, unread...), nil
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
		for _, im := range p.Images {
			out.images[im.Ref] = struct{}{}
		}
		for _, pieces := range p.pieces {
			for _, id := range pieces {
				out.documents[id] = struct{}{}
			}
		}
	}
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
	return out
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
