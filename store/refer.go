package store

import (
	"context"
	"math/bits"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
)

// parentChunk returns the id of the parent's chunk at the same place, or the zero hash.
func (w *ImageWriter) parentChunk(ctx context.Context, number int64) (Hash, error) {
	if w.parent == nil {
		return Hash{}, nil
	}
	return w.s.r.chunkID(ctx, *w.parent, number)
}

// refer replaces blocks of a new chunk by references to equal blocks: of the parent's chunk at the same place, then
// of packs at hand and of those the sparse index names. The chunk stays whole if that does not save half of its
// blocks, or if what it would refer to is not sound.
func (w *ImageWriter) refer(ctx context.Context, e *pack.Entry, prints []chunk.Fingerprint, parent Hash) error {
	whole := *e
	f := &finding{prints: prints, left: e.Present}
	if !parent.IsZero() {
		if err := w.referToParent(ctx, f, parent); err != nil {
			return err
		}
	}
	if f.left != 0 && w.s.r.sparse {
		if err := w.s.findBlocks(ctx, f); err != nil {
			return err
		}
	}
	if !f.entry(e) {
		return nil
	}
	ok, err := w.s.relyOnRefs(ctx, e.Refs)
	if !ok {
		*e = whole
	}
	return err
}

// referToParent looks for the blocks of a chunk in that of the parent, which may itself refer to others.
func (w *ImageWriter) referToParent(ctx context.Context, f *finding, parent Hash) error {
	err := w.s.r.eachCopy(ctx, pack.Chunk, parent, func(rd *pack.Reader, old *pack.Entry) error {
		blocks, err := w.s.r.blocksOf(ctx, rd)
		if err != nil {
			return err
		}
		w.s.near.touch(nearPack{rd, blocks})
		slot, ok := rd.Directory().Find(parent)
		if !ok {
			return fault.New(fault.Internal, "find", "chunk "+parent.Short(), "it is not in the pack it was found in")
		}
		f.lookIntoChunk(old, blocks.Of(slot))
		return nil
	})
	if err != nil && damaged(err) {
		// The parent is damaged here; the new restore point needs nothing of it if the chunk is stored whole.
		w.s.r.log.Warn("parent chunk is damaged, storing all of its successor", "chunk", parent.Short(), "err", err)
		return nil
	}
	return err
}

// lookIntoChunk takes what a stored chunk has of the blocks that are left, physically or by reference.
func (f *finding) lookIntoChunk(old *pack.Entry, theirs []chunk.Fingerprint) {
	for left := f.left; left != 0; left &= left - 1 {
		i := bits.TrailingZeros64(left)
		at := findPrint(theirs, f.prints[i], i)
		if at < 0 {
			continue
		}
		if ref, ok := resolve(old, at); ok {
			f.take(i, ref)
		}
	}
}

// findPrint looks for a block first where it was, then anywhere in the chunk.
func findPrint(in []chunk.Fingerprint, f chunk.Fingerprint, first int) int {
	if in[first] == f {
		return first
	}
	for i := range in {
		if in[i] == f {
			return i
		}
	}
	return -1
}

// resolve says where block i of a stored chunk physically is.
func resolve(e *pack.Entry, i int) (pack.Ref, bool) {
	bit := uint64(1) << i
	switch {
	case e.Present&bit != 0:
		return pack.Ref{Target: e.ID, Block: uint8(i)}, true
	case e.Zeros&bit != 0:
		return pack.Ref{}, false
	}
	before := i - bits.OnesCount64((e.Present|e.Zeros)&(bit-1))
	return e.Refs[before], true
}

// blockAt returns where a block's bytes are among an entry's, if it is present.
func blockAt(e *pack.Entry, block uint8) (int, bool) {
	bit := uint64(1) << block
	if e.Present&bit == 0 {
		return 0, false
	}
	return bits.OnesCount64(e.Present&(bit-1)) * chunk.BlockBytes, true
}
