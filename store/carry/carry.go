package carry

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
)

// Chunk is a chunk of an image, whose content the writer has at hand.
type Chunk struct {
	Number int64      // in the image
	ID     chunk.Hash // the zero hash: it is all zeros
	Store  bool       // the answer: the caller is to store its content
}

// Placing is a chunk to be stored. Its entry says which of its blocks are zeros, and all others are present; the answer
// takes away from these what is to be found elsewhere, or says that all of it is stored already.
type Placing struct {
	Number int64
	pack.Item
	Known bool // the answer: nothing of it is to be given to a frame
}

// Decider says what is to be stored of an image. Its methods may be called from several goroutines, but those of one
// Write are called one after the other.
type Decider interface {
	// Look records the chunks and sets Store of those that are to be stored: a content is asked for once.
	Look(ctx context.Context, chunks []Chunk) error
	// Place decides how chunks are stored that Look asked for: it narrows Present and sets Refs. What is left has to be
	// given to a frame. A Decider that does not take the caller's word for having a content asks for more in Look, and
	// sets Known here.
	Place(ctx context.Context, placings []Placing) error
}

// Store takes a frame. Neither plain nor items are kept after it returns.
type Store func(ctx context.Context, plain []byte, items []pack.Item) error

// Writer makes frames of what is new in one image. Write may be called from several goroutines.
type Writer struct {
	o Options

	mu      sync.Mutex
	partial []*frame
}

// Options of a Writer.
type Options struct {
	Hasher     *chunk.Content
	ChunkBytes int
	FrameBytes int // plaintext that a frame of chunks that follow each other is filled up to
	Group      int // chunks asked about at once; 0 is all of a Write
	Store      Store
}

// PieceFrame is what a frame of chunks and blocks from here and there is filled up to, in bytes of plaintext. What lies in
// it is scattered over a disk, so parts of a restore that are far from each other decode it anew.
const PieceFrame = 256 << 10

// FrameBytes is that of the options.
func (w *Writer) FrameBytes() int { return w.o.FrameBytes }

func (o *Options) restBytes() int { return min(o.FrameBytes, PieceFrame) }

// New returns a writer.
func New(o Options) *Writer { return &Writer{o: o} }

// Write takes the content of the chunks from number first on. Only that of the last may be shorter than a chunk; it is
// filled up with zeros.
func (w *Writer) Write(ctx context.Context, d Decider, first int64, p []byte) error {
	b := &batch{w: w, ctx: ctx, d: d, src: p}
	defer b.putBack()
	step := w.o.Group * w.o.ChunkBytes
	if step == 0 {
		step = len(p)
	}
	for at := 0; at < len(p); at += step {
		if err := b.group(first+int64(at/w.o.ChunkBytes), at, min(at+step, len(p))); err != nil {
			return err
		}
	}
	return b.flushRun()
}

// Flush gives away the frames that are not full, of which there are as many as Writes were under way at once; small ones
// are put together first. No Write may be running.
func (w *Writer) Flush(ctx context.Context) error {
	w.mu.Lock()
	partial := w.partial
	w.partial = nil
	w.mu.Unlock()
	slices.SortFunc(partial, func(a, b *frame) int { return cmp.Compare(len(a.plain), len(b.plain)) })
	for i, f := range partial {
		if i+1 < len(partial) && len(f.plain)+len(partial[i+1].plain) <= w.o.restBytes() {
			f.join(partial[i+1])
			partial[i+1] = f
			continue
		}
		if len(f.items) == 0 {
			continue
		}
		if err := w.o.Store(ctx, f.plain, f.items); err != nil {
			return err
		}
	}
	return nil
}

// frame is a frame being filled.
type frame struct {
	plain []byte
	items []pack.Item
}

// join takes what another frame has.
func (f *frame) join(g *frame) {
	for _, item := range g.items {
		item.Offset += uint32(len(f.plain))
		f.items = append(f.items, item)
	}
	f.plain = append(f.plain, g.plain...)
}

func (w *Writer) takePartial() *frame {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.partial)
	if n == 0 {
		return &frame{plain: make([]byte, 0, w.o.restBytes())}
	}
	f := w.partial[n-1]
	w.partial = w.partial[:n-1]
	return f
}
