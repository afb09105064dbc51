package store

import (
	"context"
	"math/bits"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
)

// maxTargets is how many other chunks a stored chunk may refer to: each may cost a read of another pack.
const maxTargets = 4

// parentChunk returns the id of the parent's chunk at the same place, or the zero hash.
func (w *ImageWriter) parentChunk(ctx context.Context, number int64) (Hash, error) {
	if w.parent == nil {
		return Hash{}, nil
	}
	return w.s.r.chunkID(ctx, *w.parent, number)
}

// refer replaces blocks of a new chunk by references to equal blocks of the parent's chunk at the same place, if
// that saves at least half of them, and if their packs are not suspect.
func (w *ImageWriter) refer(ctx context.Context, e *pack.Entry, prints []chunk.Fingerprint, parent Hash) error {
	whole := *e
	err := w.s.r.eachCopy(ctx, pack.Chunk, parent, func(rd *pack.Reader, old *pack.Entry) error {
		theirs, err := w.s.r.printsOf(ctx, rd)
		if err != nil {
			return err
		}
		slot := entrySlot(rd, old)
		n := w.s.r.blocks
		referTo(e, prints, old, theirs[slot*n:(slot+1)*n])
		return nil
	})
	if err != nil && fault.KindOf(err) == fault.Corrupt {
		// The parent is damaged here; the new restore point needs nothing of it if the chunk is stored whole.
		w.s.r.log.Warn("parent chunk is damaged, storing all of its successor", "chunk", parent.Short(), "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	ok, err := w.s.relyOnRefs(ctx, e.Refs)
	if !ok {
		*e = whole
	}
	return err
}

// printsOf returns the fingerprints of a data pack.
func (r *Repository) printsOf(ctx context.Context, rd *pack.Reader) ([]chunk.Fingerprint, error) {
	id := rd.Directory().Header.ID
	return r.prints.Get(id, func() ([]chunk.Fingerprint, int64, error) {
		var p []chunk.Fingerprint
		err := r.again(ctx, pack.Name(id), func() (err error) {
			p, err = rd.Prints(context.WithoutCancel(ctx))
			return err
		})
		if err != nil {
			return nil, 0, r.packError(id, err)
		}
		return p, int64(len(p)) * 16, nil
	})
}

// referTo works on fingerprints alone.
func referTo(e *pack.Entry, prints []chunk.Fingerprint, old *pack.Entry, theirs []chunk.Fingerprint) {
	var refs []pack.Ref
	var targets []Hash
	present := e.Present
	for i := range prints {
		if e.Present&(1<<i) == 0 {
			continue
		}
		at := findPrint(theirs, prints[i], i)
		if at < 0 {
			continue
		}
		ref, ok := resolve(old, at)
		if !ok {
			continue
		}
		if !contains(targets, ref.Target) {
			if len(targets) == maxTargets {
				continue
			}
			targets = append(targets, ref.Target)
		}
		refs = append(refs, ref)
		present &^= 1 << i
	}
	if 2*bits.OnesCount64(present) <= len(prints) && len(refs) > 0 {
		e.Present, e.Refs = present, refs
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

func contains(in []Hash, h Hash) bool {
	for i := range in {
		if in[i] == h {
			return true
		}
	}
	return false
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

// entrySlot returns the index of an entry that lies in its pack's directory.
func entrySlot(rd *pack.Reader, e *pack.Entry) int {
	entries := rd.Directory().Entries
	for i := range entries {
		if &entries[i] == e {
			return i
		}
	}
	panic("entry of another pack")
}
