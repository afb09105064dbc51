package carry

import (
	"context"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
)

// batch gathers the new chunks of one Write into frames. Whole chunks that follow each other in the caller's memory
// become frames without being copied; the rest goes through a frame that later Writes of the image fill up.
type batch struct {
	w   *Writer
	d   Decider
	ctx context.Context //nolint:containedctx // lives for one Write

	src        []byte // what the Write was given
	start, end int    // the run: a part of src
	run        []pack.Item
	rest       *frame
	spare      []chunk.Fingerprint

	// Of the group that is asked about.
	chunks   []Chunk
	placings []Placing
	first    int64
	at       int    // where it begins in src
	tail     []byte // the last chunk, if it had to be filled up
}

// group asks about the chunks in src[at:end] and takes what is new.
func (b *batch) group(first int64, at, end int) error {
	b.first, b.at, b.chunks, b.placings = first, at, b.chunks[:0], b.placings[:0]
	for n := first; at < end; n, at = n+1, at+b.w.o.ChunkBytes {
		c := Chunk{Number: n}
		if p, _ := b.chunk(n); !chunk.IsZero(p) {
			c.ID = b.w.o.Hasher.Chunk(p)
		}
		b.chunks = append(b.chunks, c)
	}
	if err := b.d.Look(b.ctx, b.chunks); err != nil {
		return err
	}
	blocks := b.w.o.ChunkBytes / chunk.BlockBytes
	all := ^uint64(0) >> (64 - blocks)
	for _, c := range b.chunks {
		if !c.Store {
			continue
		}
		p, _ := b.chunk(c.Number)
		prints := b.prints(blocks)
		zeros := b.w.o.Hasher.Prints(p, prints)
		e := pack.Entry{Type: pack.Chunk, ID: c.ID, Zeros: zeros, Present: all &^ zeros}
		b.placings = append(b.placings, Placing{Number: c.Number, Item: pack.Item{Entry: e, Prints: prints}})
	}
	if len(b.placings) == 0 {
		return nil
	}
	if err := b.d.Place(b.ctx, b.placings); err != nil {
		return err
	}
	for i := range b.placings {
		if b.placings[i].Known {
			continue
		}
		item := &b.placings[i].Item
		item.SetLength()
		p, from := b.chunk(b.placings[i].Number)
		if err := b.add(item, p, from); err != nil {
			return err
		}
	}
	return nil
}

// chunk returns a chunk of the group and where it is in src, or -1 if it was filled up.
func (b *batch) chunk(number int64) ([]byte, int) {
	size := b.w.o.ChunkBytes
	at := b.at + int(number-b.first)*size
	if at+size <= len(b.src) {
		return b.src[at : at+size], at
	}
	if b.tail == nil {
		b.tail = append(make([]byte, 0, size), b.src[at:]...)[:size]
	}
	return b.tail, -1
}

// prints returns memory for the fingerprints of one chunk, which an entry may keep.
func (b *batch) prints(blocks int) []chunk.Fingerprint {
	if len(b.spare) < blocks {
		b.spare = make([]chunk.Fingerprint, 16*blocks)
	}
	out := b.spare[:blocks:blocks]
	b.spare = b.spare[blocks:]
	return out
}

// add takes a chunk whose entry says which of its blocks are to be stored. It lies at src[at:], unless at is negative.
func (b *batch) add(item *pack.Item, p []byte, at int) error {
	if at < 0 || int(item.Length) != len(p) {
		return b.addRest(item, p)
	}
	if at != b.end || b.end-b.start+len(p) > b.w.o.FrameBytes {
		if err := b.flushRun(); err != nil {
			return err
		}
		b.start, b.end = at, at
	}
	item.Offset = uint32(b.end - b.start)
	b.end += len(p)
	b.run = append(b.run, *item)
	return nil
}

// flushRun stores a run that is long enough for a frame; a shorter one joins the rest.
func (b *batch) flushRun() error {
	items, plain := b.run, b.src[b.start:b.end]
	b.run, b.start, b.end = nil, 0, 0
	if len(plain) >= b.w.o.restBytes()/2 {
		return b.w.o.Store(b.ctx, plain, items)
	}
	for i := range items {
		p := plain[items[i].Offset : items[i].Offset+items[i].Length]
		if err := b.addRest(&items[i], p); err != nil {
			return err
		}
	}
	return nil
}

// addRest copies the blocks to be stored into the frame that is being filled.
func (b *batch) addRest(item *pack.Item, p []byte) error {
	if b.rest == nil {
		b.rest = b.w.takePartial()
	}
	if len(b.rest.plain)+int(item.Length) > b.w.o.restBytes() && len(b.rest.items) > 0 {
		if err := b.w.o.Store(b.ctx, b.rest.plain, b.rest.items); err != nil {
			return err
		}
		b.rest.plain, b.rest.items = b.rest.plain[:0], nil
	}
	item.Offset = uint32(len(b.rest.plain))
	if int(item.Length) == len(p) {
		b.rest.plain = append(b.rest.plain, p...)
	} else {
		for i := 0; i*chunk.BlockBytes < len(p); i++ {
			if item.Present&(1<<i) != 0 {
				b.rest.plain = append(b.rest.plain, p[i*chunk.BlockBytes:(i+1)*chunk.BlockBytes]...)
			}
		}
	}
	b.rest.items = append(b.rest.items, *item)
	return nil
}

// putBack leaves the frame that is being filled to the next Write.
func (b *batch) putBack() {
	if b.rest == nil {
		return
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	b.w.partial = append(b.w.partial, b.rest)
}
