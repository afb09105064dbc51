package store

import (
	"context"
	"io"
	"iter"
	"sync"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/tree"
)

// ImageReader reads one image. Its methods may be called from several goroutines. While it is open, a Collect of the
// same process keeps what it needs, even if the restore point is pruned.
type ImageReader struct {
	r     *Repository
	ref   ImageRef
	head  tree.Head
	close func()
}

// OpenImage opens an image of a restore point. The caller closes it.
func (r *Repository) OpenImage(ctx context.Context, ref ImageRef) (*ImageReader, error) {
	ctx, leave, err := r.enter(ctx, "open image")
	if err != nil {
		return nil, err
	}
	defer leave()
	r.gc.RLock()
	r.mu.Lock()
	r.reading[ref]++
	r.mu.Unlock()
	r.gc.RUnlock()
	i := &ImageReader{r: r, ref: ref, close: sync.OnceFunc(func() { r.doneReading(ref) })}
	var head tree.Head
	err = i.current(ctx, func() (err error) {
		head, err = r.imageHead(ctx, ref)
		return err
	})
	if err != nil {
		i.close()
		return nil, err
	}
	i.head = head
	return i, nil
}

func (r *Repository) doneReading(ref ImageRef) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reading[ref]--; r.reading[ref] == 0 {
		delete(r.reading, ref)
	}
}

// imageHead reads and proves the head of an image.
func (r *Repository) imageHead(ctx context.Context, ref ImageRef) (tree.Head, error) {
	p, err := r.object(ctx, pack.Image, ref.Root)
	if err != nil {
		return tree.Head{}, fault.Context("open image", ref.Root.Short(), err)
	}
	return r.parseHead(ref, p)
}

// parseHead decodes the head of an image and compares it with what is known of the image.
func (r *Repository) parseHead(ref ImageRef, p []byte) (tree.Head, error) {
	head, err := tree.ParseHead(p)
	if err != nil {
		return tree.Head{}, fault.Wrap(fault.Corrupt, "open image", ref.Root.Short(), err)
	}
	if head.Size != ref.SizeBytes || int(head.ChunkBytes) != r.config.ChunkBytes {
		return tree.Head{}, fault.New(fault.Corrupt, "open image", ref.Root.Short(), "it has %d bytes in chunks of %d, not %d in chunks of %d",
			head.Size, head.ChunkBytes, ref.SizeBytes, r.config.ChunkBytes)
	}
	return head, nil
}

// Size returns the image's size in bytes.
func (i *ImageReader) Size() int64 { return i.head.Size }

// ChunkBytes returns the size of chunks; reads of whole chunks cost least.
func (i *ImageReader) ChunkBytes() int { return int(i.head.ChunkBytes) }

// Close ends the reading.
func (i *ImageReader) Close() error {
	i.close()
	return nil
}

// ReadAt implements io.ReaderAt. Every byte it returns is proven.
func (i *ImageReader) ReadAt(p []byte, off int64) (int, error) {
	return i.read(context.Background(), p, off)
}

func (i *ImageReader) read(ctx context.Context, p []byte, off int64) (n int, err error) {
	ctx, leave, err := i.r.enter(ctx, "read image")
	if err != nil {
		return 0, err
	}
	defer leave()
	if off < 0 {
		return 0, fault.New(fault.Invalid, "read image", i.ref.Root.Short(), "offset %d", off)
	}
	if off >= i.head.Size {
		return 0, io.EOF
	}
	if rest := i.head.Size - off; int64(len(p)) > rest {
		p, err = p[:rest], io.EOF
	}
	size := int64(i.head.ChunkBytes)
	for n < len(p) {
		number, from := off/size, off%size
		part := p[n:min(len(p), n+int(size-from))]
		if err := i.current(ctx, func() error { return i.readPart(ctx, number, from, part) }); err != nil {
			return n, fault.Context("read image", i.ref.Root.Short(), err)
		}
		n += len(part)
		off += int64(len(part))
	}
	return n, err
}

// readPart reads a part of one chunk.
func (i *ImageReader) readPart(ctx context.Context, number, from int64, dst []byte) error {
	id, err := i.r.chunkID(ctx, i.head, number)
	if err != nil {
		return err
	}
	switch {
	case id.IsZero():
		clear(dst)
		return nil
	case len(dst) == int(i.head.ChunkBytes):
		return i.r.chunk(ctx, id, dst)
	}
	whole := make([]byte, i.head.ChunkBytes)
	if err := i.r.chunk(ctx, id, whole); err != nil {
		return err
	}
	copy(dst, whole[from:])
	return nil
}

// chunkID walks from the top to a chunk; the zero hash is a chunk of zeros.
func (r *Repository) chunkID(ctx context.Context, head tree.Head, number int64) (Hash, error) {
	leaf, err := r.leaf(ctx, head, number/tree.FanOut)
	if err != nil || leaf == nil {
		return Hash{}, err
	}
	return leaf.Children[number%tree.FanOut], nil
}

// leaf returns a leaf of an image, nil if it is all zeros or beyond the end.
func (r *Repository) leaf(ctx context.Context, head tree.Head, number int64) (*tree.Node, error) {
	if head.Height == 0 || number < 0 || number >= tree.Span(head.Height-1) {
		return nil, nil
	}
	id := head.Top
	for level := head.Height - 1; ; level-- {
		if id.IsZero() {
			return nil, nil
		}
		n, err := r.node(ctx, id, level)
		if err != nil {
			return nil, err
		}
		if level == 0 {
			return n, nil
		}
		id = n.Children[number/tree.Span(level-1)%tree.FanOut]
	}
}

// Extents yields data and zero ranges in ascending order, covering the image without gap. After an error it stops.
func (i *ImageReader) Extents(ctx context.Context) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		var cur Extent
		stop := false
		err := i.walk(ctx, func(number, count int64, zero bool, _ *tree.Node) error {
			off, length := i.head.Range(number, count)
			if cur.Length > 0 && cur.Zero == zero {
				cur.Length += length
				return nil
			}
			if cur.Length > 0 && !yield(cur, nil) {
				stop = true
				return errStop
			}
			cur = Extent{Offset: off, Length: length, Zero: zero}
			return nil
		})
		switch {
		case stop:
		case err != nil:
			yield(Extent{}, fault.Context("read image", i.ref.Root.Short(), err))
		case cur.Length > 0:
			yield(cur, nil)
		}
	}
}
