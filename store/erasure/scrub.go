package erasure

import (
	"cmp"
	"context"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/cairn-backup/cairn/internal/fault"
)

// ScrubOptions are choices of one Scrub.
type ScrubOptions struct {
	BytesPerSecond int64  // read and written on all members together; 0: no limit
	From           string // the cursor of an earlier report; "": begin at the beginning
	Budget         int64  // bytes after which to stop and report a cursor; 0: all objects
	NoRepair       bool   // only look
}

// Progress is how far a Scrub or Rebuild is.
type Progress struct {
	Objects, ObjectsTotal int
	Bytes, BytesTotal     int64 // on members
	Repaired              int   // shards
	ETA                   time.Duration
}

// ScrubReport is what a Scrub found and did.
type ScrubReport struct {
	Objects  int             `json:"objects"`
	Bytes    int64           `json:"bytes"` // read from members
	Repaired int             `json:"repaired"`
	Members  []MemberScrub   `json:"members"`
	Damaged  []DamagedObject `json:"damaged,omitempty"` // that could not be made whole
	Cursor   string          `json:"cursor,omitempty"`  // pass it as From to go on; "": the set was gone through to its end
}

// MemberScrub is what was wrong on one member.
type MemberScrub struct {
	ID       string `json:"id"`
	Bad      int    `json:"bad"`      // shards missing or damaged
	Repaired int    `json:"repaired"` // of these
}

// DamagedObject is an object that a Scrub leaves below full redundancy or unreadable.
type DamagedObject struct {
	Name string `json:"name"`
	// Lost: it cannot be read any more. Otherwise it can, and what is wrong waits for a member.
	Lost  bool   `json:"lost"`
	Cause string `json:"cause"`
}

// walker goes through objects under a budget and tells how far it is.
type walker struct {
	limit    *rate.Limiter
	begun    time.Time
	progress func(Progress)
	p        Progress
}

func newWalker(bytesPerSecond int64, progress func(Progress)) *walker {
	w := &walker{begun: time.Now(), progress: progress}
	if bytesPerSecond > 0 {
		// A burst of one read of a run, so that every read fits.
		w.limit = rate.NewLimiter(rate.Limit(bytesPerSecond), max(maxRun*(unitBytes+hashBytes), int(min(bytesPerSecond/4, 1<<30))))
	}
	return w
}

func (w *walker) take(ctx context.Context, n int) error {
	if w.limit == nil {
		return ctx.Err()
	}
	return w.limit.WaitN(ctx, n)
}

func (w *walker) tell() {
	if w.progress == nil {
		return
	}
	if w.p.Bytes > 0 {
		left := float64(max(0, w.p.BytesTotal-w.p.Bytes)) / float64(w.p.Bytes)
		w.p.ETA = time.Duration(left * float64(time.Since(w.begun)))
	}
	w.progress(w.p)
}

// Scrub reads every shard of every object, in the order of their names, proves hashes and parity, and rewrites what is
// missing or damaged; what it rewrote it reads back. The owner also lets members that have come back catch up first.
// progress, if not nil, is called after every object. Damage is in the report and is no error. It works beside
// everything else and can be stopped by ctx and gone on with from the cursor.
func (s *Store) Scrub(ctx context.Context, o ScrubOptions, progress func(Progress)) (ScrubReport, error) {
	var report ScrubReport
	if err := s.rejoin(ctx); err != nil {
		return report, err
	}
	_, groups := s.snapshot()
	for _, g := range groups {
		for _, m := range g.members {
			report.Members = append(report.Members, MemberScrub{ID: m.id})
		}
	}
	all, err := s.gatherProven(ctx, objectFolder+"/")
	if err != nil {
		return report, fault.Context("scrub", s.Location(), err)
	}
	s.census(groups, all)
	entries := sorted(all, o.From)
	w := newWalker(o.BytesPerSecond, progress)
	w.p.ObjectsTotal = len(entries)
	for _, e := range entries {
		w.p.BytesTotal += e.geometry().fileBytes() * int64(e.whole())
	}
	for _, e := range entries {
		if o.Budget > 0 && report.Bytes >= o.Budget {
			return report, nil
		}
		x, fixed, err := s.scrubObject(ctx, e, o, w)
		if ctxErr := ctx.Err(); ctxErr != nil {
			return report, ctxErr
		}
		report.add(x, fixed, err)
		report.Cursor = e.name
		w.p.Objects, w.p.Bytes, w.p.Repaired = report.Objects, report.Bytes, report.Repaired
		w.tell()
	}
	report.Cursor = ""
	if o.NoRepair {
		return report, nil
	}
	return report, s.whole(ctx)
}

// add counts an object that was looked at, in which some slots were made good; no examination: it is gone.
func (r *ScrubReport) add(x *examination, fixed []int, err error) {
	r.Objects++
	if x == nil {
		return
	}
	for slot := range x.bad {
		id := x.e.group.members[slot].id
		at := &r.Members[slices.IndexFunc(r.Members, func(m MemberScrub) bool { return m.ID == id })]
		at.Bad++
		if slices.Contains(fixed, slot) {
			at.Repaired++
		}
	}
	r.Bytes += x.read
	r.Repaired += len(fixed)
	if d, bad := damagedObject(x, fixed, err); bad {
		r.Damaged = append(r.Damaged, d)
	}
}

// whole records who has all shards now.
func (s *Store) whole(ctx context.Context) error {
	if !s.owned() {
		return nil
	}
	d, _ := s.snapshot()
	for _, g := range d.Groups {
		if slices.ContainsFunc(g.Members, func(md memberDoc) bool { return !md.complete() }) {
			return s.owning(ctx, func() error { return s.settle(ctx) })
		}
	}
	return nil
}

// sorted returns the entries that count, by name, after the cursor.
func sorted(all map[string][]*entry, from string) []*entry {
	var out []*entry
	for name, writes := range all {
		if name > from || from == "" {
			out = append(out, writes[0])
		}
	}
	slices.SortFunc(out, func(a, b *entry) int { return cmp.Compare(a.name, b.name) })
	return out
}

// scrubObject answers what is wrong with an object and which slots were made good. No examination: it is gone.
func (s *Store) scrubObject(ctx context.Context, e *entry, o ScrubOptions, w *walker) (*examination, []int, error) {
	x, err := s.examine(ctx, e, w.take)
	if err != nil || len(x.bad) == 0 && x.odd == "" {
		return x, nil, err
	}
	now, err := s.locate(ctx, "scrub", e.name, true)
	if fault.KindOf(err) == fault.NotFound || err == nil && now.write != e.write {
		return nil, nil, nil // removed, or replaced, since it was listed
	}
	if err != nil || o.NoRepair {
		return x, nil, err
	}
	var fixed []int
	for _, slot := range x.fixable() {
		n, rErr := s.restoreShards(ctx, e, []int{slot}, w.take)
		if rErr != nil {
			err = rErr
		} else if n > 0 {
			fixed = append(fixed, slot)
		}
	}
	if len(fixed) > 0 {
		s.log.Warn("object repaired", "object", e.name, "shards", len(fixed), "damage", x.String())
	}
	return x, fixed, err
}

func damagedObject(x *examination, fixed []int, err error) (DamagedObject, bool) {
	d := DamagedObject{Name: x.e.name, Cause: x.String()}
	if err != nil {
		d.Lost = fault.KindOf(err) == fault.Corrupt
		d.Cause += "; " + err.Error()
	}
	d.Lost = d.Lost || x.odd != ""
	return d, len(fixed) < len(x.bad) || x.odd != "" || err != nil
}

// rejoin opens members that have come back and, if this process is the owner, lets them catch up.
func (s *Store) rejoin(ctx context.Context) error {
	if !s.owned() {
		return nil
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	_, groups := s.snapshot()
	for _, g := range groups {
		for _, m := range g.members {
			if m.up() || !s.attachAgain(ctx, m, s.setID()) {
				continue
			}
			b, err := m.store()
			if err == nil {
				err = m.lock(ctx, b)
			}
			if err != nil {
				s.log.Warn("member of erasure set is not used", "member", m.id, "err", err)
				m.lose(err)
			}
		}
	}
	s.cache.clear()
	return s.settle(ctx)
}

func (s *Store) setID() string {
	d, _ := s.snapshot()
	return d.Set
}
