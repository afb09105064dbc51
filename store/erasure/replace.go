package erasure

import (
	"context"
	"errors"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

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
		m, b, err := s.enlist(ctx, fresh, old.group, old.slot)
		if err != nil {
			return err
		}
		newMember = m.id
		fault.Point("store.erasure.member-enlisted")
		return s.supersede(ctx, old, m, b)
	})
	return newMember, err
}

// supersede gives a member's place to another one that was enlisted for it, whose store is b.
func (s *Store) supersede(ctx context.Context, old, m *member, b blob.Store) error {
	d, groups := s.snapshot()
	next := d.next()
	if m.given.Domain == "" {
		m.given.Domain = s.memberDoc(old).Domain
	}
	next.Groups[old.group].Members[old.slot] = s.newcomer(m.id, m.given.Domain)
	err := m.failed(putDocument(ctx, b, next))
	if err == nil {
		err = s.install(ctx, next)
	}
	if err != nil {
		return errors.Join(err, m.discharge())
	}
	fault.Point("store.erasure.member-replaced")
	open := seated(groups)
	delete(open, old.id)
	open[m.id] = m
	if err := s.adopt(next, open); err != nil {
		return err
	}
	s.cache.clear()
	if err := errors.Join(s.joinSession(ctx, b), s.settle(ctx)); err != nil { // the next owner does it
		s.log.Warn("new member of erasure set has to catch up", "member", m.id, "err", err)
	}
	return errors.Join(s.remember(ctx), s.retire(ctx, old, m.id))
}

// seated returns the members of groups by id.
func seated(groups []*group) map[string]*member {
	out := map[string]*member{}
	for _, g := range groups {
		for _, m := range g.members {
			out[m.id] = m
		}
	}
	return out
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
