package store

import (
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
)

// Proofs and a cycle from a time when the clock was years ahead must not keep a sweep from reading.
func TestSweepReadsAfterTheClockWasPutBack(t *testing.T) {
	for name, spoil := range map[string]func(*Repository, time.Time) error{
		"proofs": func(r *Repository, ahead time.Time) error {
			for _, p := range r.idx.Packs() {
				if err := r.idx.SetProof(p.ID, index.Proof{Time: ahead, Good: true}); err != nil {
					return err
				}
			}
			return nil
		},
		"cycle": func(r *Repository, ahead time.Time) error {
			s := &sweep{r: r, cycle: cycle{Started: ahead, Bound: r.idx.NextNumber()}}
			return s.save()
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, rand.New(rand.NewPCG(6, 1)), 2, 3)
			r := f.open(f.dir)
			defer f.shut(r)
			if err := spoil(r, time.Now().AddDate(4, 0, 0)); err != nil {
				t.Fatal(err)
			}
			bad := r.idx.Packs()[0]
			if err := flipAt(filepath.Join(f.dir, pack.Name(bad.ID)), bad.Size/2); err != nil {
				t.Fatal(err)
			}
			read, calls := 0, 0
			for {
				report, err := r.Sweep(t.Context(), SweepOptions{Budget: 300 << 10})
				if err != nil && fault.KindOf(err) != fault.Corrupt {
					t.Fatal(err)
				}
				read += report.Packs
				if calls++; report.Complete {
					break
				}
				if calls > 1000 {
					t.Fatal("the cycle does not end")
				}
			}
			if want := len(r.idx.Packs()); read != want {
				t.Errorf("%d packs were read, there are %d", read, want)
			}
			if !r.idx.IsSuspect(bad.ID) {
				t.Error("the damaged pack was not found")
			}
			proven, err := r.LastVerified(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for id, at := range proven {
				if at.After(time.Now()) {
					t.Errorf("%s was proven at %v, which is yet to come", id, at)
				}
			}
		})
	}
}
