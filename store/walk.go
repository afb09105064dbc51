package store

import (
	"context"
	"errors"

	"github.com/cairn-backup/cairn/store/tree"
)

// errStop ends a walk that has seen enough.
var errStop = errors.New("stop")

// visit is called for runs of chunks that are all zeros or all data; leaf is the leaf a data run lies in.
type visit func(number, count int64, zero bool, leaf *tree.Node) error

// treeWalk goes through the chunks of an image in order. Runs do not cross leaves, except those of zero subtrees: the
// work is that of what is stored, whatever the size of the disk.
type treeWalk struct {
	r      *Repository
	chunks int64 // of the image
	visit  visit
	// lost is told of chunks below a node that cannot be read, and of why; without one, that ends the walk.
	lost func(first, count int64, err error) error
}

// walk visits all chunks of an image. lost may be nil.
func (r *Repository) walk(ctx context.Context, head tree.Head, fn visit, lost func(first, count int64, err error) error) error {
	w := &treeWalk{r: r, chunks: tree.Chunks(head.Size, int(head.ChunkBytes)), visit: fn, lost: lost}
	if w.chunks == 0 {
		return nil
	}
	return w.node(ctx, head.Top, head.Height-1, 0)
}

// walk is the repository's. If the packs have changed under it, it goes on behind the run it gave last.
func (i *ImageReader) walk(ctx context.Context, fn visit) error {
	ctx, leave, err := i.r.enter(ctx, "read image")
	if err != nil {
		return err
	}
	defer leave()
	next := int64(0)
	var own error
	err = i.current(ctx, func() error {
		err := i.r.walk(ctx, i.head, func(number, count int64, zero bool, leaf *tree.Node) error {
			if number < next {
				return nil
			}
			next = number + count
			if own = fn(number, count, zero, leaf); own != nil {
				return errStop
			}
			return nil
		}, nil)
		if own != nil {
			return errStop
		}
		return err
	})
	if own != nil {
		return own
	}
	return err
}

func (w *treeWalk) node(ctx context.Context, id Hash, level uint8, first int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	count := min(tree.FanOut*tree.Span(level), w.chunks-first)
	if id.IsZero() {
		return w.visit(first, count, true, nil)
	}
	n, err := w.r.node(ctx, id, level)
	switch {
	case err != nil && w.lost != nil:
		return w.lost(first, count, err)
	case err != nil:
		return err
	case level == 0:
		return w.leaf(n, first, count)
	}
	for i, child := range n.Children {
		at := first + int64(i)*tree.Span(level)
		if at >= w.chunks {
			break
		}
		if err := w.node(ctx, child, level-1, at); err != nil {
			return err
		}
	}
	return nil
}

func (w *treeWalk) leaf(n *tree.Node, first, count int64) error {
	for i := int64(0); i < count; {
		j := i + 1
		for j < count && n.Children[j].IsZero() == n.Children[i].IsZero() {
			j++
		}
		if err := w.visit(first+i, j-i, n.Children[i].IsZero(), n); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// eachLeaf calls fn with the leaves of an image that are not all zeros, from one number up to another, in order. It
// does not read them.
func (r *Repository) eachLeaf(ctx context.Context, head tree.Head, from, end int64, fn func(number int64, id Hash) error) error {
	if head.Height == 0 {
		return nil
	}
	return r.leavesBelow(ctx, head.Top, head.Height-1, 0, from, end, fn)
}

func (r *Repository) leavesBelow(ctx context.Context, id Hash, level uint8, first, from, end int64, fn func(int64, Hash) error) error {
	switch {
	case id.IsZero() || first >= end || first+tree.Span(level) <= from:
		return ctx.Err()
	case level == 0:
		return fn(first, id)
	}
	n, err := r.node(ctx, id, level)
	if err != nil {
		return err
	}
	for i, child := range n.Children {
		if err := r.leavesBelow(ctx, child, level-1, first+int64(i)*tree.Span(level-1), from, end, fn); err != nil {
			return err
		}
	}
	return nil
}
