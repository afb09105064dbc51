package store

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/carry"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/tree"
)

// ImageWriter writes one image. Write and Zero may be called from several goroutines for ranges that do not overlap.
// A failed call is final for the whole session.
type ImageWriter struct {
	s      *Session
	o      ImageOptions
	key    string
	size   int64
	chunks int64
	parent *tree.Head
	carry  *carry.Writer

	maxDirty int
	spilling sync.Mutex

	mu       sync.Mutex
	leaves   map[int64]*leaf
	done     map[int64]Hash // leaves stored already
	tick     uint64
	finished bool
	ref      *ImageRef // once it is finished

	// Of an image whose content is carried by another process.
	carrier *Carrier
	there   []uint64           // bitmap of chunks that are in the image, durably
	owed    map[int64]struct{} // chunks that a carrier before was asked for and did not deliver
	anew    int                // times that it was begun anew

	// Of an image of a resumable session.
	journal    bool
	ordinal    uint32 // of the image in its session
	notes      []note // what is in no record yet
	journaling sync.Mutex
	record     uint32 // the last one; journaling guards it

	written, zero, fresh, stored, given, new, refs atomic.Int64
}

// NewImage starts an image.
func (s *Session) NewImage(ctx context.Context, o ImageOptions) (*ImageWriter, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	if o.SizeBytes < 0 {
		return nil, fault.New(fault.Invalid, "begin image", s.o.Series, "a size of %d bytes", o.SizeBytes)
	}
	w := &ImageWriter{
		s: s, o: o, size: o.SizeBytes, chunks: tree.Chunks(o.SizeBytes, s.r.config.ChunkBytes),
		maxDirty: maxDirtyLeaves, leaves: map[int64]*leaf{}, done: map[int64]Hash{},
	}
	// Chunks are decided about one by one: asking costs nothing here, and what was hashed is in the cache still.
	w.carry = carry.New(carry.Options{
		Hasher: s.r.hasher.Content, ChunkBytes: s.r.config.ChunkBytes, FrameBytes: s.r.coding.Load().how.FrameBytes(), Group: 1, Store: w.storeFrame,
	})
	if o.Parent == nil {
		return w, nil
	}
	if !s.r.keep(s, *o.Parent) {
		return nil, fault.New(fault.NotFound, "begin image", o.Parent.Root.Short(), "the parent image is in no restore point").Explain(
			"The restore point that this backup would build on is not in the repository any more.", "Read the whole disk.")
	}
	head, err := s.r.imageHead(ctx, *o.Parent)
	if err != nil {
		return nil, err
	}
	w.parent = &head
	return w, nil
}

// keep makes the session rely on an image, if a restore point or the session itself has it.
func (r *Repository) keep(s *Session, ref ImageRef) bool {
	r.gc.RLock()
	defer r.gc.RUnlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.images[ref]; ok {
		return true
	}
	for _, p := range r.points {
		for _, im := range p.Images {
			if im.Ref == ref {
				s.images[ref] = struct{}{}
				return true
			}
		}
	}
	return false
}

// ChunkBytes returns the alignment of Write and Zero.
func (w *ImageWriter) ChunkBytes() int { return w.s.r.config.ChunkBytes }

// FrameBytes is the size up to which what follows each other on the disk and is given to one Write is compressed together.
func (w *ImageWriter) FrameBytes() int { return w.carry.FrameBytes() }

// Stats returns the counts so far.
func (w *ImageWriter) Stats() ImageStats {
	return ImageStats{
		BytesWritten: w.written.Load(), BytesZero: w.zero.Load(), BytesNew: w.fresh.Load(), BytesStored: w.stored.Load(),
		Chunks: w.given.Load(), ChunksNew: w.new.Load(), ChunksRefs: w.refs.Load(),
	}
}

// check answers why a range cannot be written.
func (w *ImageWriter) check(op string, off, n int64) error {
	size := int64(w.ChunkBytes())
	if off < 0 || n < 0 || off > w.size || n > w.size-off || off%size != 0 || (n%size != 0 && off+n != w.size) {
		return fault.New(fault.Invalid, op, "", "range %d+%d of an image of %d bytes, in chunks of %d", off, n, w.size, size)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.finished {
		return fault.New(fault.Conflict, op, "", "the image is finished")
	}
	return nil
}

// Write gives the content of a range. Hashing, compressing and sealing happen in the caller's goroutine.
func (w *ImageWriter) Write(ctx context.Context, off int64, p []byte) error {
	if err := w.check("write image", off, int64(len(p))); err != nil {
		return err
	}
	if err := w.s.enter(); err != nil {
		return err
	}
	defer w.s.leave()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.carry.Write(ctx, &local{w: w}, off/int64(w.ChunkBytes()), p); err != nil {
		return w.s.fail(err)
	}
	w.written.Add(int64(len(p)))
	return nil
}

// storeFrame is what the writer's frames are given to.
func (w *ImageWriter) storeFrame(ctx context.Context, plain []byte, items []pack.Item) error {
	n, err := w.s.storeFrame(ctx, pack.Data, &frame{plain, items})
	w.stored.Add(int64(n))
	return err
}

// Zero says that a range is all zeros. It costs next to nothing however long the range is.
func (w *ImageWriter) Zero(ctx context.Context, off, n int64) error {
	if err := w.check("write image", off, n); err != nil {
		return err
	}
	if err := w.s.enter(); err != nil {
		return err
	}
	defer w.s.leave()
	return w.zeroRange(ctx, off, n)
}

// zeroRange is Zero for a range that is in the image.
func (w *ImageWriter) zeroRange(ctx context.Context, off, n int64) error {
	size := int64(w.ChunkBytes())
	last := tree.Chunks(off+n, int(size))
	for number := off / size; number < last; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if first, end := w.wholeLeaves(number, last); first < end {
			if err := w.zeroLeaves(ctx, first, end); err != nil {
				return w.s.fail(err)
			}
			number = min(end*tree.FanOut, last)
			continue
		}
		if err := w.setLeaf(ctx, number, Hash{}); err != nil {
			return w.s.fail(err)
		}
		number++
	}
	w.written.Add(n)
	w.zero.Add(n)
	return nil
}

// Finish stores what is left and the tree over it. Ranges never written are as in the parent, or zeros.
func (w *ImageWriter) Finish(ctx context.Context) (ImageRef, error) {
	if err := w.s.enter(); err != nil {
		return ImageRef{}, err
	}
	defer w.s.leave()
	if err := w.check("finish image", 0, 0); err != nil {
		return ImageRef{}, err
	}
	ref, err := w.finish(ctx)
	if err != nil {
		return ImageRef{}, w.s.fail(err)
	}
	return ref, nil
}

func (w *ImageWriter) finish(ctx context.Context) (ImageRef, error) {
	if err := w.trimTail(ctx); err != nil {
		return ImageRef{}, err
	}
	w.mu.Lock()
	w.finished = true
	w.mu.Unlock()
	if err := w.carry.Flush(ctx); err != nil {
		return ImageRef{}, err
	}
	fault.Point("store.image.data-stored")
	top, err := w.buildTree(ctx)
	if err != nil {
		return ImageRef{}, err
	}
	fault.Point("store.image.tree-stored")
	head := tree.Head{Size: w.size, ChunkBytes: uint32(w.ChunkBytes()), Height: tree.Height(w.size, w.ChunkBytes()), Top: top}
	root, err := w.s.putObject(ctx, pack.Image, head.Append(nil))
	if err != nil {
		return ImageRef{}, err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	ref := ImageRef{Root: root, SizeBytes: w.size}
	w.s.finished[ref] = struct{}{}
	w.ref = &ref
	return ref, nil
}
