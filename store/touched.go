package store

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// maxListedRanges is how many ranges of an image are listed; all are counted.
const maxListedRanges = 100

// Range is a part of an image, in bytes.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// TouchedImage is a disk that is not whole.
type TouchedImage struct {
	Name   string  `json:"name"`
	Bytes  int64   `json:"bytes"`  // that cannot be read
	Count  int     `json:"count"`  // of ranges
	Ranges []Range `json:"ranges"` // in ascending order, not adjacent; the first 100
}

// TouchedPoint is a restore point that is not whole.
type TouchedPoint struct {
	RestorePoint string         `json:"restore_point"`
	Series       string         `json:"series"`
	Time         time.Time      `json:"time"` // the instant the disks were frozen
	Images       []TouchedImage `json:"images,omitempty"`
	Documents    []string       `json:"documents,omitempty"`
}

// Touched returns the restore points that would not be whole if these packs, named as in reports, could not be read,
// ordered by series and time. What another pack has a good copy of is not touched; what is missing already is. It
// reads trees, not disk data.
func (r *Repository) Touched(ctx context.Context, packs ...string) ([]TouchedPoint, error) {
	ctx, leave, err := r.enter(ctx, "find what is touched")
	if err != nil {
		return nil, err
	}
	defer leave()
	bad := map[seal.ID]*packState{}
	for _, name := range packs {
		id, err := pack.ParseName(name)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, "find what is touched", name, err)
		}
		bad[id] = &packState{gone: true}
	}
	if err := r.refresh(ctx); err != nil && fault.KindOf(err) != fault.Corrupt {
		return nil, err
	}
	return r.touchedBy(ctx, bad)
}

// condition is what can be said of an object without reading it.
type condition uint8

const (
	proven   condition = iota
	unproven           // it is there
	lost               // no copy of it can be read
)

// walker finds the condition of what restore points need. It visits each tree node once.
type walker struct {
	r      *Repository
	bad    map[seal.ID]*packState
	proven func(seal.ID) bool // of a pack that is not bad; nil: all are
	nodes  map[Hash]condition
	// mend, if there is one, is asked for what is lost. ok says that it is there again, and then p is the object if
	// it is not a chunk.
	mend func(ctx context.Context, typ pack.EntryType, id Hash) (p []byte, ok bool, err error)
}

func newWalker(r *Repository) *walker {
	return &walker{r: r, bad: map[seal.ID]*packState{}, nodes: map[Hash]condition{}}
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

// knownPoints returns the restore points that are known, by series and time.
func (r *Repository) knownPoints() []*point {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*point, 0, len(r.points))
	for _, p := range r.points {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *point) int {
		return cmp.Or(cmp.Compare(a.Series, b.Series), a.Time.Compare(b.Time), cmp.Compare(a.ID, b.ID))
	})
	return out
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
	if c, ok := w.nodes[id]; ok && typ != pack.Chunk {
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

// ranges lists what is lost of an image that image has looked at.
func (w *walker) ranges(ctx context.Context, im NamedImage) (TouchedImage, error) {
	l := &rangeList{out: TouchedImage{Name: im.Name, Ranges: []Range{}}}
	err := w.imageRanges(ctx, im.Ref, l)
	l.end()
	return l.out, err
}

func (w *walker) imageRanges(ctx context.Context, ref ImageRef, l *rangeList) error {
	p, err := w.r.object(ctx, pack.Image, ref.Root)
	if c, copiesErr := w.copies(ctx, pack.Image, ref.Root); copiesErr != nil || c == lost || (err != nil && damaged(err)) {
		l.add(0, ref.SizeBytes)
		return copiesErr
	}
	if err != nil {
		return err
	}
	head, err := w.r.parseHead(ref, p)
	if err != nil {
		return err
	}
	l.head = head
	return w.nodeRanges(ctx, head.Top, head.Height-1, 0, l)
}

func (w *walker) nodeRanges(ctx context.Context, id Hash, level uint8, first int64, l *rangeList) error {
	n, c, err := (*tree.Node)(nil), lost, error(nil)
	if c, err = w.copies(ctx, pack.Node, id); err == nil && c != lost {
		n, err = w.r.node(ctx, id, level)
	}
	if err != nil && !damaged(err) {
		return err
	}
	if n == nil {
		l.chunks(first, tree.FanOut*tree.Span(level))
		return nil
	}
	for i, child := range n.Children {
		if child.IsZero() {
			continue
		}
		at := first + int64(i)*tree.Span(level)
		if level > 0 {
			if w.nodes[child] == lost {
				err = w.nodeRanges(ctx, child, level-1, at, l)
			}
		} else if c, err = w.object(ctx, pack.Chunk, child); err == nil && c == lost {
			l.chunks(at, 1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rangeList joins what follows each other.
type rangeList struct {
	out  TouchedImage
	head tree.Head
	cur  Range
}

func (l *rangeList) chunks(first, count int64) { l.add(l.head.Range(first, count)) }

func (l *rangeList) add(off, length int64) {
	if l.cur.Length > 0 && l.cur.Offset+l.cur.Length == off {
		l.cur.Length += length
		return
	}
	l.end()
	l.cur = Range{off, length}
}

func (l *rangeList) end() {
	if l.cur.Length == 0 {
		return
	}
	l.out.Bytes += l.cur.Length
	l.out.Count++
	if len(l.out.Ranges) < maxListedRanges {
		l.out.Ranges = append(l.out.Ranges, l.cur)
	}
	l.cur = Range{}
}
