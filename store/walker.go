package store

import (
	"context"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// condition is what can be said of an object without reading it.
type condition uint8

const (
	proven   condition = iota
	unproven           // it is there
	lost               // no copy of it can be read
)

// knownChunks is how many chunks a walker remembers, in some 16 MiB: those of a leaf are mostly those of the leaf of the
// day before.
const knownChunks = 1 << 18

// walker finds the condition of what restore points need. It visits each tree node once.
type walker struct {
	r      *Repository
	bad    map[seal.ID]*packState
	proven func(seal.ID) bool // of a pack that is not bad; nil: all are
	nodes  map[Hash]condition
	chunks map[Hash]condition // of late, but those that are lost
	// mend, if there is one, is asked for what is lost. ok says that it is there again, and then p is the object if
	// it is not a chunk.
	mend func(ctx context.Context, typ pack.EntryType, id Hash) (p []byte, ok bool, err error)
}

func newWalker(r *Repository) *walker {
	return &walker{r: r, bad: map[seal.ID]*packState{}, nodes: map[Hash]condition{}, chunks: map[Hash]condition{}}
}

// touched returns the restore points that are not whole.
func (w *walker) touched(ctx context.Context) ([]TouchedPoint, error) {
	var out []TouchedPoint
	for _, p := range w.r.knownPoints() {
		t, c, err := w.point(ctx, p)
		if err != nil {
			return nil, err
		}
		if c == lost {
			out = append(out, t)
		}
	}
	return out, nil
}

func (w *walker) point(ctx context.Context, p *point) (t TouchedPoint, worst condition, err error) {
	t = TouchedPoint{RestorePoint: p.ID, Series: p.Series, Time: p.Time}
	for i, d := range p.Documents {
		c := proven
		for _, id := range p.pieces[i] {
			piece, err := w.object(ctx, pack.Document, id)
			if err != nil {
				return t, lost, err
			}
			c = max(c, piece)
		}
		if c == lost {
			t.Documents = append(t.Documents, d.Name)
		}
		worst = max(worst, c)
	}
	for _, im := range p.Images {
		c, err := w.image(ctx, im.Ref)
		if err == nil && c == lost {
			var touched TouchedImage
			touched, err = w.ranges(ctx, im)
			t.Images = append(t.Images, touched)
		}
		if err != nil {
			return t, lost, fault.Context("look at restore point", p.ID, err)
		}
		worst = max(worst, c)
	}
	return t, worst, nil
}

// object returns the condition of an object itself, not of what it names. A damaged one that is mended is proven.
func (w *walker) object(ctx context.Context, typ pack.EntryType, id Hash) (condition, error) {
	known := w.nodes
	if typ == pack.Chunk {
		known = w.chunks
	}
	if c, ok := known[id]; ok {
		return c, nil
	}
	c, err := w.copies(ctx, typ, id)
	if err == nil && c == lost && w.mend != nil {
		var ok bool
		if _, ok, err = w.mend(ctx, typ, id); ok {
			c = proven
		}
	}
	if err == nil && typ == pack.Document {
		w.nodes[id] = c
	}
	if err == nil && typ == pack.Chunk && c != lost {
		if len(w.chunks) >= knownChunks {
			clear(w.chunks)
		}
		w.chunks[id] = c
	}
	return c, err
}

// load returns a node or head with its condition, and without its bytes if it is lost.
func (w *walker) load(ctx context.Context, typ pack.EntryType, id Hash) (p []byte, c condition, err error) {
	if c, err = w.copies(ctx, typ, id); err != nil {
		return nil, c, err
	}
	if c != lost {
		p, err = w.r.object(ctx, typ, id)
		if err != nil && !damaged(err) {
			return nil, c, err
		}
		if err == nil {
			return p, c, nil
		}
	}
	if w.mend != nil {
		p, ok, err := w.mend(ctx, typ, id)
		if ok || err != nil {
			return p, proven, err
		}
	}
	return nil, lost, nil
}

// copies returns the condition of the best copy of an object.
func (w *walker) copies(ctx context.Context, typ pack.EntryType, id Hash) (condition, error) {
	if err := ctx.Err(); err != nil {
		return lost, err
	}
	var buf [4]index.Location
	places, err := w.r.idx.Lookup(buf[:0], id)
	if err != nil {
		return lost, fault.Wrap(fault.Internal, "look up", id.Short(), err)
	}
	best := lost
	for _, at := range places {
		c := w.at(at)
		if c < best && at.Refs {
			refs, err := w.refs(ctx, at)
			if err != nil {
				return lost, err
			}
			c = max(c, refs)
		}
		if best = min(best, c); best == proven {
			break
		}
	}
	return best, nil
}

// at returns the condition of the bytes of one copy.
func (w *walker) at(at index.Location) condition {
	st := w.bad[at.Pack]
	switch {
	case st.lost(at.Slot):
		return lost
	case st == nil && w.proven != nil && !w.proven(at.Pack):
		return unproven
	}
	return proven
}

// refs returns the condition of the blocks that a copy refers to.
func (w *walker) refs(ctx context.Context, at index.Location) (condition, error) {
	_, e, err := w.r.entry(ctx, at)
	if err != nil && !damaged(err) {
		return lost, err
	}
	if err != nil {
		return lost, nil
	}
	worst := proven
	for target, blocks := range targets(e.Refs) {
		c, err := w.holder(ctx, target, blocks)
		if err != nil {
			return lost, err
		}
		worst = max(worst, c)
	}
	return worst, nil
}

// targets returns the blocks that are needed of each chunk referred to.
func targets(refs []pack.Ref) map[Hash]uint64 {
	out := map[Hash]uint64{}
	for _, ref := range refs {
		out[ref.Target] |= 1 << ref.Block
	}
	return out
}

// holder returns the condition of blocks of a chunk, which may lie in several copies.
func (w *walker) holder(ctx context.Context, target Hash, blocks uint64) (condition, error) {
	var buf [4]index.Location
	places, err := w.r.idx.Lookup(buf[:0], target)
	if err != nil {
		return lost, fault.Wrap(fault.Internal, "look up", target.Short(), err)
	}
	var have [lost]uint64 // blocks by condition
	for _, at := range places {
		c := w.at(at)
		if c == lost {
			continue
		}
		_, e, err := w.r.entry(ctx, at)
		if err != nil && !damaged(err) {
			return lost, err
		}
		if err == nil && e.Type == pack.Chunk && e.ID == target {
			have[c] |= e.Present
		}
	}
	switch {
	case blocks&^have[proven] == 0:
		return proven, nil
	case blocks&^(have[proven]|have[unproven]) == 0:
		return unproven, nil
	}
	return lost, nil
}

// image returns the worst condition of anything an image needs.
func (w *walker) image(ctx context.Context, ref ImageRef) (condition, error) {
	if c, ok := w.nodes[ref.Root]; ok {
		return c, nil
	}
	p, c, err := w.load(ctx, pack.Image, ref.Root)
	if err != nil {
		return lost, err
	}
	if c != lost {
		head, err := w.r.parseHead(ref, p)
		if err != nil {
			return lost, err
		}
		if head.Height > 0 && !head.Top.IsZero() {
			below, err := w.node(ctx, head.Top, head.Height-1)
			if err != nil {
				return lost, err
			}
			c = max(c, below)
		}
	}
	w.nodes[ref.Root] = c
	return c, nil
}

// node returns the worst condition of a node and anything below it.
func (w *walker) node(ctx context.Context, id Hash, level uint8) (condition, error) {
	if c, ok := w.nodes[id]; ok {
		return c, nil
	}
	p, worst, err := w.load(ctx, pack.Node, id)
	if err != nil {
		return lost, err
	}
	if worst != lost {
		n, err := tree.Parse(p, level)
		if err != nil {
			return lost, fault.Wrap(fault.Corrupt, "read tree node", id.Short(), err)
		}
		for _, child := range n.Children {
			if child.IsZero() {
				continue
			}
			var c condition
			if level > 0 {
				c, err = w.node(ctx, child, level-1)
			} else {
				c, err = w.object(ctx, pack.Chunk, child)
			}
			if err != nil {
				return lost, err
			}
			worst = max(worst, c)
		}
	}
	w.nodes[id] = worst
	return worst, nil
}
