package store

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// streamPlan is a window of a stream being planned: which chunks are wanted and which frames have them.
type streamPlan struct {
	s      *stream
	chunks map[Hash]*streamChunk
	frames map[frameKey]*streamFrame
	order  map[seal.ID]int // packs in the order in which the disk needs them
	packs  []*packPlan
	alone  []*streamChunk
	count  int // of chunks that were added
	pieces int // of these, put together of parts of several frames
}

type packPlan struct {
	rd     *pack.Reader
	frames []*streamFrame
}

func newStreamWindow(s *stream) *streamPlan {
	w := &streamPlan{s: s}
	w.reset()
	return w
}

func (w *streamPlan) reset() {
	w.chunks, w.frames, w.order = map[Hash]*streamChunk{}, map[frameKey]*streamFrame{}, map[seal.ID]int{}
	w.packs, w.alone, w.count, w.pieces = nil, nil, 0, 0
}

// full reports whether the window is to be sent.
func (w *streamPlan) full() bool {
	return w.count >= w.s.window || w.pieces*w.s.of.chunkBytes >= windowPieces
}

// add plans the reading of a chunk.
func (w *streamPlan) add(id Hash, number int64) error {
	off := number * int64(w.s.of.chunkBytes)
	w.count++
	if c := w.chunks[id]; c != nil {
		c.offs = append(c.offs, off)
		return nil
	}
	c := &streamChunk{id: id}
	c.off[0] = off
	c.offs = c.off[:1]
	w.chunks[id] = c
	rd, e, err := w.s.locate(&w.s.trail, id, nil)
	if err != nil {
		return err
	}
	if rd == nil || !w.parts(c, rd, e) {
		w.alone = append(w.alone, c)
	}
	return nil
}

// locate finds a copy of a chunk, which has the blocks wanted physically. Without one, or if it cannot be read, the
// reader is nil: then all copies have to be tried, which also tells what is wrong.
func (s *stream) locate(t *trail, id Hash, wanted []take) (*pack.Reader, *pack.Entry, error) {
	if rd, slot, ok := s.near.find(t, id); ok {
		d := rd.Directory()
		if e := &d.Entries[slot]; hasBlocks(e, wanted) && s.r.idx.Sound(d.Header.ID) {
			return rd, e, nil
		}
	}
	var buf [4]index.Location
	places, err := s.r.idx.Lookup(buf[:0], id)
	if err != nil {
		return nil, nil, fault.Wrap(fault.Internal, "look up", id.Short(), err)
	}
	for _, at := range places {
		if s.r.idx.IsSuspect(at.Pack) {
			continue
		}
		rd, e, err := s.r.entry(s.ctx, at)
		if err != nil && !damaged(err) {
			return nil, nil, err
		}
		if err != nil || e.ID != id || e.Type != pack.Chunk || !hasBlocks(e, wanted) {
			continue
		}
		s.near.touch(nearPack{rd: rd})
		if t != nil {
			t.rd, t.slot = rd, int(at.Slot)
		}
		return rd, e, nil
	}
	return nil, nil, nil
}

func hasBlocks(e *pack.Entry, wanted []take) bool {
	for _, t := range wanted {
		if e.Present&(1<<t.from) == 0 {
			return false
		}
	}
	return true
}

// parts plans the frames that a copy of a chunk needs. False: some of it is not to be found.
func (w *streamPlan) parts(c *streamChunk, rd *pack.Reader, e *pack.Entry) bool {
	c.zeros = e.Zeros
	if int(e.Length) == w.s.of.chunkBytes {
		c.waiting.Store(1)
		w.want(rd, e, streamPart{c: c, e: e, whole: true})
		return true
	}
	type needed struct {
		rd *pack.Reader
		e  *pack.Entry
		streamPart
	}
	own := streamPart{c: c, e: e}
	var foreign map[Hash][]take
	for i, refs := 0, e.Refs; i < w.s.of.blocks; i++ {
		switch bit := uint64(1) << i; {
		case e.Present&bit != 0:
			own.takes = append(own.takes, take{uint8(len(own.takes)), uint8(i)})
		case e.Zeros&bit != 0:
		default:
			if foreign == nil {
				foreign = map[Hash][]take{}
			}
			foreign[refs[0].Target] = append(foreign[refs[0].Target], take{refs[0].Block, uint8(i)})
			refs = refs[1:]
		}
	}
	var all []needed
	if len(own.takes) > 0 {
		all = append(all, needed{rd, e, own})
	}
	for target, takes := range foreign {
		rd, e, err := w.s.locate(nil, target, takes)
		if err != nil || rd == nil {
			return false // reading the chunk by itself tries other copies, or says what is wrong
		}
		for n := range takes {
			at, _ := blockAt(e, takes[n].from)
			takes[n].from = uint8(at / chunk.BlockBytes)
		}
		all = append(all, needed{rd, e, streamPart{c: c, e: e, takes: takes}})
	}
	if len(all) == 0 {
		return false
	}
	if len(all) > 1 {
		w.pieces++
	}
	c.waiting.Store(int32(len(all)))
	for _, n := range all {
		w.want(n.rd, n.e, n.streamPart)
	}
	return true
}

// want adds a part to the frame it lies in.
func (w *streamPlan) want(rd *pack.Reader, e *pack.Entry, part streamPart) {
	id := rd.Directory().Header.ID
	key := frameKey{id, e.Frame}
	f := w.frames[key]
	if f == nil {
		f = &streamFrame{number: e.Frame}
		w.frames[key] = f
		n, ok := w.order[id]
		if !ok {
			n = len(w.packs)
			w.order[id] = n
			w.packs = append(w.packs, &packPlan{rd: rd})
		}
		w.packs[n].frames = append(w.packs[n].frames, f)
	}
	f.parts = append(f.parts, part)
}

// send gives the window to the workers, pack after pack, frames in their order, and begins the next one. It waits
// until fewer than two windows are under way. last says that it is the end.
func (w *streamPlan) send(last bool) error {
	var jobs []*streamJob
	for _, p := range w.packs {
		jobs = append(jobs, p.jobs(func(key frameKey) bool { return !last || w.s.of.kept(key) })...)
	}
	for _, c := range w.alone {
		jobs = append(jobs, &streamJob{alone: []*streamChunk{c}})
	}
	w.reset()
	if len(jobs) == 0 {
		return nil
	}
	select {
	case w.s.windows <- struct{}{}:
	case <-w.s.ctx.Done():
		return w.s.ctx.Err()
	}
	left := &atomic.Int32{}
	left.Store(int32(len(jobs)))
	for _, job := range jobs {
		job.window = left
		select {
		case w.s.jobs <- job:
		case <-w.s.ctx.Done():
			return w.s.ctx.Err()
		}
	}
	return nil
}

// jobs cuts the frames of a pack into reads. Frames that hold more than is wanted are read one by one and kept, if keep
// says so.
func (p *packPlan) jobs(keep func(frameKey) bool) []*streamJob {
	d := p.rd.Directory()
	slices.SortFunc(p.frames, func(a, b *streamFrame) int {
		return cmp.Compare(d.Frames[a.number].Offset, d.Frames[b.number].Offset)
	})
	var out []*streamJob
	var end, length uint32
	for _, f := range p.frames {
		slices.SortFunc(f.parts, func(a, b streamPart) int { return cmp.Compare(a.e.Offset, b.e.Offset) })
		f.keep = f.entries() < d.InFrame(f.number) && keep(frameKey{d.Header.ID, f.number})
		info := d.Frames[f.number]
		last := len(out) - 1
		if last >= 0 && !f.keep && !out[last].frames[0].keep && info.Offset == end && length+info.Stored <= readAhead {
			out[last].frames = append(out[last].frames, f)
			length += info.Stored
		} else {
			out = append(out, &streamJob{rd: p.rd, frames: []*streamFrame{f}})
			length = info.Stored
		}
		end = info.Offset + info.Stored
	}
	return out
}

// entries counts the entries of the frame that are wanted. The parts are in order.
func (f *streamFrame) entries() (n int) {
	for i := range f.parts {
		if i == 0 || f.parts[i].e != f.parts[i-1].e {
			n++
		}
	}
	return n
}
