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

// walk visits all chunks of an image in order. Runs do not cross leaves, except those of zero subtrees.
func (r *Repository) walk(ctx context.Context, head tree.Head, fn visit) error {
	chunks := tree.Chunks(head.Size, int(head.ChunkBytes))
	if chunks == 0 {
		return nil
	}
	return r.walkNode(ctx, head.Top, head.Height-1, 0, chunks, fn)
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
		})
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

func (r *Repository) walkNode(ctx context.Context, id Hash, level uint8, first, chunks int64, fn visit) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if id.IsZero() {
		return fn(first, min(tree.FanOut*tree.Span(level), chunks-first), true, nil)
	}
	n, err := r.node(ctx, id, level)
	if err != nil {
		return err
	}
	if level == 0 {
		return walkLeaf(n, first, min(tree.FanOut, chunks-first), fn)
	}
	for i := range int64(tree.FanOut) {
		at := first + i*tree.Span(level)
		if at >= chunks {
			break
		}
		if err := r.walkNode(ctx, n.Children[i], level-1, at, chunks, fn); err != nil {
			return err
		}
	}
	return nil
}

func walkLeaf(n *tree.Node, first, count int64, fn visit) error {
	for i := int64(0); i < count; {
		j := i + 1
		for j < count && n.Children[j].IsZero() == n.Children[i].IsZero() {
			j++
		}
		if err := fn(first+i, j-i, n.Children[i].IsZero(), n); err != nil {
			return err
		}
		i = j
	}
	return nil
}
