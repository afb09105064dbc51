package erasure

import (
	"context"
	"errors"
	"slices"
	"sync"
	"syscall"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// Acquire implements blob.Store: the lock of every member that is there, in one order, so that of two processes one
// gets them all. Then it is recorded which members are not there, and what crashes and absences left is settled.
func (s *Store) Acquire(ctx context.Context) (func() error, error) {
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.owned() {
		return nil, fault.New(fault.Conflict, "open repository", s.Location(), "in use by this process")
	}
	if err := s.reopen(ctx); err != nil {
		return nil, err
	}
	if err := s.lockMembers(ctx); err != nil {
		return nil, errors.Join(err, s.unlockMembers())
	}
	s.setOwner(true)
	if err := s.takeOver(ctx); err != nil {
		s.setOwner(false)
		return nil, errors.Join(fault.Context("open erasure set", s.Location(), err), s.unlockMembers())
	}
	return sync.OnceValue(func() error {
		s.gate.Lock()
		defer s.gate.Unlock()
		s.inform(context.WithoutCancel(ctx))
		s.setOwner(false)
		return s.unlockMembers()
	}), nil
}

// takeOver settles what others left and begins a session. Members that fail meanwhile are lost, and that is recorded.
func (s *Store) takeOver(ctx context.Context) error {
	for {
		if err := s.settle(ctx); err != nil {
			return err
		}
		if lost, err := s.beginSession(ctx); err != nil {
			return err
		} else if !lost {
			return s.remember(ctx)
		}
	}
}

// inform gives the document to members that failed when it was changed: alone they would not know what they lack.
func (s *Store) inform(ctx context.Context) {
	d, groups := s.snapshot()
	for _, g := range groups {
		each(g.members, func(_ int, m *member, b blob.Store) error {
			if !s.doubted(m) {
				return nil
			}
			return putDocument(ctx, b, d)
		})
	}
}

func (s *Store) owned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owner
}

func (s *Store) setOwner(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owner = yes
	s.doomed = map[string]bool{}
}

// reopen tries again to open members that are not there, and reads the set's document again: another process may have
// changed it since.
func (s *Store) reopen(ctx context.Context) error {
	d, groups := s.snapshot()
	open := map[string]*member{}
	for _, g := range groups {
		for _, m := range g.members {
			if m.up() || s.attachAgain(ctx, m, d.Set) {
				open[m.id] = m
			}
		}
	}
	// A member that was not there at Open may have come under one of the places that had nothing.
	for _, m := range s.unopened {
		if i, err := m.attach(ctx); err == nil {
			if i.Set != d.Set || open[i.Member] != nil {
				err := m.foreign("it belongs to another set, or is there twice")
				_ = m.close()
				s.log.Warn("member of erasure set is not used", "member", m.given.place(), "err", err)
				continue
			}
			open[i.Member] = m
		}
	}
	newest, err := s.readDocuments(ctx, d.Set, open)
	if err != nil {
		return err
	}
	if err := s.adopt(newest, open); err != nil {
		return err
	}
	if err := s.compareSessions(ctx); err != nil {
		return err
	}
	if err := s.current(); err != nil {
		return err
	}
	s.unopened = slices.DeleteFunc(s.unopened, func(m *member) bool { return m.up() })
	s.cache.clear()
	return nil
}

// attachAgain opens a member that was there before, or was given without being there.
func (s *Store) attachAgain(ctx context.Context, m *member, set string) bool {
	if m.given.place() == "" {
		return false
	}
	want := m.id
	i, err := m.attach(ctx)
	if err != nil {
		return false
	}
	if i.Set != set || i.Member != want {
		_ = m.close()
		_ = m.unusable(Foreign, "another member is at its place", nil)
		m.id = want
		return false
	}
	return true
}

func (s *Store) lockMembers(ctx context.Context) error {
	_, groups := s.snapshot()
	for _, g := range groups {
		var errs []error
		locked := 0
		for _, m := range g.members {
			b, err := m.store()
			if err == nil {
				// A disk that was unmounted leaves an empty directory, which is no member.
				if _, err = readIdentity(ctx, b); err == nil {
					if err = m.lock(ctx, b); err == nil {
						locked++
						continue
					}
				}
				s.log.Warn("member of erasure set is not used", "member", m.id, "err", err)
				err = m.failed(err)
				switch k := fault.KindOf(err); {
				case errors.Is(err, syscall.EROFS): // it can be read
				case k == fault.Canceled || k == fault.Conflict:
					return err
				default:
					m.lose(err)
				}
			}
			errs = append(errs, err)
		}
		if locked < s.need(g) {
			return tooFew("open erasure set", s.Location(), locked, s.need(g), errs)
		}
	}
	return nil
}

func (s *Store) unlockMembers() (err error) {
	_, groups := s.snapshot()
	err = s.unlockDonors()
	for _, g := range groups {
		for _, m := range g.members {
			err = errors.Join(err, m.unlock())
		}
	}
	return err
}

// install makes a new version of the document count: enough members of each group have it before it is used. Those that
// do not get it are not written to until they have.
func (s *Store) install(ctx context.Context, d *setDocument) error {
	_, groups := s.snapshot()
	var without []*member
	for _, g := range groups {
		errs := each(g.members, func(_ int, _ *member, b blob.Store) error {
			defer fault.Point("store.erasure.document-placed")
			return putDocument(ctx, b, d)
		})
		if n := succeeded(errs); n < s.need(g) {
			return tooFew("change erasure set", s.Location(), n, s.need(g), errs)
		}
		for _, slot := range failing(errs) {
			if g.members[slot].up() {
				without = append(without, g.members[slot])
			}
		}
	}
	s.mu.Lock()
	s.doc = d
	clear(s.doubts) // the document says it
	s.mu.Unlock()
	for _, m := range without {
		s.doubt(m, whyFailed)
	}
	for _, g := range groups {
		each(g.members, func(_ int, m *member, b blob.Store) error {
			if !s.doubted(m) {
				dropDocuments(ctx, b, d)
			}
			return nil
		})
	}
	return nil
}

// settle brings the set into one state. The gate is held exclusively, the locks too.
//
// First it is recorded who is not there: from then on their word does not count, since the others may go on to rely on
// things they would deny. Then every write that is anything but whole is decided, members that were behind catch up, and
// it is recorded who lacks shards.
func (s *Store) settle(ctx context.Context) error {
	if err := s.accountable(); err != nil {
		return err
	}
	absent := func(m *member, md *memberDoc) {
		if !m.up() {
			*md = md.fell(whyAway, s.session)
		}
	}
	if err := s.record(ctx, absent); err != nil {
		return err
	}
	fault.Point("store.erasure.absence-recorded")
	_, groups := s.snapshot()
	settled, failed := map[string]bool{}, map[string]bool{} // by member: whether it lacks shards; did not follow
	for _, g := range groups {
		l, err := s.look(ctx, g, objectFolder+"/", true)
		if err == nil {
			err = l.proof
		}
		if s.loseSilent(g, l) {
			return s.settle(ctx)
		}
		if err != nil {
			return err
		}
		d := s.newDecision(l)
		if err := d.all(ctx); err != nil {
			return err
		}
		s.setCensus(g, d.census)
		for slot, m := range g.members {
			switch {
			case d.failed[slot]:
				failed[m.id] = true
			case l.seen[slot]:
				settled[m.id] = d.lacks[slot]
			}
		}
	}
	return s.conclude(ctx, settled, failed)
}

// conclude records what settle has found. Members that failed at it are as if they had been away.
func (s *Store) conclude(ctx context.Context, settled, failed map[string]bool) error {
	err := s.record(ctx, func(m *member, md *memberDoc) {
		if lacks, ok := settled[m.id]; ok {
			*md = md.settled(lacks)
		} else if failed[m.id] {
			*md = md.fell(whyFailed, s.session)
		}
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	clear(s.doomed) // decided now
	s.mu.Unlock()
	if err := s.dismiss(false); err != nil {
		s.log.Warn("member that was replaced could not be closed", "err", err)
	}
	if len(failed) > 0 {
		return s.accountable()
	}
	return nil
}

// accountable is an error if the members that are there could not answer for what is in the set, unless the admin has
// named one that does.
func (s *Store) accountable() error {
	s.trust()
	_, groups := s.snapshot()
	for _, g := range groups {
		if err := s.standing(g, present(g)).check("open erasure set", s.Location()); err != nil {
			return err
		}
	}
	return nil
}

// loseSilent loses members that were there a moment ago and could not be listed: without knowing what they say they
// cannot be ones that count. It reports whether there were any.
func (s *Store) loseSilent(g *group, l *listing) (lost bool) {
	if l == nil {
		return false
	}
	for slot, err := range l.errs {
		if m := g.members[slot]; err != nil && m.up() && !l.behind[slot] {
			s.log.Warn("member of erasure set is not used", "member", m.id, "err", err)
			m.lose(err)
			lost = true
		}
	}
	return lost
}

// record changes what the document says about members, if that is a change.
func (s *Store) record(ctx context.Context, change func(*member, *memberDoc)) error {
	d, groups := s.snapshot()
	next := d.next()
	changed := false
	for i, g := range groups {
		for slot, m := range g.members {
			md := s.memberDoc(m)
			change(m, &md)
			next.Groups[i].Members[slot] = md
			changed = changed || md != d.Groups[i].Members[slot]
		}
	}
	var err error
	switch {
	case changed:
		err = s.install(ctx, next)
	case s.undescribed(ctx, d):
		err = s.install(ctx, d)
	}
	if err != nil {
		return err
	}
	return s.remember(ctx)
}

// undescribed reports whether a member has not got the document.
func (s *Store) undescribed(ctx context.Context, d *setDocument) bool {
	_, groups := s.snapshot()
	for _, g := range groups {
		for _, err := range each(g.members, func(_ int, _ *member, b blob.Store) error {
			_, err := b.Stat(ctx, d.name())
			return err
		}) {
			if err != nil && fault.KindOf(err) == fault.NotFound {
				return true
			}
		}
	}
	return false
}

// lose stops using a member that does not answer. Its lock goes too: it is taken again when the member is back.
func (m *member) lose(err error) {
	_ = m.discharge()
	_ = m.unusable(Missing, err.Error(), err)
}

// discharge releases the member's lock and closes it.
func (m *member) discharge() error { return errors.Join(m.unlock(), m.close()) }

func (m *member) lock(ctx context.Context, b blob.Store) error {
	release, err := b.Acquire(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.release = release
	return err
}

func (m *member) unlock() error {
	m.mu.Lock()
	release := m.release
	m.release = nil
	m.mu.Unlock()
	if release == nil {
		return nil
	}
	return release()
}
