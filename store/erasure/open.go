package erasure

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Open opens a set from its members, in any order; what they are is written on them. Up to Parity members of each group
// may be missing, not given or empty: those stay unused and untouched, and Health names them. Members of another set,
// and members that were replaced, are refused.
func Open(ctx context.Context, members []Member, o Options) (*Store, error) {
	s := newStore(o)
	if err := s.open(ctx, members); err != nil {
		return nil, errors.Join(err, s.drop())
	}
	return s, nil
}

// OpenPaths is Open for directories.
func OpenPaths(ctx context.Context, o Options, paths ...string) (*Store, error) {
	var members []Member
	for _, p := range paths {
		members = append(members, Member{Path: p})
	}
	return Open(ctx, members, o)
}

func (s *Store) drop() (err error) {
	for _, m := range s.unopened {
		err = errors.Join(err, m.close())
	}
	if s.doc != nil {
		err = errors.Join(err, s.Close())
	}
	return err
}

func (s *Store) open(ctx context.Context, members []Member) error {
	var all []*member
	identities := map[*member]identity{}
	for _, given := range members {
		m := &member{given: given, id: given.ID}
		if m.id == "" {
			m.id = given.place()
		}
		all = append(all, m)
		s.unopened = append(s.unopened, m)
		i, err := m.attach(ctx)
		if err != nil {
			s.log.Warn("member of erasure set is not used", "member", given.place(), "err", err)
			continue
		}
		identities[m] = i
	}
	set := ""
	for _, m := range all {
		i, ok := identities[m]
		if ok && set != "" && i.Set != set {
			return m.foreign(fmt.Sprintf("it belongs to set %s, not to %s", i.Set[:8], set[:8]))
		}
		if ok {
			set = i.Set
		}
	}
	if set == "" {
		return noSet(all)
	}
	p, err := hex.DecodeString(set)
	if err != nil {
		return fault.Wrap(fault.Corrupt, "open erasure set", set, err)
	}
	copy(s.set[:], p)
	open := map[string]*member{}
	for m, i := range identities {
		if other := open[i.Member]; other != nil {
			return m.foreign("it is a copy of " + other.given.place() + ", or was given twice")
		}
		open[i.Member] = m
	}
	s.o.Trust = named(s.o.Trust, all)
	d, err := s.readDocuments(ctx, set, open)
	if err != nil {
		return err
	}
	if err := s.adopt(d, open); err != nil {
		return err
	}
	if err := s.seat(identities); err != nil {
		return err
	}
	if err := s.compareSessions(ctx); err != nil {
		return err
	}
	if err := s.current(); err != nil {
		return err
	}
	s.trust()
	return s.heeded()
}

// seat checks that each opened member has the place that its own identity claims, and the groups enough of them.
func (s *Store) seat(identities map[*member]identity) error {
	d, groups := s.snapshot()
	seated := map[*member]bool{}
	for _, g := range groups {
		there := 0
		var missing []string
		for _, m := range g.members {
			seated[m] = true
			if !m.up() {
				missing = append(missing, m.id)
				continue
			}
			if i := identities[m]; i.Group != g.number || i.Slot != m.slot {
				return m.foreign("it says it is member " + fmt.Sprint(i.Slot) + " of group " + fmt.Sprint(i.Group) + ", the set knows it elsewhere")
			}
			there++
		}
		if there < g.layout.Data {
			return fault.New(fault.Transient, "open erasure set", d.Set, "group %d has %d of %d members, %d are needed; missing: %s",
				g.number, there, g.n(), g.layout.Data, strings.Join(missing, ", ")).Explain(
				"Too many members of the set are missing to read what is on it. Nothing was changed.",
				"Check that all its disks are there and mounted, and that all their paths were given.")
		}
		if len(missing) > 0 {
			s.log.Warn("erasure set is degraded", "group", g.number, "missing", missing, "may_lose", there-g.layout.Data)
		}
	}
	var rest []*member
	for _, m := range s.unopened {
		if seated[m] {
			continue
		}
		if m.up() {
			return m.foreign("it was replaced in this set, or is not of it")
		}
		rest = append(rest, m)
	}
	s.unopened = rest
	return nil
}

func (m *member) foreign(why string) error {
	return fault.New(fault.Conflict, "open erasure set", m.given.place(), "%s", why).Explain(
		"The directory "+m.given.place()+" does not belong into this set: "+why+". Nothing on it was changed.",
		"Check which disk is mounted there. A new, empty disk is put in with replace; a disk with data is never written over.")
}

func noSet(all []*member) error {
	var why []string
	for _, m := range all {
		why = append(why, m.given.place()+": "+m.reason)
	}
	return fault.New(fault.NotFound, "open erasure set", "", "no member of one was found: %s", strings.Join(why, "; ")).Explain(
		"None of the places given holds a member of an erasure set.",
		"Check the paths and that the disks are mounted; or create a set there.")
}

// attach opens a member's store and reads who it is. What cannot be used has no store afterwards, and a reason.
func (m *member) attach(ctx context.Context) (i identity, err error) {
	b, err := m.given.open()
	if err != nil {
		return i, m.unusable(Missing, "it cannot be opened: "+err.Error(), err)
	}
	i, err = readIdentity(ctx, b)
	if err != nil {
		if m.given.Store == nil {
			_ = b.Close()
		}
		switch fault.KindOf(err) {
		case fault.NotFound:
			return i, m.unusable(Missing, "it is empty or no member: is the disk mounted, or is it a new one that was not put in with replace?", err)
		case fault.Corrupt:
			return i, m.unusable(Foreign, "what it says about itself is damaged", err)
		}
		return i, m.unusable(Missing, "it cannot be read: "+err.Error(), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.b, m.own, m.state, m.reason = b, m.given.Store == nil, Online, ""
	if m.id != i.Member { // one that is known is read without a lock
		m.id = i.Member
	}
	return i, nil
}

func (m *member) unusable(state MemberState, why string, err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.b, m.state, m.reason = nil, state, why
	return fmt.Errorf("%s: %w", why, err)
}

// readDocuments returns the document that counts, unless members went separate ways.
func (s *Store) readDocuments(ctx context.Context, set string, open map[string]*member) (*setDocument, error) {
	docs := map[string][]*setDocument{}
	var errs []error
	for name, m := range open {
		b, err := m.store()
		if err != nil {
			continue
		}
		all, err := readDocuments(ctx, b)
		if fault.KindOf(err) == fault.Unsupported {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(d *setDocument) bool { return d.Set != set })
		if err != nil || len(all) == 0 {
			errs = append(errs, m.failed(err))
			continue
		}
		docs[name] = all
	}
	need := func(g groupDoc) int { return min(g.Data+s.o.Spare, g.Layout.Members()) }
	newest, apart := choose(docs, need)
	switch {
	case newest == nil:
		return nil, fault.New(fault.Corrupt, "open erasure set", set, "too few members have a readable description of the set: %v", errors.Join(errs...)).Explain(
			"The description of the set is missing or damaged on too many of the members that are there.",
			"If more members exist, make them available. A set whose creation was interrupted holds nothing: empty its directories and create it again.")
	case apart == nil:
		return newest, nil
	}
	return s.trusting(docs, newest, apart)
}
