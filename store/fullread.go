package store

import (
	"context"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// lossNote stands in the index while packs are known to be missing without a Collect having removed them, until a
// Sweep or a Heal finds everything that restore points need.
const lossNote = "loss"

// noteLoss records that packs went missing.
func (r *Repository) noteLoss() {
	if err := r.idx.SetNote(lossNote, []byte{1}); err != nil {
		r.log.Warn("loss of packs is not recorded; the next sweep finds it again", "err", err)
	}
}

// endLoss records that nothing is missing.
func (r *Repository) endLoss() error {
	if err := r.idx.SetNote(lossNote, nil); err != nil {
		return fault.Wrap(fault.Internal, "update index of repository", r.b.Location(), err)
	}
	return nil
}

// knownLoss returns the packs in which damage was found, and whether any are known to be missing.
func (r *Repository) knownLoss() (suspects []seal.ID, missing bool, err error) {
	notes, err := r.idx.Notes(lossNote)
	if err != nil {
		return nil, false, fault.Wrap(fault.Internal, "read index of repository", r.b.Location(), err)
	}
	return r.idx.Suspects(), len(notes) > 0, nil
}

// allLost says of packs that nothing in them can be read.
func allLost(packs []seal.ID) map[seal.ID]*packState {
	out := make(map[seal.ID]*packState, len(packs))
	for _, id := range packs {
		out[id] = &packState{gone: true}
	}
	return out
}

// NeedsFullRead reports whether the next backup of a disk has to read all of it, and why, in words. What an
// incremental takes over from its parent image is not read back; so if anything of the parent lies in a pack in which
// damage was found, or is missing, the incremental would inherit the damage, while a full read stores it anew. As long
// as no damage is known, the answer costs nothing; otherwise it looks at the image's tree, and reads damaged packs again
// if the image needs one.
func (r *Repository) NeedsFullRead(ctx context.Context, parent ImageRef) (bool, string, error) {
	ctx, leave, err := r.enter(ctx, "look for damage")
	if err != nil {
		return false, "", err
	}
	defer leave()
	suspects, missing, err := r.knownLoss()
	if err != nil || (len(suspects) == 0 && !missing) {
		return false, "", err
	}
	w := newWalker(r)
	w.bad = allLost(suspects)
	c, err := w.image(ctx, parent)
	if err == nil && c == lost && len(suspects) > 0 {
		// What is good in a damaged pack is relied upon, so it has to be known what is.
		w = newWalker(r)
		if w.bad, err = r.damagedPacks(ctx, nil); err == nil {
			c, err = w.image(ctx, parent)
		}
	}
	if err != nil {
		if damaged(err) {
			return true, "the repository's image to build on is damaged", nil
		}
		return false, "", fault.Context("look at image", parent.Root.Short(), err)
	}
	if c == lost {
		return true, "the image to build on needs files of the repository that are damaged or missing", nil
	}
	return false, "", nil
}

// unindexed returns the packs that are there but cannot be read at all, and why. Packs that are being written are not
// among them. Those that a session relies on may be: it cannot publish any more.
func (r *Repository) unindexed(ctx context.Context) (map[seal.ID]error, error) {
	there, err := r.listPacks(ctx)
	if err != nil {
		return nil, err
	}
	writing := r.writing()
	out := map[seal.ID]error{}
	for id, size := range there {
		if _, ok := r.idx.Pack(id); ok {
			continue
		}
		if writing[id] {
			continue
		}
		_, err := r.openPack(ctx, id, size)
		switch kind := fault.KindOf(err); {
		case err == nil || kind == fault.NotFound || kind == fault.Unsupported:
		case kind == fault.Corrupt:
			out[id] = err
		default:
			return nil, fault.Context("read pack", pack.Name(id), err)
		}
	}
	return out, nil
}

// writing returns the packs that sessions have not made durable yet.
func (r *Repository) writing() map[seal.ID]bool {
	out := map[seal.ID]bool{}
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.sessions {
		s.mu.Lock()
		for p := range s.all {
			out[p.w.ID()] = true
		}
		s.mu.Unlock()
	}
	return out
}
