package store

import (
	"context"
	"fmt"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
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

// touchedBy returns what is not whole because of damaged packs. Beside a collect, what it takes away could look like
// a loss, so a loss counts only if it is found without one.
func (r *Repository) touchedBy(ctx context.Context, bad map[seal.ID]*packState) ([]TouchedPoint, error) {
	w := newWalker(r)
	w.bad = bad
	first, err := w.touched(ctx)
	if err == nil && len(first) == 0 {
		return nil, nil
	}
	r.collecting.Lock()
	defer r.collecting.Unlock()
	if err := r.refresh(ctx); err != nil && fault.KindOf(err) != fault.Corrupt {
		return nil, err
	}
	w = newWalker(r)
	w.bad = bad
	out, err := w.touched(ctx)
	if err != nil {
		return nil, fmt.Errorf("find what is touched: %w", err)
	}
	return out, nil
}
