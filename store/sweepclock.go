package store

import (
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
)

// backdate makes every proof older than a cycle that begins. Whether a pack was read in the cycle is told by the time
// of its proof; one from a time when the clock was ahead would pass for a reading that is yet to come.
func (r *Repository) backdate(begin time.Time) error {
	proofs, err := r.idx.Proofs()
	for id, p := range proofs {
		if err == nil && !p.Time.Before(begin) {
			err = r.idx.SetProof(id, index.Proof{Time: begin.Add(-time.Nanosecond), Good: p.Good})
		}
	}
	if err != nil {
		return fault.Wrap(fault.Internal, "update index of repository", r.b.Location(), err)
	}
	return nil
}
