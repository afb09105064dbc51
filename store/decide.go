package store

import (
	"context"
	"math/bits"
	"slices"

	"github.com/cairn-backup/cairn/store/carry"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
)

// local decides about the chunks of one Write in this process: what is given to it is stored before the session ends,
// or the session fails.
type local struct {
	w     *ImageWriter
	trail trail
	last  parentOf
}

// parentOf is the parent's chunk at a place.
type parentOf struct {
	number int64
	id     Hash
}

// Look implements carry.Decider.
func (d *local) Look(ctx context.Context, chunks []carry.Chunk) error {
	for i := range chunks {
		c := &chunks[i]
		if c.ID.IsZero() {
			d.w.zero.Add(int64(d.w.ChunkBytes()))
		} else {
			d.w.given.Add(1)
			known, err := d.w.known(ctx, &d.trail, c, &d.last)
			if err != nil {
				return err
			}
			c.Store = !known && d.w.s.claim(c.ID)
		}
		if err := d.w.setLeaf(ctx, c.Number, c.ID); err != nil {
			return err
		}
	}
	return nil
}

// Place implements carry.Decider.
func (d *local) Place(ctx context.Context, placings []carry.Placing) error {
	for i := range placings {
		if err := d.w.place(ctx, &placings[i], d.last); err != nil {
			return err
		}
		d.w.countNew(&placings[i].Entry)
	}
	return nil
}

// known reports whether the content of a chunk is stored, and if so makes sure that it stays.
func (w *ImageWriter) known(ctx context.Context, t *trail, c *carry.Chunk, last *parentOf) (bool, error) {
	same, err := w.inherited(ctx, c, last)
	if same || err != nil {
		return same, err
	}
	return w.s.has(ctx, t, c.ID)
}

// inherited reports whether the parent has a chunk at its place. The parent is kept for the session's life.
func (w *ImageWriter) inherited(ctx context.Context, c *carry.Chunk, last *parentOf) (bool, error) {
	parent, err := w.parentChunk(ctx, c.Number)
	if err != nil {
		return false, err
	}
	*last = parentOf{c.Number, parent}
	return parent == c.ID && !w.s.r.idx.AnySuspect(), nil
}

// possessed reports whether the content of a chunk is stored, as known does, to who proves to have it by naming the
// fingerprints of all its blocks: an id alone may have been learned from a reference to another machine's chunk.
func (w *ImageWriter) possessed(ctx context.Context, t *trail, p *carry.Placing) (bool, error) {
	known, err := w.s.has(ctx, t, p.ID)
	if !known || err != nil {
		return false, err
	}
	same := false
	err = w.s.r.eachCopy(ctx, pack.Chunk, p.ID, func(rd *pack.Reader, _ *pack.Entry) error {
		blocks, err := w.s.r.blocksOf(ctx, rd)
		if err != nil {
			return err
		}
		w.s.near.touch(nearPack{rd, blocks})
		slot, ok := rd.Directory().Find(p.ID)
		same = ok && slices.Equal(blocks.Of(slot), p.Prints)
		return nil
	})
	if err != nil && !damaged(err) {
		return false, err
	}
	return err == nil && same, nil // else it is stored again, which is always safe
}

// place decides how a new chunk is stored; last is where its parent is looked for first.
func (w *ImageWriter) place(ctx context.Context, p *carry.Placing, last parentOf) (err error) {
	if last.number != p.Number {
		if last.id, err = w.parentChunk(ctx, p.Number); err != nil {
			return err
		}
	}
	return w.refer(ctx, &p.Entry, p.Prints, last.id)
}

// countNew counts a chunk that is stored.
func (w *ImageWriter) countNew(e *pack.Entry) {
	w.new.Add(1)
	w.fresh.Add(int64(bits.OnesCount64(e.Present) * chunk.BlockBytes))
	if len(e.Refs) > 0 {
		w.refs.Add(1)
	}
}

var _ carry.Decider = (*local)(nil)

// allBlocks is the bitmap of all blocks of a chunk.
func (r *Repository) allBlocks() uint64 { return ^uint64(0) >> (64 - r.blocks) }
