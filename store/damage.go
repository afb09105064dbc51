package store

import (
	"cmp"
	"context"
	"slices"

	"github.com/cairn-backup/cairn/store/pack"
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
	var report DamageReport
	if err := r.lookAgain(ctx); err != nil {
		return report, err
	}
	states, err := r.damagedPacks(ctx, nil)
	if err != nil {
		return report, err
	}
	mute, err := r.unindexed(ctx)
	if err != nil {
		return report, err
	}
	for _, p := range r.idx.Packs() {
		if st := states[p.ID]; st != nil {
			report.Packs = append(report.Packs, st.damage(p))
		}
	}
	for id, cause := range mute {
		report.Packs = append(report.Packs, PackDamage{Pack: pack.Name(id), Cause: cause.Error()})
	}
	slices.SortFunc(report.Packs, func(a, b PackDamage) int { return cmp.Compare(a.Pack, b.Pack) })
	report.Touched, err = r.touchedBy(ctx, states)
	return report, err
}

// SuspectPacks counts the packs in which damage has been found and that were not read as good since.
func (r *Repository) SuspectPacks() int { return len(r.idx.Suspects()) }
