package store

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// LastVerified answers for restore points since when every byte of them has been read back as good at least once: the
// beginning of the Sweep cycle or Verify that proved it. Those never proven whole are not in it, nor those that need
// something that was found damaged or missing since, by whatever read it; they come back when the damage is healed, or
// was none. It lives in the index: if that is lost, so is this, until the next Sweep or Verify. As long as no damage is
// known the answer costs nothing, else it looks at trees, and reads damaged packs again if something proven needs one.
func (r *Repository) LastVerified(ctx context.Context) (map[string]time.Time, error) {
	ctx, leave, err := r.enter(ctx, "look for proofs")
	if err != nil {
		return nil, err
	}
	defer leave()
	notes, err := r.idx.Notes(wholeNote)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "read index of repository", r.b.Location(), err)
	}
	out := make(map[string]time.Time, len(notes))
	var points []*point
	for _, p := range r.knownPoints() {
		var at time.Time
		if val, ok := notes[p.ID]; ok && at.UnmarshalText(val) == nil {
			out[p.ID] = at
			points = append(points, p)
		}
	}
	doubtful, err := r.doubtful(ctx, points)
	if err != nil {
		return nil, fault.Context("look for proofs in repository", r.b.Location(), err)
	}
	for id := range doubtful {
		delete(out, id)
	}
	return out, nil
}

// doubtful returns those of the restore points that the damage known now touches.
func (r *Repository) doubtful(ctx context.Context, points []*point) (map[string]bool, error) {
	suspects, missing, err := r.knownLoss()
	if err != nil || (len(suspects) == 0 && !missing) {
		return nil, err
	}
	look := func(bad map[seal.ID]*packState) (map[string]bool, error) {
		w, out := newWalker(r), map[string]bool{}
		w.bad = bad
		for _, p := range points {
			_, c, err := w.point(ctx, p)
			if err != nil {
				return nil, err
			}
			if c == lost {
				out[p.ID] = true
			}
		}
		return out, nil
	}
	out, err := look(allLost(suspects))
	if err != nil || len(out) == 0 {
		return nil, err
	}
	bad, err := r.damagedPacks(ctx, nil) // what is good in a damaged pack is not lost
	if err != nil {
		return nil, err
	}
	return look(bad)
}

// PackProof says when a pack was last read from end to end.
type PackProof struct {
	Pack  string    `json:"pack"`
	Bytes int64     `json:"bytes"`
	Time  time.Time `json:"time"` // zero: never
	Good  bool      `json:"good"`
}

// Proofs returns what is known of each pack, in the order in which the next cycle reads them.
func (r *Repository) Proofs(ctx context.Context) ([]PackProof, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	proofs, err := r.idx.Proofs()
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "read index of repository", r.b.Location(), err)
	}
	var out []PackProof
	packs := r.idx.Packs()
	slices.SortFunc(packs, func(a, b index.Pack) int {
		x, _ := r.idx.Number(a.ID)
		y, _ := r.idx.Number(b.ID)
		return cmp.Compare(x, y)
	})
	for _, p := range packs {
		out = append(out, PackProof{pack.Name(p.ID), p.Size, proofs[p.ID].Time, proofs[p.ID].Good})
	}
	slices.SortStableFunc(out, func(a, b PackProof) int { return a.Time.Compare(b.Time) })
	return out, nil
}

// noteWhole records since when all of a restore point has been read as good; the zero time drops the record.
func (r *Repository) noteWhole(id string, since time.Time) (err error) {
	var val []byte
	if !since.IsZero() {
		if val, err = since.UTC().MarshalText(); err != nil {
			return fault.Wrap(fault.Internal, "record proof", id, err)
		}
	}
	if err := r.idx.SetNote(wholeNote+id, val); err != nil {
		return fault.Wrap(fault.Internal, "record proof", id, err)
	}
	return nil
}

// acquit takes the mark from a pack that was read as good.
func (r *Repository) acquit(id seal.ID) error {
	if !r.idx.IsSuspect(id) {
		return nil
	}
	if err := r.idx.Acquit(id); err != nil {
		return fault.Wrap(fault.Internal, "update index of repository", r.b.Location(), err)
	}
	r.log.Info("pack is good again", "pack", pack.Name(id))
	return nil
}
