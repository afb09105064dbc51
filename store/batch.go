package store

import (
	"context"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
)

// batch gathers the new chunks of one Write into frames. Whole chunks that follow each other in the caller's memory
// become frames without being copied; the rest goes through a frame that later Writes of the image fill up.
type batch struct {
	w   *ImageWriter
	ctx context.Context //nolint:containedctx // lives for one Write

	src        []byte // what the Write was given
	start, end int    // the run: a part of src
	run        []pack.Item
	rest       *frame
	spare      []chunk.Fingerprint
	trail      trail
}

// prints returns memory for the fingerprints of one chunk, which an entry may keep.
func (b *batch) prints(blocks int) []chunk.Fingerprint {
	if len(b.spare) < blocks {
		b.spare = make([]chunk.Fingerprint, 16*blocks)
	}
	out := b.spare[:blocks:blocks]
	return out
}

// add takes a chunk whose entry says which of its blocks are to be stored. It lies at src[at:], unless at is negative.
func (b *batch) add(e pack.Entry, prints []chunk.Fingerprint, p []byte, at int) error {
	b.spare = b.spare[len(prints):]
	item := pack.Item{Entry: e, Prints: prints}
	if at < 0 || int(e.Length) != len(p) {
		return b.addRest(item, p)
	}
	if at != b.end || b.end-b.start+len(p) > frameTarget {
		if err := b.flushRun(); err != nil {
			return err
		}
		b.start, b.end = at, at
	}
	item.Offset = uint32(b.end - b.start)
	b.end += len(p)
	b.run = append(b.run, item)
	return nil
}

// flushRun stores a run that is long enough for a frame; a shorter one joins the rest.
func (b *batch) flushRun() error {
	items, plain := b.run, b.src[b.start:b.end]
	b.run, b.start, b.end = nil, 0, 0
	if len(plain) >= frameTarget/2 {
		return b.store(&frame{plain: plain, items: items})
	}
	for _, item := range items {
		if err := b.addRest(item, plain[item.Offset:item.Offset+item.Length]); err != nil {
			return err
		}
	}
	return nil
}

// addRest copies the blocks to be stored into the frame that is being filled.
func (b *batch) addRest(item pack.Item, p []byte) error {
	if b.rest == nil {
		b.rest = b.w.takePartial()
	}
	if len(b.rest.plain)+int(item.Length) > frameTarget && len(b.rest.items) > 0 {
		if err := b.store(b.rest); err != nil {
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
	b.rest.items = append(b.rest.items, item)
	return nil
}

func (b *batch) store(f *frame) error {
	n, err := b.w.s.storeFrame(b.ctx, pack.Data, f)
	b.w.stored.Add(int64(n))
	return err
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

func (w *ImageWriter) takePartial() *frame {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.partial)
	if n == 0 {
		return &frame{plain: make([]byte, 0, frameTarget)}
	}
	f := w.partial[n-1]
	w.partial = w.partial[:n-1]
	return f
}
