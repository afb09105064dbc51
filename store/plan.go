package store

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync/atomic"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/cache"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// PlanChunks is the most that one plan covers.
const PlanChunks = 1024

// Plan says where the content of a range of an image lies, for a process without the index and the data key: what is
// named in it is what that range needs, and the keys are those of the packs that it needs.
type Plan struct {
	End    int64 // chunks before this one are planned
	Packs  []PlanPack
	Chunks []PlanChunk // but those of zeros
}

// PlanPack is a pack of which frames are wanted, in order of offset.
type PlanPack struct {
	PackGrant
	Frames []pack.Place
}

// PlanChunk is a chunk at one place of the image or several. Without parts it has to be read by itself.
type PlanChunk struct {
	ID      Hash
	Numbers []int64
	Zeros   uint64
	Parts   []PlanPart
}

// PlanPart is what a frame has of a chunk: all of it, or the blocks in Takes, pairs of the block there and in the chunk.
type PlanPart struct {
	Pack, Frame    int // indexes into Packs and its Frames
	Offset, Length uint32
	Takes          []byte
}

// Plan plans the reading of chunks from number first on, up to count of them and up to PlanChunks.
func (i *ImageReader) Plan(ctx context.Context, first, count int64) (*Plan, error) {
	ctx, leave, err := i.r.enter(ctx, "read image")
	if err != nil {
		return nil, err
	}
	defer leave()
	chunks := tree.Chunks(i.head.Size, int(i.head.ChunkBytes))
	if first < 0 || count <= 0 || first >= chunks {
		return nil, fault.New(fault.Invalid, "read image", i.ref.Root.Short(), "chunks %d+%d of %d", first, count, chunks)
	}
	end := first + min(count, PlanChunks, chunks-first)
	var out *Plan
	err = i.current(ctx, func() error {
		s := i.stream()
		s.ctx = ctx
		w := newStreamWindow(s)
		order := make([]*streamChunk, 0, end-first)
		for n := first; n < end; n++ {
			id, err := i.r.chunkID(ctx, i.head, n)
			if err != nil {
				return err
			}
			if id.IsZero() {
				continue
			}
			known := w.chunks[id] != nil
			if err := w.add(id, n); err != nil {
				return err
			}
			if !known {
				order = append(order, w.chunks[id])
			}
		}
		out, err = w.export(order)
		return err
	})
	if err != nil {
		return nil, fault.Context("read image", i.ref.Root.Short(), err)
	}
	out.End = end
	return out, nil
}

// export makes a plan of a window.
func (w *streamPlan) export(order []*streamChunk) (*Plan, error) {
	out := &Plan{Chunks: make([]PlanChunk, len(order))}
	index := make(map[*streamChunk]int, len(order))
	for n, c := range order {
		index[c] = n
		out.Chunks[n] = PlanChunk{ID: c.id, Zeros: c.zeros}
		for _, off := range c.offs {
			out.Chunks[n].Numbers = append(out.Chunks[n].Numbers, off/int64(w.s.of.chunkBytes))
		}
	}
	for _, p := range w.packs {
		d := p.rd.Directory()
		g, err := w.s.r.packGrant(d.Header)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(p.frames, func(a, b *streamFrame) int {
			return cmp.Compare(d.Frames[a.number].Offset, d.Frames[b.number].Offset)
		})
		planned := PlanPack{PackGrant: g}
		for _, f := range p.frames {
			for _, part := range f.parts {
				pp := PlanPart{Pack: len(out.Packs), Frame: len(planned.Frames), Offset: part.e.Offset, Length: part.e.Length}
				for _, t := range part.takes {
					pp.Takes = append(pp.Takes, t.from, t.to)
				}
				c := &out.Chunks[index[part.c]]
				c.Parts = append(c.Parts, pp)
			}
			planned.Frames = append(planned.Frames, pack.Place{Number: f.number, Info: d.Frames[f.number], Entries: d.InFrame(f.number)})
		}
		out.Packs = append(out.Packs, planned)
	}
	return out, nil
}

// Leave proves later that a plan of the image named these bytes of a pack.
func (i *ImageReader) Leave(id seal.ID, f pack.FrameInfo) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, i.r.keys.Data[:], i.r.id[:], "cairn leave to read a frame", 32)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "read image", i.ref.Root.Short(), err)
	}
	m := hmac.New(sha256.New, key)
	m.Write(i.ref.Root[:])
	m.Write(id[:])
	m.Write(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, f.Offset), f.Stored))
	return m.Sum(nil)[:16], nil
}

// ReadFrame reads the sealed bytes of a frame that a plan of the image named; dst has their length.
func (i *ImageReader) ReadFrame(ctx context.Context, id seal.ID, offset uint32, leave, dst []byte) error {
	ctx, out, err := i.r.enter(ctx, "read image")
	if err != nil {
		return err
	}
	defer out()
	want, err := i.Leave(id, pack.FrameInfo{Offset: offset, Stored: uint32(len(dst))})
	if err != nil {
		return err
	}
	if !hmac.Equal(want, leave) {
		return fault.New(fault.Denied, "read pack", pack.Name(id), "%d bytes at %d are of no plan of this image", len(dst), offset).Explain(
			"A mover may read what the image needs that its ticket names, and nothing else.", "Look at the audit log: a mover did more than its task needs.")
	}
	return i.r.b.ReadAt(ctx, pack.Name(id), dst, int64(offset))
}

// ReadChunk fills dst, of a chunk's size, with a proven chunk, from whatever copy is good.
func (i *ImageReader) ReadChunk(ctx context.Context, number int64, dst []byte) error {
	if number < 0 || number >= tree.Chunks(i.head.Size, int(i.head.ChunkBytes)) || len(dst) != int(i.head.ChunkBytes) {
		return fault.New(fault.Invalid, "read image", i.ref.Root.Short(), "chunk %d in %d bytes", number, len(dst))
	}
	ctx, leave, err := i.r.enter(ctx, "read image")
	if err != nil {
		return err
	}
	defer leave()
	return i.current(ctx, func() error { return i.readPart(ctx, number, 0, dst) })
}

// Planned reads an image by plans that its owner makes, in another process: every byte is proven here.
type Planned struct {
	SizeBytes  int64
	ChunkBytes int
	Root       Hash
	Content    *chunk.Content
	Coder      *pack.Coder
	// Plan is ImageReader.Plan over there, Source where frames of its packs are read, Chunk is ReadChunk.
	Plan   func(ctx context.Context, first, count int64) (*Plan, error)
	Source func(p *Plan) func(n int) pack.Source
	Chunk  func(ctx context.Context, number int64, dst []byte) error

	frames  *cache.Cache[frameKey, []byte]
	decoded atomic.Int64
}

// Init is to be called once, before the rest. It gives the image memory for frames that are wanted again.
func (p *Planned) Init() { p.frames = cache.New[frameKey, []byte](frameCache) }

// Stream is ImageReader.Stream for the data in some ranges of chunks.
func (p *Planned) Stream(ctx context.Context, workers int, ranges func(yield func(first, count int64) error) error, fn func(off int64, p []byte) error) error {
	s := &stream{fn: fn, of: streamed{
		size: p.SizeBytes, chunkBytes: p.ChunkBytes, blocks: p.ChunkBytes / chunk.BlockBytes, root: p.Root,
		content: p.Content, coder: p.Coder, decoded: &p.decoded, frame: p.frame, kept: p.frames.Has,
		chunk: func(ctx context.Context, c *streamChunk) error {
			if err := p.Chunk(ctx, c.offs[0]/int64(p.ChunkBytes), c.buf); err != nil {
				return err
			}
			if p.Content.Chunk(c.buf) != c.id {
				return fault.New(fault.Corrupt, "read chunk", c.id.Short(), "what came is another")
			}
			return nil
		},
		current: func(_ context.Context, use func() error) error { return use() },
	}}
	return s.run(ctx, workers, func() error {
		return ranges(func(first, count int64) error {
			for end := first + count; first < end; {
				plan, err := p.Plan(s.ctx, first, min(end-first, PlanChunks))
				if err != nil {
					return err
				}
				if plan.End <= first {
					return fault.New(fault.Invalid, "read image", p.Root.Short(), "a plan up to chunk %d from %d on", plan.End, first)
				}
				w := newStreamWindow(s)
				if err := w.take(plan, first, p.Source(plan)); err != nil {
					return err
				}
				if err := w.send(false); err != nil {
					return err
				}
				first = plan.End
			}
			return nil
		})
	})
}

// frame keeps frames that a later window may want, too.
func (p *Planned) frame(ctx context.Context, rd *pack.Reader, number uint32) ([]byte, error) {
	return p.frames.Get(frameKey{rd.Directory().Header.ID, number}, func() ([]byte, int64, error) {
		out, err := rd.Frame(ctx, number, p.Coder, &pack.Buffers{})
		p.decoded.Add(1)
		if err != nil && fault.KindOf(err) == fault.Internal { // it does not authenticate, or decode
			err = fault.Wrap(fault.Corrupt, "read frame", pack.Name(rd.Directory().Header.ID), err)
		}
		return out, int64(len(out)), err
	})
}

// take makes a window of a plan that came from elsewhere: everything in it is checked.
func (w *streamPlan) take(plan *Plan, first int64, source func(n int) pack.Source) error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "read image", w.s.of.root.Short(), format, args...)
	}
	for n := range plan.Packs {
		p := &plan.Packs[n]
		rd, err := pack.NewPartial(source(n), p.Header, p.Key, w.s.of.blocks, p.Frames)
		if err != nil {
			return bad("a plan with pack %d: %v", n, err)
		}
		w.packs = append(w.packs, &packPlan{rd: rd})
		for _, f := range p.Frames {
			w.packs[n].frames = append(w.packs[n].frames, &streamFrame{number: f.Number})
		}
	}
	type place struct {
		pack, frame int
		offset      uint32
	}
	entries := map[place]*pack.Entry{}
	for n := range plan.Chunks {
		c := &plan.Chunks[n]
		sc := &streamChunk{id: c.ID, zeros: c.Zeros}
		for _, number := range c.Numbers {
			if number < first || number >= plan.End || number*int64(w.s.of.chunkBytes) >= w.s.of.size {
				return bad("a plan from %d to %d with chunk %d", first, plan.End, number)
			}
			sc.offs = append(sc.offs, number*int64(w.s.of.chunkBytes))
		}
		if len(sc.offs) == 0 || c.ID.IsZero() {
			return bad("a plan with a chunk that is nowhere")
		}
		if len(c.Parts) == 0 {
			w.alone = append(w.alone, sc)
			continue
		}
		sc.waiting.Store(int32(len(c.Parts)))
		for _, part := range c.Parts {
			if part.Pack < 0 || part.Pack >= len(plan.Packs) || part.Frame < 0 || part.Frame >= len(plan.Packs[part.Pack].Frames) ||
				part.Length == 0 || int64(part.Offset)+int64(part.Length) > int64(plan.Packs[part.Pack].Frames[part.Frame].Info.Plain) {
				return bad("a plan with a part that cannot be: %+v", part)
			}
			at := place{part.Pack, part.Frame, part.Offset}
			if entries[at] == nil {
				entries[at] = &pack.Entry{Type: pack.Chunk, Offset: part.Offset, Length: part.Length}
			}
			sp := streamPart{c: sc, e: entries[at], whole: len(part.Takes) == 0}
			if entries[at].Length != part.Length || sp.whole && (int(part.Length) != w.s.of.chunkBytes || len(c.Parts) != 1) || len(part.Takes)%2 != 0 {
				return bad("a plan with a part that cannot be: %+v", part)
			}
			for k := 0; k < len(part.Takes); k += 2 {
				t := take{part.Takes[k], part.Takes[k+1]}
				if (int(t.from)+1)*chunk.BlockBytes > int(part.Length) || int(t.to) >= w.s.of.blocks {
					return bad("a plan that takes block %d to %d", t.from, t.to)
				}
				sp.takes = append(sp.takes, t)
			}
			f := w.packs[part.Pack].frames[part.Frame]
			f.parts = append(f.parts, sp)
		}
	}
	for _, p := range w.packs {
		p.frames = slices.DeleteFunc(p.frames, func(f *streamFrame) bool { return len(f.parts) == 0 })
	}
	w.packs = slices.DeleteFunc(w.packs, func(p *packPlan) bool { return len(p.frames) == 0 })
	return nil
}

// ExtentsFrom is Extents from a chunk on, of at most limit extents. more: the image goes on behind them.
func (i *ImageReader) ExtentsFrom(ctx context.Context, first int64, limit int) (list []Extent, more bool, err error) {
	ctx, leave, err := i.r.enter(ctx, "read image")
	if err != nil {
		return nil, false, err
	}
	defer leave()
	size, chunks := int64(i.head.ChunkBytes), tree.Chunks(i.head.Size, int(i.head.ChunkBytes))
	if first < 0 {
		return nil, false, fault.New(fault.Invalid, "read image", i.ref.Root.Short(), "extents from chunk %d on", first)
	}
	for n := first; n < chunks; {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		var leaf *tree.Node
		var end int64
		err := i.current(ctx, func() (err error) {
			leaf, end, err = i.r.leafAt(ctx, i.head, n)
			return err
		})
		if err != nil {
			return nil, false, fault.Context("read image", i.ref.Root.Short(), err)
		}
		end = min(end, chunks)
		for n < end {
			zero, to := leaf == nil, end
			if leaf != nil {
				zero = leaf.Children[n%tree.FanOut].IsZero()
				for to = n + 1; to < end && leaf.Children[to%tree.FanOut].IsZero() == zero; {
					to++
				}
			}
			length := min(to*size, i.head.Size) - n*size
			if last := len(list) - 1; last >= 0 && list[last].Zero == zero {
				list[last].Length += length
			} else if len(list) == limit {
				return list, true, nil
			} else {
				list = append(list, Extent{Offset: n * size, Length: length, Zero: zero})
			}
			n = to
		}
	}
	return list, false, nil
}

// leafAt returns the leaf of a chunk and where it ends; or nil and the end of the zeros that are there.
func (r *Repository) leafAt(ctx context.Context, head tree.Head, number int64) (leaf *tree.Node, end int64, err error) {
	id := head.Top
	for level := head.Height - 1; ; level-- {
		span := tree.FanOut * tree.Span(level) // chunks under the node
		end = number - number%span + span
		if id.IsZero() {
			return nil, end, nil
		}
		n, err := r.node(ctx, id, level)
		if err != nil {
			return nil, 0, err
		}
		if level == 0 {
			return n, end, nil
		}
		id = n.Children[number/tree.Span(level)%tree.FanOut]
	}
}
