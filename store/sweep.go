package store

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/words"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// SweepOptions are choices of one Sweep.
type SweepOptions struct {
	BytesPerSecond int64               // 0: as fast as it goes
	Budget         int64               // bytes of packs that this call reads, at least one pack; 0: to the end of the cycle
	Progress       func(SweepProgress) // may be nil; called after each pack, from one goroutine at a time
}

// SweepProgress is how far a cycle is.
type SweepProgress struct {
	Packs, PacksTotal int
	Bytes, BytesTotal int64 // of packs
}

// PackDamage is a pack that is not what was written.
type PackDamage struct {
	Pack    string `json:"pack"`
	Missing bool   `json:"missing,omitempty"` // the file is gone or has another size
	Objects int    `json:"objects"`           // in it; 0 if it cannot be told
	Lost    int    `json:"lost"`              // of these, those that cannot be read
	Cause   string `json:"cause"`
}

// SweepReport is the outcome of one Sweep. Counts are of this call, not of the cycle, unless they say so.
type SweepReport struct {
	Started   time.Time      `json:"started"`  // of the cycle
	Complete  bool           `json:"complete"` // the cycle ended with this call
	Packs     int            `json:"packs"`    // read
	Bytes     int64          `json:"bytes"`    // of packs read
	Frames    int64          `json:"frames"`   // opened and decoded
	PacksLeft int            `json:"packs_left"`
	BytesLeft int64          `json:"bytes_left"`
	Proven    int            `json:"proven"`             // restore points that this cycle proved whole; known at its end
	Waiting   int            `json:"waiting"`            // restore points with packs that came after the cycle began; the next one proves them
	Damage    []PackDamage   `json:"damage,omitempty"`   // found by this call, at most 1000
	Problems  []string       `json:"problems,omitempty"` // with objects that are not packs
	Touched   []TouchedPoint `json:"touched,omitempty"`  // what is not whole because of any damage known now
}

const (
	cycleNote  = "cycle"
	wholeNote  = "whole/" // and a restore point's id: since when all of it has been read as good
	sweepFlush = 256 << 20
)

// sweep is one Sweep at work.
type sweep struct {
	r      *Repository
	o      SweepOptions
	pr     *prover
	cycle  cycle
	report SweepReport

	mu      sync.Mutex
	todo    []index.Pack
	total   SweepProgress
	unsaved int64
	states  map[seal.ID]*packState // of damaged packs read in this call
}

// Sweep reads packs back and proves everything in them, each pack once in a cycle however many restore points share
// it, those first that were proven longest ago. A cycle may take many calls and survives restarts with the index; the
// loss of the index only begins a new one. At its end everything that restore points need is looked for in the packs
// proven by it. Damage is in the report, and the error is then of kind Corrupt; sessions no longer rely on the packs in
// which it was found. It runs beside anything but another Sweep.
func (r *Repository) Sweep(ctx context.Context, o SweepOptions) (SweepReport, error) {
	ctx, leave, err := r.enter(ctx, "sweep")
	if err != nil {
		return SweepReport{}, err
	}
	defer leave()
	if !r.sweeping.TryLock() {
		return SweepReport{}, fault.New(fault.Conflict, "sweep", r.b.Location(), "another sweep is running")
	}
	defer r.sweeping.Unlock()
	r.askAgain()
	s := &sweep{r: r, o: o, pr: &prover{r, newMeter(r.b, o.BytesPerSecond)}, states: map[seal.ID]*packState{}}
	err = s.run(ctx)
	s.report.Bytes, s.report.Frames = s.pr.m.bytes.Load(), s.pr.m.frames.Load()
	if flushErr := r.idx.Flush(); flushErr != nil {
		r.log.Warn("what a sweep proved is not recorded durably; it is read again", "err", flushErr)
	}
	if err != nil {
		return s.report, fault.Context("sweep", r.b.Location(), err)
	}
	if n := len(s.report.Damage) + len(s.report.Problems); n > 0 || len(s.report.Touched) > 0 {
		return s.report, s.damage(n)
	}
	return s.report, nil
}

func (s *sweep) damage(n int) error {
	return fault.New(fault.Corrupt, "sweep", s.r.b.Location(), "%s; %s",
		words.Count(n, "object is damaged", "objects are damaged"),
		words.Count(len(s.report.Touched), "restore point is touched", "restore points are touched")).Explain(
		"Files of the repository are not what was written, or missing. The report names the restore points that need them.",
		"Heal the repository from a copy, or run full backups of the machines named; then look for the cause in the storage of the repository.")
}

func (s *sweep) run(ctx context.Context) error {
	if err := s.missing(ctx); err != nil {
		return err
	}
	if err := s.resume(); err != nil {
		return err
	}
	err := s.packs(ctx)
	if err == nil && len(s.todo) == 0 && !s.cycle.Late {
		s.cycle.Bound, s.cycle.Late = s.r.idx.NextNumber(), true
		if err = s.save(); err == nil {
			err = s.plan()
		}
		if err == nil {
			err = s.packs(ctx)
		}
	}
	if err != nil {
		return err
	}
	s.report.PacksLeft = len(s.todo)
	for _, p := range s.todo {
		s.report.BytesLeft += p.Size
	}
	if len(s.todo) == 0 {
		return s.finish(ctx)
	}
	if len(s.report.Damage) > 0 {
		s.report.Touched, err = s.r.touchedBy(ctx, s.states)
	}
	return err
}

// missing makes the index agree with the packs that are there, and reports what is gone.
func (s *sweep) missing(ctx context.Context) error {
	if s.r.o.ReadOnly || !s.r.collecting.TryLock() {
		return nil // beside an owner, or a collect, packs may go rightly; the end of the cycle tells
	}
	defer s.r.collecting.Unlock()
	before := s.r.idx.Packs()
	if err := s.r.syncIndex(ctx); err != nil {
		return err
	}
	for _, p := range before {
		if _, ok := s.r.idx.Pack(p.ID); !ok {
			s.add(PackDamage{Pack: pack.Name(p.ID), Missing: true, Objects: int(p.Entries), Lost: int(p.Entries), Cause: "the file is gone or has another size"})
		}
	}
	return nil
}

func (s *sweep) add(d PackDamage) {
	if len(s.report.Damage) < maxListedDamage {
		s.report.Damage = append(s.report.Damage, d)
	}
}

// packs reads packs until none is left or the budget is.
func (s *sweep) packs(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	workers := s.r.o.Workers
	if s.o.BytesPerSecond > 0 {
		workers = 1
	}
	for range workers {
		g.Go(func() error {
			for {
				p, ok := s.take()
				if !ok {
					return nil
				}
				if err := s.pack(ctx, p); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// take gives out the next pack, if it is within the budget.
func (s *sweep) take() (index.Pack, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.todo) == 0 {
		return index.Pack{}, false
	}
	p := s.todo[0]
	if s.o.Budget > 0 && s.report.Packs > 0 && s.report.Bytes+p.Size > s.o.Budget {
		return index.Pack{}, false
	}
	s.todo = s.todo[1:]
	s.report.Packs++
	s.report.Bytes += p.Size // until the call ends, what was given out
	return p, true
}

// pack proves one pack and records what came of it.
func (s *sweep) pack(ctx context.Context, p index.Pack) error {
	r := s.r
	at := time.Now().UTC()
	st, err := s.pr.pack(ctx, p.ID, p.Size)
	if fault.KindOf(err) == fault.NotFound {
		if _, known := r.idx.Pack(p.ID); !known || r.o.ReadOnly {
			return nil // collected meanwhile
		}
		st, err = &packState{gone: true, cause: err, count: int(p.Entries)}, nil
	}
	if err != nil {
		return fault.Context("read pack", pack.Name(p.ID), err)
	}
	if st.cause != nil {
		r.suspect(p.ID, st.cause)
	} else if err := r.acquit(p.ID); err != nil {
		return err
	}
	if err := r.idx.SetProof(p.ID, index.Proof{Time: at, Good: st.cause == nil}); err != nil {
		return fault.Wrap(fault.Internal, "update index of repository", r.b.Location(), err)
	}
	return s.done(p, st)
}

func (s *sweep) done(p index.Pack, st *packState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total.Packs++
	s.total.Bytes += p.Size
	if st.cause != nil {
		s.states[p.ID] = st
		s.add(st.damage(p))
	}
	if s.o.Progress != nil {
		s.o.Progress(s.total)
	}
	if s.unsaved += p.Size; s.unsaved >= sweepFlush {
		s.unsaved = 0
		if err := s.r.idx.Flush(); err != nil {
			return fault.Wrap(fault.Internal, "update index of repository", s.r.b.Location(), err)
		}
	}
	return nil
}

func (st *packState) damage(p index.Pack) PackDamage {
	d := PackDamage{Pack: pack.Name(p.ID), Objects: int(p.Entries), Lost: len(st.slots), Cause: st.cause.Error()}
	if st.gone {
		d.Lost = d.Objects
	}
	return d
}
