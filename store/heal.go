package store

import (
	"context"
	"errors"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/words"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// HealOptions are choices of one Heal.
type HealOptions struct {
	From   []*Repository // asked in this order for what this one has lost: copies of it, or others of its domain
	DryRun bool          // only report what could be done; what comes back by something else coming back is counted too
}

// HealSource is where something lost was found.
type HealSource struct {
	Repository string `json:"repository"` // its location
	Objects    int    `json:"objects"`
	Bytes      int64  `json:"bytes"`
}

// HealReport is what a Heal found and did.
type HealReport struct {
	DryRun bool         `json:"dry_run"`
	Damage []PackDamage `json:"damage,omitempty"` // packs that are damaged after the backend was asked to repair them

	// Moved were in damaged packs but good there; Healed are from other repositories. All were proven, stored in new
	// packs and read back.
	Moved   HealSource   `json:"moved"`
	Healed  []HealSource `json:"healed,omitempty"`
	Records []string     `json:"records,omitempty"` // restore points whose record was put back

	Quarantined []string       `json:"quarantined,omitempty"` // packs from which nothing is needed any more, put aside
	Kept        []string       `json:"kept,omitempty"`        // damaged packs that stay: something in them is still missing, or in use
	Remaining   int            `json:"remaining"`             // objects that were found nowhere
	Touched     []TouchedPoint `json:"touched,omitempty"`     // what is still not whole
}

// healing is one Heal at work.
type healing struct {
	r      *Repository
	o      HealOptions
	report HealReport
	w      *walker
	states map[seal.ID]*packState
	mute   map[seal.ID]error // packs that do not say what is in them
	s      *Session          // nil in a dry run
	before map[seal.ID]bool

	data   frame
	buf    []byte
	found  map[Hash]bool // lost chunks that were looked for; false: in vain
	hidden bool          // a tree or a record stays unreadable, so that not all that is needed is known
}

// Heal brings back what restore points have lost. What the backend could repair by itself is repaired by then; for the
// rest, everything that is needed of damaged packs is stored again in new packs: from the damaged pack itself where it
// is good there, otherwise, proven by its id, from another repository of the domain. Only when the new packs are
// durable and have been read back, damaged packs from which nothing more is needed are put into quarantine; nothing is
// deleted. It knows of the damage that a Sweep or Verify has found, and of what is missing. If something remains, the
// report says so and the error is of kind Corrupt. No Collect runs beside it, and no Prune while records of restore points
// are put back; anything else may.
func (r *Repository) Heal(ctx context.Context, o HealOptions) (HealReport, error) {
	ctx, leave, err := r.enter(ctx, "heal")
	if err != nil {
		return HealReport{DryRun: o.DryRun}, err
	}
	defer leave()
	h := &healing{r: r, o: o, report: HealReport{DryRun: o.DryRun}, before: map[seal.ID]bool{}, found: map[Hash]bool{}}
	if err := r.writable("heal"); err != nil {
		return h.report, err
	}
	for _, from := range o.From {
		if from == r || !r.SameDomain(from) {
			return h.report, fault.New(fault.Invalid, "heal", r.b.Location(), "repository %s is not a copy of it nor of its domain", from.b.Location()).Explain(
				"Content has other ids in that repository, so nothing can be looked up there.",
				"Heal from a copy of this repository, or from one that was created in its domain.")
		}
		_, leave, err := from.enter(ctx, "heal")
		if err != nil {
			return h.report, err
		}
		defer leave()
	}
	if err := h.run(ctx); err != nil {
		return h.report, fault.Context("heal", r.b.Location(), err)
	}
	if h.report.Remaining > 0 || len(h.report.Touched) > 0 || h.hidden {
		return h.report, fault.New(fault.Corrupt, "heal", r.b.Location(), "%s; %s",
			words.Count(h.report.Remaining, "object was found nowhere", "objects were found nowhere"),
			words.Count(len(h.report.Touched), "restore point is not whole", "restore points are not whole")).Explain(
			"A part of the damage could not be healed. The damaged files stay where they are.",
			"Heal again with another copy of the repository, or run full backups of the machines named.")
	}
	return h.report, nil
}

func (h *healing) run(ctx context.Context) error {
	known, err := h.r.lookAgain(ctx)
	if err != nil {
		return err
	}
	h.r.collecting.Lock()
	defer h.r.collecting.Unlock()
	if err := h.records(ctx); err != nil {
		return err
	}
	if err := h.survey(ctx, known); err != nil {
		return err
	}
	if !h.o.DryRun {
		s, err := h.r.Begin(ctx, SessionOptions{Series: "heal", Writer: "heal"})
		if err != nil {
			return err
		}
		h.s = s
		// All that it stores is durable before it ends, so there is nothing to publish.
		defer func() { _ = s.Abort(context.WithoutCancel(ctx)) }()
	}
	if err := h.walk(ctx, h.r.roots()); err != nil {
		return err
	}
	if err := h.settle(ctx); err != nil {
		return err
	}
	if err := h.quarantine(ctx); err != nil {
		return err
	}
	return h.remains(ctx)
}

// survey finds out what is damaged.
func (h *healing) survey(ctx context.Context, known map[seal.ID]*packState) (err error) {
	if h.states, h.mute, h.report.Damage, err = h.r.survey(ctx, known); err != nil {
		return err
	}
	h.w = newWalker(h.r)
	h.w.mend = h.mend
	for _, p := range h.r.idx.Packs() {
		h.before[p.ID] = true
		if h.states[p.ID] != nil {
			h.w.bad[p.ID] = &packState{gone: true} // what is good in it is to move out
		}
	}
	return nil
}

func (h *healing) walk(ctx context.Context, rs roots) error {
	for ref := range rs.images {
		if _, err := h.w.image(ctx, ref); err != nil {
			return err
		}
	}
	for id := range rs.documents {
		if _, err := h.w.object(ctx, pack.Document, id); err != nil {
			return err
		}
	}
	return nil
}

// quarantine puts damaged packs aside from which nothing is needed any more. In a dry run it says which.
func (h *healing) quarantine(ctx context.Context) error {
	r := h.r
	if h.s != nil {
		if err := r.fence(ctx); err != nil {
			return err
		}
	}
	needed, err := h.walkRest(ctx) // holds gc
	if err != nil {
		return err
	}
	pinned := r.pinned()
	var free []seal.ID
	for id := range h.states {
		_, waits := pinned[id]
		if h.hidden || needed[id] || waits {
			h.report.Kept = append(h.report.Kept, pack.Name(id))
			continue
		}
		free = append(free, id)
		h.report.Quarantined = append(h.report.Quarantined, pack.Name(id))
	}
	for id := range h.mute { // nobody knows what is in it, so all must be there without it
		if h.hidden || h.report.Remaining > 0 {
			h.report.Kept = append(h.report.Kept, pack.Name(id))
			continue
		}
		free = append(free, id)
		h.report.Quarantined = append(h.report.Quarantined, pack.Name(id))
	}
	if h.s != nil {
		err = r.forget(free)
	}
	r.gc.Unlock()
	slices.Sort(h.report.Kept)
	slices.Sort(h.report.Quarantined)
	if err != nil || h.s == nil {
		return err
	}
	for i, id := range free {
		if err := r.b.Rename(ctx, pack.Name(id), quarantineName(pack.Name(id))); err != nil && fault.KindOf(err) != fault.NotFound {
			return errors.Join(err, r.takeBack(context.WithoutCancel(ctx), free[i:]))
		}
	}
	fault.Point("store.heal.quarantined")
	if err := r.idx.Sweep(); err != nil {
		return fault.Wrap(fault.Internal, "sweep index", "", err)
	}
	return nil
}

// takeBack makes packs known again that could not be put aside; they are as damaged as before.
func (r *Repository) takeBack(ctx context.Context, ids []seal.ID) error {
	err := r.syncIndex(ctx)
	for _, id := range ids {
		r.suspect(id, errors.New("found damaged by heal"))
	}
	return err
}

// walkRest looks at what came up since the walk (a reader of a pruned image, a new point), until there is nothing more.
// It returns with gc held exclusively, and which packs are still needed.
func (h *healing) walkRest(ctx context.Context) (map[seal.ID]bool, error) {
	for {
		h.r.gc.Lock()
		rest := roots{map[ImageRef]struct{}{}, map[Hash]struct{}{}}
		for ref := range h.r.roots().images {
			if _, seen := h.w.nodes[ref.Root]; !seen {
				rest.images[ref] = struct{}{}
			}
		}
		for id := range h.r.roots().documents {
			if _, seen := h.w.nodes[id]; !seen {
				rest.documents[id] = struct{}{}
			}
		}
		if len(rest.images)+len(rest.documents) == 0 {
			needed, err := h.needed(ctx)
			if err != nil {
				h.r.gc.Unlock()
			}
			return needed, err
		}
		h.r.gc.Unlock()
		if err := errors.Join(h.walk(ctx, rest), h.settle(ctx)); err != nil {
			return nil, err
		}
	}
}

// needed returns the packs that have something to do with what was found nowhere.
func (h *healing) needed(ctx context.Context) (map[seal.ID]bool, error) {
	out := map[seal.ID]bool{}
	for id, ok := range h.found {
		if ok {
			continue
		}
		places, err := h.r.idx.Lookup(nil, id)
		if err != nil {
			return nil, fault.Wrap(fault.Internal, "look up", id.Short(), err)
		}
		for _, at := range places {
			out[at.Pack] = true
			if err := h.neededRefs(ctx, at, out); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (h *healing) neededRefs(ctx context.Context, at index.Location, out map[seal.ID]bool) error {
	if !at.Refs {
		return nil
	}
	_, e, err := h.r.entry(ctx, at)
	if err != nil {
		if damaged(err) {
			return nil
		}
		return err
	}
	for target := range targets(e.Refs) {
		places, err := h.r.idx.Lookup(nil, target)
		if err != nil {
			return fault.Wrap(fault.Internal, "look up", target.Short(), err)
		}
		for _, at := range places {
			out[at.Pack] = true
		}
	}
	return nil
}

// remains looks at everything once more, as it is now.
func (h *healing) remains(ctx context.Context) error {
	w := h.w // of a dry run: as if everything found were there
	if h.s != nil {
		w = newWalker(h.r)
		w.bad = h.states
	}
	var err error
	h.report.Touched, err = w.touched(ctx)
	if err == nil && h.s != nil && len(h.report.Touched) == 0 && !h.hidden {
		err = h.r.endLoss()
	}
	return err
}
