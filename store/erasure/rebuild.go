package erasure

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
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

// owning runs f with the gate held exclusively, as the owner: the locks are taken for it if they are not held.
func (s *Store) owning(ctx context.Context, f func() error) error {
	if !s.owned() {
		release, err := s.Acquire(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = release() }()
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	return f()
}

// Replace puts an empty new member in the place of one that is lost or to be taken out. The old one is not part of the
// set any more from then on, and is refused if it comes back; but while it can be read, this process reads from it
// what the new one does not have yet. Rebuild fills the new one; its id is that of fresh, or made up
// and returned. One that failed can be repeated with the same place.
func (s *Store) Replace(ctx context.Context, id string, fresh Member) (newMember string, err error) {
	err = s.owning(ctx, func() error {
		old := s.memberByID(id)
		if old == nil {
			return unknownMember("replace member", id)
		}
		if err := s.settle(ctx); err != nil {
			return err
		}
		if err := s.replaceable(old); err != nil {
			return err
		}
		md := s.memberDoc(old)
		m, b, err := s.enlist(ctx, fresh, old.group, old.slot)
		if err != nil {
			return err
		}
		newMember = m.id
		fault.Point("store.erasure.member-enlisted")
		d, groups := s.snapshot()
		next := d.next()
		if fresh.Domain == "" {
			m.given.Domain = md.Domain
		}
		next.Groups[old.group].Members[old.slot] = s.newcomer(m.id, m.given.Domain)
		if err := putDocument(ctx, b, next); err != nil {
			return errors.Join(m.failed(err), m.discharge())
		}
		open := map[string]*member{m.id: m}
		for _, g := range groups {
			for _, o := range g.members {
				if o != old {
					open[o.id] = o
				}
			}
		}
		if err := s.install(ctx, next); err != nil {
			return errors.Join(err, m.discharge())
		}
		fault.Point("store.erasure.member-replaced")
		if err := s.adopt(next, open); err != nil {
			return err
		}
		s.cache.clear()
		if err := errors.Join(s.joinSession(ctx, b), s.settle(ctx)); err != nil { // the next owner does it
			s.log.Warn("new member of erasure set has to catch up", "member", m.id, "err", err)
		}
		return s.retire(ctx, old, m.id)
	})
	return newMember, err
}

// newcomer is a member that knows nothing and has nothing.
func (s *Store) newcomer(id, domain string) memberDoc {
	return memberDoc{ID: id, Domain: domain, Behind: true, Filling: true, Incomplete: true, Session: s.session, Why: whyNew}
}

// replaceable refuses to take out a member without which nobody knows what there is.
func (s *Store) replaceable(old *member) error {
	_, groups := s.snapshot()
	g := groups[old.group]
	st := s.standing(g, present(g))
	st.docs[old.slot] = s.newcomer(old.id, "")
	if st.check("", "") == nil {
		return nil
	}
	return fault.New(fault.Conflict, "replace member", old.id, "the others may lack objects that it has").Explain(
		"Other members of its group were away, failed or are new, and have not been rebuilt since: this member is the only one left that has everything. Nothing was changed.",
		"Rebuild the others or scrub first, then replace it. If it is lost, take it away, then say that what the others have counts: "+st.command())
}

// enlist makes an empty place a member and takes its lock.
func (s *Store) enlist(ctx context.Context, fresh Member, group, slot int) (*member, blob.Store, error) {
	if fresh.ID == "" {
		fresh.ID = newID()[:8]
	}
	if s.memberByID(fresh.ID) != nil {
		return nil, nil, fault.New(fault.Exists, "add member", fresh.ID, "the set has a member of this name")
	}
	_, groups := s.snapshot()
	for _, g := range groups {
		for _, m := range g.members {
			if m.up() && m.given.place() == fresh.place() {
				return nil, nil, fault.New(fault.Exists, "add member", fresh.place(), "it is member %s of this set", m.id)
			}
		}
	}
	b, err := fresh.create()
	if err != nil {
		return nil, nil, fault.Context("add member", fresh.place(), err)
	}
	m := &member{given: fresh, id: fresh.ID, group: group, slot: slot, b: b, own: fresh.Store == nil, state: Online}
	if err = s.clearAttempt(ctx, b); err == nil {
		err = mustBeEmpty(ctx, b)
	}
	if err == nil {
		err = m.lock(ctx, b)
	}
	if err == nil {
		err = putIdentity(ctx, b, identity{formatVersion, s.setID(), fresh.ID, group, slot})
	}
	if err != nil {
		return nil, nil, errors.Join(m.failed(err), m.discharge())
	}
	return m, b, nil
}

// clearAttempt removes what a Replace or Grow that failed has left at a place: an identity of this set that no member
// of it has, and descriptions of the set. If anything else is there, nothing is removed: that is for mustBeEmpty.
func (s *Store) clearAttempt(ctx context.Context, b blob.Store) error {
	i, err := readIdentity(ctx, b)
	if err != nil || i.Set != s.setID() || s.memberByID(i.Member) != nil {
		return nil
	}
	var left []string
	for info, err := range b.List(ctx, "") {
		if err != nil {
			return fault.Context("look at new member", b.Location(), err)
		}
		switch {
		case strings.HasPrefix(info.Name, setPrefix):
			left = append(left, info.Name)
		case info.Name != memberName && info.Name != memberCopy:
			return nil
		}
	}
	for _, name := range left { // the identity goes last, so that this can be repeated, too
		if err := b.Delete(ctx, name); err != nil {
			return fault.Context("use as new member", b.Location(), err)
		}
	}
	return nil
}

// Grow adds one or more groups of empty members, of the layout of the first group. New objects go to the group with the
// largest free share; those that are there stay where they are. One that failed can be repeated with the same places.
func (s *Store) Grow(ctx context.Context, members []Member, o CreateOptions) (Plan, error) {
	d, _ := s.snapshot()
	p, err := NewPlan(members, d.Groups[0].Layout)
	if err != nil {
		return p, err
	}
	if p.LoseDomains == 0 && !o.Force {
		return p, losesDomain(p.Layout)
	}
	return p, s.owning(ctx, func() error {
		d, groups := s.snapshot()
		next := d.next()
		open := map[string]*member{}
		for _, g := range groups {
			for _, m := range g.members {
				open[m.id] = m
			}
		}
		var fresh []*member
		undo := func(err error) error {
			for _, m := range fresh {
				err = errors.Join(err, m.discharge())
			}
			return err
		}
		for _, gm := range p.Groups {
			for slot, given := range gm {
				m, _, err := s.enlist(ctx, given, len(next.Groups), slot)
				if err != nil {
					return undo(err)
				}
				fresh = append(fresh, m)
				open[m.id] = m
			}
			next.Groups = append(next.Groups, newGroup(gm, p.Layout))
		}
		// The new ones first: as soon as the others have the document, all of it must be there.
		for _, m := range fresh {
			b, err := m.store()
			if err == nil {
				err = putDocument(ctx, b, next)
			}
			if err != nil {
				return undo(m.failed(err))
			}
		}
		fault.Point("store.erasure.group-described")
		if err := s.install(ctx, next); err != nil {
			return undo(err)
		}
		fault.Point("store.erasure.group-added")
		if err := s.adopt(next, open); err != nil {
			return err
		}
		for _, m := range fresh {
			b, err := m.store()
			if err == nil {
				err = s.joinSession(ctx, b)
			}
			if err != nil { // the next owner takes it for one that was away, and looks
				s.log.Warn("new member of erasure set has to catch up", "member", m.id, "err", m.failed(err))
			}
		}
		return nil
	})
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
