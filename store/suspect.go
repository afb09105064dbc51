package store

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// damaged reports whether err says that stored bytes are not there, or not what was written.
func damaged(err error) bool {
	kind := fault.KindOf(err)
	return kind == fault.Corrupt || kind == fault.NotFound
}

// suspect records that a pack was found damaged: what is in it counts as stored no more, so it is stored again.
func (r *Repository) suspect(id seal.ID, cause error) {
	if r.o.ReadOnly {
		return
	}
	first, err := r.idx.Suspect(id)
	if first {
		r.log.Error("pack is damaged; backups no longer rely on it", "pack", pack.Name(id), "err", cause)
	}
	if err != nil {
		r.log.Warn("damage of pack is not recorded durably; the next verification finds it again", "pack", pack.Name(id), "err", err)
	}
}

// sound returns the packs that a new restore point relies on if it relies on this copy of an object. ok is false if
// one of them is suspect, or if its references lead nowhere any more.
func (r *Repository) sound(ctx context.Context, at index.Location) (packs []seal.ID, ok bool, err error) {
	if r.idx.IsSuspect(at.Pack) {
		return nil, false, nil
	}
	if !at.Refs {
		return []seal.ID{at.Pack}, true, nil
	}
	_, e, err := r.entry(ctx, at)
	if err != nil {
		return nil, false, err
	}
	packs, ok, err = r.soundRefs(ctx, e.Refs)
	return append(packs, at.Pack), ok, err
}

// soundRefs returns packs that are not suspect and hold blocks that are referred to; ok says that each is held.
func (r *Repository) soundRefs(ctx context.Context, refs []pack.Ref) (packs []seal.ID, ok bool, err error) {
	for i, ref := range refs {
		if i > 0 && ref == refs[i-1] {
			continue
		}
		holders, err := r.holders(ctx, ref)
		if err != nil {
			return nil, false, err
		}
		held := false
		for _, id := range holders {
			if !r.idx.IsSuspect(id) {
				held, packs = true, append(packs, id)
			}
		}
		if !held {
			return nil, false, nil
		}
	}
	return packs, true, nil
}

// proveCopy reads one stored copy of an object.
func (r *Repository) proveCopy(ctx context.Context, id Hash, at index.Location) error {
	rd, e, err := r.entry(ctx, at)
	if err != nil {
		return err
	}
	var got Hash
	if e.Type == pack.Chunk {
		whole := make([]byte, r.config.ChunkBytes)
		if err := r.assemble(ctx, rd, e, whole); err != nil {
			return err
		}
		got = r.hasher.Chunk(whole)
	} else {
		p, err := r.slice(ctx, rd, e)
		if err != nil {
			return err
		}
		got = r.objectID(e.Type, p)
	}
	if got != id {
		return r.wrong(rd, e, got)
	}
	return nil
}

// proveRefs reads the blocks that are referred to; frames are authentic or not read.
func (r *Repository) proveRefs(ctx context.Context, refs []pack.Ref) error {
	var block [chunk.BlockBytes]byte
	for _, ref := range refs {
		if err := r.foreignBlock(ctx, ref, block[:]); err != nil {
			return err
		}
	}
	return nil
}

// relyOnRefs pins the packs that a chunk's references need, and reports whether it may have these references.
func (s *Session) relyOnRefs(ctx context.Context, refs []pack.Ref) (bool, error) {
	if len(refs) == 0 {
		return true, nil
	}
	s.r.gc.RLock()
	defer s.r.gc.RUnlock()
	wary := s.r.idx.AnySuspect()
	sound := s.soundRefs
	if wary {
		sound = func(ctx context.Context, _ seal.ID, refs []pack.Ref) ([]seal.ID, bool, error) {
			return s.r.soundRefs(ctx, refs)
		}
	}
	packs, ok, err := sound(ctx, seal.ID{}, refs)
	if ok && err == nil && wary {
		err = s.r.proveRefs(ctx, refs)
	}
	if err != nil && !damaged(err) {
		return false, err
	}
	if err != nil || !ok {
		return false, nil
	}
	s.pin(packs, !wary)
	return true, nil
}

// checkPins refuses to publish what relies on a pack that has gone, has another size, or was found damaged since it
// was relied on without being read. What is not as it was is forgotten, so that the next session stores it anew.
func (s *Session) checkPins(ctx context.Context) error {
	s.mu.Lock()
	pins := maps.Clone(s.pins)
	s.mu.Unlock()
	var bad []string
	for id, unread := range pins {
		ok, err := s.r.asIndexed(ctx, id)
		if err != nil {
			return err
		}
		if !ok || (unread && s.r.idx.IsSuspect(id)) {
			bad = append(bad, pack.Name(id))
		}
	}
	if len(bad) == 0 {
		return nil
	}
	slices.Sort(bad)
	s.r.log.Error("session relied on packs that are damaged", "packs", bad)
	return fault.New(fault.Corrupt, "check packs", s.r.b.Location(), "%d of the packs relied on are missing or damaged: %s",
		len(bad), strings.Join(bad[:min(len(bad), 3)], ", ")).Explain(
		"Files of the repository that were there when this backup began are missing, cut short or damaged, so what was written now could not have been restored. No restore point was made.",
		"Run the backup again: it stores what is missing anew. Verify the older restore points and check the disk under the repository.")
}

// asIndexed reports whether a pack is there with the size it had, and forgets it otherwise.
func (r *Repository) asIndexed(ctx context.Context, id seal.ID) (bool, error) {
	p, ok := r.idx.Pack(id)
	if !ok {
		return false, nil
	}
	gone, err := r.reallyGone(ctx, id, p.Size)
	if err != nil || !gone {
		return err == nil, err
	}
	r.noteLoss()
	return false, r.forget([]seal.ID{id})
}

// reallyGone looks at a pack that should be there. Beside a collect it may have been forgotten meanwhile.
func (r *Repository) reallyGone(ctx context.Context, id seal.ID, size int64) (bool, error) {
	info, err := r.b.Stat(ctx, pack.Name(id))
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return false, err
	}
	_, known := r.idx.Pack(id)
	return known && (err != nil || info.Size != size), nil
}

// lookAgain makes what is known of the packs agree with what is stored: nothing that follows is answered from memory.
// It returns the states of the suspect packs that it read and found damaged still.
func (r *Repository) lookAgain(ctx context.Context) (map[seal.ID]*packState, error) {
	// Beside a collect, a pack that it is about to remove must not come back to the index.
	if !r.o.ReadOnly && r.collecting.TryLock() {
		err := r.syncIndex(ctx)
		r.collecting.Unlock()
		if err != nil {
			return nil, err
		}
	}
	r.directories.Clear()
	r.prints.Clear()
	r.frames.Clear()
	r.nodes.Clear()
	r.askAgain()
	bad := map[seal.ID]*packState{}
	pr := &prover{r, newMeter(r.b, 0)}
	for _, id := range r.idx.Suspects() {
		p, ok := r.idx.Pack(id)
		if !ok {
			continue
		}
		st, err := pr.pack(ctx, id, p.Size)
		if ctxErr := ctx.Err(); ctxErr != nil {
			return nil, ctxErr
		}
		if err != nil {
			continue
		}
		if st.cause != nil {
			bad[id] = st
		} else if err := r.acquit(id); err != nil {
			return nil, err
		}
	}
	return bad, nil
}
