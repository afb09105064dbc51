package erasure

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Rebuild writes every shard that a member should have and does not, as after Replace or a long absence. It looks at
// listings, not inside shards: that is Scrub's. progress, if not nil, is called after every object, with bytes of the
// member's shards. It works beside everything else; interrupted, it is simply begun again.
func (s *Store) Rebuild(ctx context.Context, id string, progress func(Progress)) error {
	if err := s.rejoin(ctx); err != nil {
		return err
	}
	m := s.memberByID(id)
	if m == nil {
		return unknownMember("rebuild member", id)
	}
	if _, err := m.store(); err != nil {
		return fault.Context("rebuild member", id, err)
	}
	all, err := s.gatherProven(ctx, objectFolder+"/")
	if err != nil {
		return fault.Context("rebuild member", id, err)
	}
	w := newWalker(0, progress)
	var entries []*entry
	for _, e := range sorted(all, "") {
		if e.group.number == m.group && (e.at[m.slot] == "" || e.short[m.slot]) {
			entries = append(entries, e)
			w.p.BytesTotal += e.geometry().fileBytes()
		}
	}
	w.p.ObjectsTotal = len(entries)
	w.tell()
	var errs []error
	for _, e := range entries {
		n, err := s.restoreShards(ctx, e, []int{m.slot}, nil)
		if ctxErr := ctx.Err(); ctxErr != nil {
			return ctxErr
		}
		if err != nil && !s.removed(ctx, e) {
			errs = append(errs, err)
		}
		w.p.Objects++
		w.p.Bytes += e.geometry().fileBytes()
		w.p.Repaired += n
		w.tell()
		fault.Point("store.erasure.shard-rebuilt")
	}
	if len(errs) > 0 {
		more := ""
		if len(errs) > 3 {
			more = fmt.Sprintf(" and %d more objects", len(errs)-3)
		}
		kind := fault.KindOf(errs[0])
		if kind == fault.NotFound { // folders of the member, not the member
			kind = fault.Transient
		}
		return fault.New(kind, "rebuild member", id, "%v%s", errors.Join(errs[:min(3, len(errs))]...), more)
	}
	return s.filled(ctx, m)
}

// removed reports whether an object has gone since it was listed.
func (s *Store) removed(ctx context.Context, e *entry) bool {
	_, err := s.locate(ctx, "rebuild", e.name, true)
	return err != nil && fault.KindOf(err) == fault.NotFound
}

// filled records that a member has what it should have, if that is so: objects may have been written without it since.
func (s *Store) filled(ctx context.Context, m *member) error {
	if s.memberDoc(m).complete() {
		return nil
	}
	return s.owning(ctx, func() error { return s.settle(ctx) })
}

func (s *Store) memberByID(id string) *member {
	_, groups := s.snapshot()
	for _, g := range groups {
		for _, m := range g.members {
			if m.id == id {
				return m
			}
		}
	}
	return nil
}

func unknownMember(op, id string) error {
	return fault.New(fault.NotFound, op, id, "the set has no such member").Explain(
		"The erasure set has no member of this name.", "Look at the set's health for the names of its members.")
}

// Members returns the ids of all members, by group and slot.
func (s *Store) Members() [][]string {
	d, _ := s.snapshot()
	var out [][]string
	for _, g := range d.Groups {
		var ids []string
		for _, m := range g.Members {
			ids = append(ids, m.ID)
		}
		out = append(out, slices.Clip(ids))
	}
	return out
}
