package store

import (
	"context"
	"math/bits"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// Limits of what one stored chunk may refer to. Each target may cost a read of another frame, each pack one of
// another file.
const (
	maxTargets      = 8
	maxForeignPacks = 3
	maxPackLoads    = 2 // packs whose fingerprints are fetched for one chunk
	maxCandidates   = 4 // packs the sparse index is asked for
)

// finding gathers references for the blocks of one new chunk, working on fingerprints alone.
type finding struct {
	prints  []chunk.Fingerprint
	left    uint64 // blocks that are present still
	refs    [chunk.MaxBlocks]pack.Ref
	found   uint64
	targets []Hash
	packs   []seal.ID // packs that physically have the blocks, as far as known
	asked   []seal.ID // packs looked into
}

// take replaces block i by a reference, within the limits.
func (f *finding) take(i int, ref pack.Ref) bool {
	if !slices.Contains(f.targets, ref.Target) {
		if len(f.targets) == maxTargets {
			return false
		}
		f.targets = append(f.targets, ref.Target)
	}
	f.refs[i] = ref
	f.left &^= 1 << i
	f.found |= 1 << i
	return true
}

// lookInto takes what a pack physically has of the blocks that are left.
func (f *finding) lookInto(id seal.ID, in *pack.Blocks) {
	f.asked = append(f.asked, id)
	known := slices.Contains(f.packs, id)
	if !known && len(f.packs) == maxForeignPacks {
		return
	}
	for left := f.left; left != 0; left &= left - 1 {
		i := bits.TrailingZeros64(left)
		if ref, ok := in.Find(f.prints[i]); ok && f.take(i, ref) && !known {
			f.packs, known = append(f.packs, id), true
		}
	}
}

// entry makes the references those of e, if they save at least half of the blocks.
func (f *finding) entry(e *pack.Entry) bool {
	if f.found == 0 || 2*bits.OnesCount64(f.left) > len(f.prints) {
		return false
	}
	e.Present = f.left
	e.Refs = make([]pack.Ref, 0, bits.OnesCount64(f.found))
	for rest := f.found; rest != 0; rest &= rest - 1 {
		e.Refs = append(e.Refs, f.refs[bits.TrailingZeros64(rest)])
	}
	return true
}

// findBlocks looks for blocks in packs at hand, then in packs that the sparse index names.
func (s *Session) findBlocks(ctx context.Context, f *finding) error {
	for _, p := range s.near.list() {
		if f.left == 0 {
			return nil
		}
		if p.blocks != nil && s.r.idx.Sound(p.id()) {
			f.lookInto(p.id(), p.blocks)
		}
	}
	loads := 0
	for left := f.left; left != 0 && loads < maxPackLoads && len(f.packs) < maxForeignPacks; left &= left - 1 {
		i := bits.TrailingZeros64(left)
		if f.left&(1<<i) == 0 || !index.Sampled(f.prints[i]) {
			continue
		}
		var buf [maxCandidates]seal.ID
		packs, err := s.r.idx.PacksWith(buf[:0], f.prints[i], maxCandidates)
		if err != nil {
			return fault.Wrap(fault.Internal, "look up", "block", err)
		}
		for _, id := range packs {
			if slices.Contains(f.asked, id) || !s.r.idx.Sound(id) {
				continue
			}
			p, err := s.bringBlocks(ctx, id)
			if err != nil && !damaged(err) {
				return err
			}
			loads++
			if err == nil {
				f.lookInto(id, p.blocks)
			}
			break
		}
	}
	return nil
}

// bringBlocks takes a pack with its fingerprints at hand.
func (s *Session) bringBlocks(ctx context.Context, id seal.ID) (nearPack, error) {
	rd, err := s.r.pack(ctx, id)
	if err != nil {
		return nearPack{}, err
	}
	blocks, err := s.r.blocksOf(ctx, rd)
	if err != nil {
		return nearPack{}, err
	}
	p := nearPack{rd, blocks}
	s.near.touch(p)
	return p, nil
}

// blocksOf returns the fingerprints of a data pack.
func (r *Repository) blocksOf(ctx context.Context, rd *pack.Reader) (*pack.Blocks, error) {
	id := rd.Directory().Header.ID
	return r.prints.Get(id, func() (*pack.Blocks, int64, error) {
		var p []chunk.Fingerprint
		err := r.again(ctx, pack.Name(id), func() (err error) {
			p, err = rd.Prints(context.WithoutCancel(ctx))
			return err
		})
		if err != nil {
			return nil, 0, r.packError(id, err)
		}
		b := rd.NewBlocks(p)
		return b, b.Cost(), nil
	})
}
