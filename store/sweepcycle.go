package store

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// cycle is a sweep of all packs, kept in the index between calls.
type cycle struct {
	Started time.Time `json:"started"`
	Bound   uint32    `json:"bound"` // packs with lower numbers belong to it
	Late    bool      `json:"late"`  // those that came while it ran do too
}

// resume takes the cycle up, or begins one.
func (s *sweep) resume() error {
	notes, err := s.r.idx.Notes(cycleNote)
	if err != nil {
		return fault.Wrap(fault.Internal, "read index of repository", s.r.b.Location(), err)
	}
	// A clock that was wrong and was put right leaves a cycle that is yet to begin: nobody knows what it has read.
	if json.Unmarshal(notes[""], &s.cycle) != nil || s.cycle.Started.IsZero() || s.cycle.Started.After(time.Now()) {
		s.cycle = cycle{Started: time.Now().UTC(), Bound: s.r.idx.NextNumber()}
		if err := s.r.backdate(s.cycle.Started); err != nil {
			return err
		}
		if err := s.save(); err != nil {
			return err
		}
	}
	s.report.Started = s.cycle.Started
	return s.plan()
}

func (s *sweep) save() error {
	p, err := json.Marshal(s.cycle)
	if err == nil {
		err = s.r.idx.SetNote(cycleNote, p)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, "update index of repository", s.r.b.Location(), err)
	}
	return nil
}

// plan lists the packs that the cycle has not read yet, those proven longest ago first.
func (s *sweep) plan() error {
	proofs, err := s.r.idx.Proofs()
	if err != nil {
		return fault.Wrap(fault.Internal, "read index of repository", s.r.b.Location(), err)
	}
	s.total = SweepProgress{}
	numbers := map[seal.ID]uint32{}
	for _, p := range s.r.idx.Packs() {
		number, ok := s.r.idx.Number(p.ID)
		if !ok || number >= s.cycle.Bound {
			continue
		}
		numbers[p.ID] = number
		s.total.PacksTotal++
		s.total.BytesTotal += p.Size
		if proofs[p.ID].Time.Before(s.cycle.Started) {
			s.todo = append(s.todo, p)
			continue
		}
		s.total.Packs++
		s.total.Bytes += p.Size
	}
	slices.SortFunc(s.todo, func(a, b index.Pack) int {
		return cmp.Or(proofs[a.ID].Time.Compare(proofs[b.ID].Time), cmp.Compare(numbers[a.ID], numbers[b.ID]))
	})
	return nil
}

// finish looks for everything that restore points need in what the cycle has proven.
func (s *sweep) finish(ctx context.Context) error {
	r := s.r
	if err := s.manifests(ctx); err != nil {
		return err
	}
	if err := s.unindexed(ctx); err != nil {
		return err
	}
	proofs, err := r.idx.Proofs()
	if err != nil {
		return fault.Wrap(fault.Internal, "read index of repository", r.b.Location(), err)
	}
	w := newWalker(r)
	if w.bad, err = r.damagedPacks(ctx, s.states); err != nil {
		return err
	}
	w.proven = func(id seal.ID) bool { return proofs[id].Good && !proofs[id].Time.Before(s.cycle.Started) }
	whole := map[string]bool{}
	hurt := false
	for _, p := range r.knownPoints() {
		_, c, err := w.point(ctx, p)
		if err != nil {
			return err
		}
		switch c {
		case proven:
			whole[p.ID] = true
			s.report.Proven++
		case unproven:
			s.report.Waiting++
		default:
			hurt = true
		}
	}
	if hurt {
		if s.report.Touched, err = r.touchedBy(ctx, w.bad); err != nil {
			return err
		}
	}
	if len(s.report.Touched)+len(s.report.Problems) == 0 {
		if err := r.endLoss(); err != nil {
			return err
		}
	}
	if err := s.record(whole); err != nil {
		return err
	}
	s.report.Complete = true
	return nil
}

// unindexed reports the packs that are there but do not say what is in them.
func (s *sweep) unindexed(ctx context.Context) error {
	bad, err := s.r.unindexed(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, d := range s.report.Damage {
		known[d.Pack] = true // of another size than it was, and dropped from the index by this call
	}
	for id, cause := range bad {
		if name := pack.Name(id); !known[name] {
			s.add(PackDamage{Pack: name, Cause: cause.Error()})
		}
	}
	return nil
}

// manifests reads the restore points' records again.
func (s *sweep) manifests(ctx context.Context) error {
	r := s.r
	if err := r.refresh(ctx); err != nil {
		if fault.KindOf(err) != fault.Corrupt {
			return err
		}
		s.report.Problems = append(s.report.Problems, err.Error())
	}
	for _, p := range r.knownPoints() {
		_, err := r.loadPoint(ctx, p.ID)
		if err == nil || (fault.KindOf(err) == fault.NotFound && !r.stillThere(ctx, p.ID)) {
			continue
		}
		if fault.KindOf(err) != fault.Corrupt {
			return err
		}
		s.report.Problems = append(s.report.Problems, err.Error())
	}
	return nil
}

// record notes which restore points the cycle has proven, forgets those that are damaged or gone, and ends the cycle.
func (s *sweep) record(whole map[string]bool) error {
	r := s.r
	notes, err := r.idx.Notes(wholeNote)
	if err != nil {
		return fault.Wrap(fault.Internal, "read index of repository", r.b.Location(), err)
	}
	drop := map[string]bool{}
	for _, t := range s.report.Touched {
		drop[t.RestorePoint] = true
	}
	r.mu.Lock()
	for id := range notes {
		if r.points[id] == nil {
			drop[id] = true
		}
	}
	r.mu.Unlock()
	for id := range drop {
		delete(whole, id)
		if err := r.noteWhole(id, time.Time{}); err != nil {
			return err
		}
	}
	for id := range whole {
		if err := r.noteWhole(id, s.cycle.Started); err != nil {
			return err
		}
	}
	if err := r.idx.SetNote(cycleNote, nil); err != nil {
		return fault.Wrap(fault.Internal, "update index of repository", r.b.Location(), err)
	}
	return nil
}
