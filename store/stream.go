package store

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/tree"
)

const (
	// windowChunks is how much of a disk is read in the order of packs rather than of the disk: a frame of which parts are
	// wanted here and there is decoded once in a window. A window's plan takes some 400 bytes a chunk.
	windowChunks = 16 << 10
	// windowPieces ends a window before: what is put together of several frames is held in memory until the last part
	// has come, and two windows may be under way.
	windowPieces = 64 << 20
	// readAhead is how much of a pack is read at once where frames that are wanted follow each other.
	readAhead = 1 << 20
)

// Stream gives all data of the image, every byte proven, to fn: the ranges that Extents does not call zero, each once,
// whole chunks but at the image's end, about in the order of the disk. fn is called from several goroutines, workers
// of them at most (0: some more than there are CPUs); p is good until it returns. An error of fn ends the stream.
//
// Within a window of the disk, frames are read in the order of packs and decoded once each; frames that a later window
// needs too are kept while there is room.
func (i *ImageReader) Stream(ctx context.Context, workers int, fn func(off int64, p []byte) error) error {
	ctx, leave, err := i.r.enter(ctx, "read image")
	if err != nil {
		return err
	}
	defer leave()
	if workers <= 0 {
		workers = i.r.o.Workers + 2
	}
	s := i.stream()
	s.fn = fn
	return s.run(ctx, workers, s.plan)
}

// stream makes a stream of the image, which runs where the image is.
func (i *ImageReader) stream() *stream {
	return &stream{i: i, r: i.r, window: cmp.Or(i.r.o.windowChunks, windowChunks), of: streamed{
		size: i.head.Size, chunkBytes: int(i.head.ChunkBytes), blocks: i.r.blocks, root: i.ref.Root,
		content: i.r.hasher.Content, coder: i.r.coder(), decoded: &i.r.decoded, frame: i.r.frame, kept: i.r.frames.Has,
		chunk:   func(ctx context.Context, c *streamChunk) error { return i.r.chunk(ctx, c.id, c.buf) },
		current: i.current,
	}}
}

// streamed is what the reading half of a stream needs of an image and its repository, which may be in another process.
type streamed struct {
	size               int64
	chunkBytes, blocks int
	root               Hash
	content            *chunk.Content
	coder              *pack.Coder
	decoded            *atomic.Int64
	frame              func(ctx context.Context, rd *pack.Reader, number uint32) ([]byte, error) // of one that others may want, too
	kept               func(frameKey) bool                                                       // frame has it in memory
	chunk              func(ctx context.Context, c *streamChunk) error                           // fills the buffer from any copy
	current            func(ctx context.Context, use func() error) error
}

// run reads what plan asks for.
func (s *stream) run(ctx context.Context, workers int, plan func() error) error {
	g, ctx := errgroup.WithContext(ctx)
	s.ctx, s.jobs, s.windows = ctx, make(chan *streamJob, 2*workers), make(chan struct{}, 2)
	s.bufs.New = func() any { return make([]byte, s.of.chunkBytes) }
	g.Go(func() error {
		defer close(s.jobs)
		return plan()
	})
	for range workers {
		g.Go(s.work)
	}
	err := g.Wait()
	if own, ok := errors.AsType[callerError](err); ok {
		return own.error
	}
	if err != nil {
		return fault.Context("read image", s.of.root.Short(), err)
	}
	return nil
}

// callerError is an error of the function that a stream gives its data to.
type callerError struct{ error }

// stream is one Stream at work: one goroutine plans, the others read.
type stream struct {
	of  streamed
	i   *ImageReader // of the planning half
	r   *Repository
	ctx context.Context //nolint:containedctx // lives for one Stream
	fn  func(off int64, p []byte) error
	bad func(off int64, err error) error // is told of each chunk that cannot be read, and may go on; nil: that ends the stream

	jobs    chan *streamJob
	window  int           // chunks that a window has at most
	windows chan struct{} // one token for each window under way
	bufs    sync.Pool     // of one chunk
	near    near
	trail   trail
}

// streamChunk is a chunk that is wanted, at one place of the disk or several.
type streamChunk struct {
	id      Hash
	offs    []int64
	off     [1]int64 // memory for offs
	zeros   uint64
	waiting atomic.Int32 // parts that have not come
	spoiled atomic.Bool  // a part cannot be read: all copies have to be tried

	mu  sync.Mutex
	buf []byte // nil until the first part comes
}

// take is one block: From is where it is among the entry's, To where it is in the chunk.
type take struct{ from, to uint8 }

// run returns how many of the first takes follow each other on both sides.
func run(takes []take) int {
	n := 1
	for n < len(takes) && int(takes[n].from) == int(takes[0].from)+n && int(takes[n].to) == int(takes[0].to)+n {
		n++
	}
	return n
}

// streamPart is what a frame has of a chunk.
type streamPart struct {
	c     *streamChunk
	e     *pack.Entry
	whole bool   // all of the chunk, as it stands in the frame
	takes []take // else
}

// streamFrame is a frame that is wanted.
type streamFrame struct {
	number uint32
	parts  []streamPart
	keep   bool // a later window may want what else is in it, or an earlier one did
}

// streamJob is for one worker: frames that follow each other in a pack, or chunks that are to be read by themselves.
type streamJob struct {
	rd     *pack.Reader
	frames []*streamFrame
	alone  []*streamChunk
	window *atomic.Int32 // jobs left in the window
}

func (s *stream) work() error {
	frames := pack.NewFrameReader(s.of.coder)
	for job := range s.jobs {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if err := s.do(job, frames); err != nil {
			return err
		}
		if job.window.Add(-1) == 0 {
			<-s.windows
		}
	}
	return nil
}

func (s *stream) do(job *streamJob, frames *pack.FrameReader) error {
	for _, c := range job.alone {
		if err := s.finish(c); err != nil {
			return err
		}
	}
	switch {
	case len(job.frames) == 0:
		return nil
	case len(job.frames) == 1 && job.frames[0].keep:
		return s.sharedFrame(job.rd, job.frames[0])
	}
	numbers := make([]uint32, len(job.frames))
	for n, f := range job.frames {
		numbers[n] = f.number
	}
	begun := false
	err := frames.Each(s.ctx, job.rd, numbers, func(n int, plain []byte, damage error) error {
		s.of.decoded.Add(1)
		begun = true
		if damage != nil {
			plain = nil
		}
		return s.use(job.frames[n], plain)
	})
	if kind := fault.KindOf(err); err == nil || begun || kind == fault.Canceled || kind == fault.Transient {
		return err
	}
	for _, f := range job.frames { // each chunk's own read finds another copy, or says what is wrong
		if err := s.use(f, nil); err != nil {
			return err
		}
	}
	return nil
}

// sharedFrame uses a frame that others may want, too.
func (s *stream) sharedFrame(rd *pack.Reader, f *streamFrame) error {
	plain, err := s.of.frame(s.ctx, rd, f.number)
	if err != nil && !damaged(err) {
		return err
	}
	return s.use(f, plain) // nil if it is damaged
}

// use gives the parts of a frame, nil if it cannot be had, to their chunks. Whole chunks that follow each other in frame and disk go out at once.
func (s *stream) use(f *streamFrame, plain []byte) error {
	// What is proven and not given to fn yet: plain[from:to], at offset off of the disk.
	var from, to uint32
	var off int64
	flush := func() error {
		p := plain[from:to]
		from, to = 0, 0
		if len(p) == 0 {
			return nil
		}
		return s.give(off, p)
	}
	for n := range f.parts {
		part := &f.parts[n]
		c, e := part.c, part.e
		if !part.whole || plain == nil || len(c.offs) > 1 {
			if err := s.part(part, plain); err != nil {
				return err
			}
			continue
		}
		if s.of.content.Chunk(plain[e.Offset:e.Offset+e.Length]) != c.id {
			if err := s.part(part, nil); err != nil {
				return err
			}
			continue
		}
		if e.Offset != to || off+int64(to-from) != c.offs[0] {
			if err := flush(); err != nil {
				return err
			}
			from, to, off = e.Offset, e.Offset, c.offs[0]
		}
		to += e.Length
	}
	return flush()
}

// part adds a part to its chunk, and finishes the chunk if it was the last. plain is its frame, nil if it is no good.
func (s *stream) part(part *streamPart, plain []byte) error {
	c := part.c
	if plain != nil {
		c.fill(s, part, plain[part.e.Offset:part.e.Offset+part.e.Length])
	} else {
		c.spoiled.Store(true)
	}
	if c.waiting.Add(-1) > 0 {
		return nil
	}
	return s.finish(c)
}

func (c *streamChunk) fill(s *stream, part *streamPart, data []byte) {
	c.mu.Lock()
	if c.buf == nil {
		c.buf = s.bufs.Get().([]byte)
		for i := range s.of.blocks {
			if c.zeros&(1<<i) != 0 {
				clear(c.buf[i*chunk.BlockBytes : (i+1)*chunk.BlockBytes])
			}
		}
	}
	buf := c.buf
	c.mu.Unlock()
	if part.whole {
		copy(buf, data)
		return
	}
	for takes := part.takes; len(takes) > 0; {
		n := run(takes)
		from, to := int(takes[0].from)*chunk.BlockBytes, int(takes[0].to)*chunk.BlockBytes
		copy(buf[to:to+n*chunk.BlockBytes], data[from:])
		takes = takes[n:]
	}
}

// finish proves a chunk that was put together and gives it out; if it is not what it should be, or could not be put
// together, every stored copy of it is tried.
func (s *stream) finish(c *streamChunk) error {
	if c.buf == nil {
		c.buf = s.bufs.Get().([]byte)
		c.spoiled.Store(true)
	}
	defer func() {
		//lint:ignore SA6002 a slice header per fragmented chunk is little
		s.bufs.Put(c.buf)
		c.buf = nil
	}()
	if c.spoiled.Load() || s.of.content.Chunk(c.buf) != c.id {
		read := func() error { return s.of.chunk(s.ctx, c) }
		if s.bad != nil {
			if err := read(); err != nil {
				return s.unreadable(c, err)
			}
		} else if err := s.of.current(s.ctx, read); err != nil {
			return err
		}
	}
	for _, off := range c.offs {
		if err := s.give(off, c.buf); err != nil {
			return err
		}
	}
	return nil
}

// unreadable tells of a chunk. Whether it is out of date rather than damaged finds out who goes on without it.
func (s *stream) unreadable(c *streamChunk, err error) error {
	for _, off := range c.offs {
		if err := s.bad(off, err); err != nil {
			return callerError{err}
		}
	}
	return nil
}

// give hands out proven bytes, but not those behind the image's end.
func (s *stream) give(off int64, p []byte) error {
	if err := s.fn(off, p[:min(int64(len(p)), s.of.size-off)]); err != nil {
		return callerError{err}
	}
	return nil
}

// plan sends the jobs of one window after the other.
func (s *stream) plan() error {
	w := newStreamWindow(s)
	err := s.i.walk(s.ctx, func(number, count int64, zero bool, leaf *tree.Node) error {
		if zero {
			return nil
		}
		for n := number; n < number+count; n++ {
			if err := w.add(leaf.Children[n%tree.FanOut], n); err != nil {
				return err
			}
			if !w.full() {
				continue
			}
			if err := w.send(false); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return w.send(true)
}
