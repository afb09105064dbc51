package store

import (
	"cmp"
	"context"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// DamageReport is the damage that is known, and what it touches.
type DamageReport struct {
	Packs   []PackDamage   `json:"packs,omitempty"` // by name
	Touched []TouchedPoint `json:"touched,omitempty"`
}

// KnownDamage looks again at the packs in which a Sweep, a Verify or a reader has found damage, and for packs that do
// not say what is in them, and returns those that are still damaged with what is not whole because of them. It looks
// for nothing new inside other packs: that is Sweep's.
func (r *Repository) KnownDamage(ctx context.Context) (DamageReport, error) {
	ctx, leave, err := r.enter(ctx, "look for damage")
	if err != nil {
		return DamageReport{}, err
	}
	defer leave()
	var report DamageReport
	known, err := r.lookAgain(ctx)
	if err != nil {
		return report, err
	}
	states, _, packs, err := r.survey(ctx, known)
	if err != nil {
		return report, err
	}
	report.Packs = packs
	report.Touched, err = r.touchedBy(ctx, states)
	return report, err
}

// survey returns the states of suspect packs, reading those that are not known, the packs that do not say what is in
// them, with the reason, and what is to be said of both, by name.
func (r *Repository) survey(ctx context.Context, known map[seal.ID]*packState) (states map[seal.ID]*packState, mute map[seal.ID]error, damage []PackDamage, err error) {
	if states, err = r.damagedPacks(ctx, known); err != nil {
		return nil, nil, nil, err
	}
	if mute, err = r.unindexed(ctx); err != nil {
		return nil, nil, nil, err
	}
	for _, p := range r.idx.Packs() {
		if st := states[p.ID]; st != nil {
			damage = append(damage, st.damage(p))
		}
	}
	for id, cause := range mute {
		damage = append(damage, PackDamage{Pack: pack.Name(id), Cause: cause.Error()})
	}
	slices.SortFunc(damage, func(a, b PackDamage) int { return cmp.Compare(a.Pack, b.Pack) })
	return states, mute, damage, nil
}

// SuspectPacks counts the packs in which damage has been found and that were not read as good since.
func (r *Repository) SuspectPacks() int { return len(r.idx.Suspects()) }

// damagedPacks returns the states of all suspect packs; those that are not in known are read.
func (r *Repository) damagedPacks(ctx context.Context, known map[seal.ID]*packState) (map[seal.ID]*packState, error) {
	out := map[seal.ID]*packState{}
	pr := &prover{r, newMeter(r.b, 0)}
	for _, id := range r.idx.Suspects() {
		if st := known[id]; st != nil {
			out[id] = st
			continue
		}
		p, ok := r.idx.Pack(id)
		if !ok {
			continue
		}
		gone, err := r.reallyGone(ctx, id, p.Size) // a backend may go on reading a file that is open
		if err != nil {
			return nil, err
		}
		if gone {
			out[id] = &packState{gone: true, cause: missingPack(id)}
			continue
		}
		st, err := pr.pack(ctx, id, p.Size)
		if fault.KindOf(err) == fault.NotFound {
			st, err = &packState{gone: true, cause: err}, nil
		}
		if err != nil {
			return nil, fault.Context("read pack", pack.Name(id), err)
		}
		if st.cause != nil {
			out[id] = st
		}
	}
	return out, nil
}
