package erasure

import (
	"context"
	"errors"
	"maps"
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
	if err := s.settle(ctx); err != nil {
		s.setOwner(false)
		return nil, errors.Join(fault.Context("open erasure set", s.Location(), err), s.unlockMembers())
	}
	return sync.OnceValue(func() error {
		s.gate.Lock()
		defer s.gate.Unlock()
		s.setOwner(false)
		return s.unlockMembers()
	}), nil
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
	for _, g := range groups {
		for _, m := range g.members {
			err = errors.Join(err, m.unlock())
		}
	}
	return err
}

// install makes a new version of the document count: enough members of each group have it before it is used.
func (s *Store) install(ctx context.Context, d *setDocument) error {
	_, groups := s.snapshot()
	for _, g := range groups {
		errs := each(g.members, func(_ int, _ *member, b blob.Store) error {
			defer fault.Point("store.erasure.document-placed")
			return putDocument(ctx, b, d)
		})
		if n := succeeded(errs); n < s.need(g) {
			return tooFew("change erasure set", s.Location(), n, s.need(g), errs)
		}
	}
	s.mu.Lock()
	s.doc = d
	s.mu.Unlock()
	for _, g := range groups {
		each(g.members, func(_ int, _ *member, b blob.Store) error {
			dropDocuments(ctx, b, d)
			return nil
		})
	}
	return nil
}

// settle brings the set into one state. The gate is held exclusively, the locks too.
//
// First it is recorded who is not there: from then on their word does not count, since the others may go on to rely on
// things they would deny. Then every write that is anything but whole is decided, and members that were behind catch up.
func (s *Store) settle(ctx context.Context) error {
	if err := s.record(ctx, func(m *member, md *memberDoc) { md.Behind = md.Behind || !m.up() }); err != nil {
		return err
	}
	fault.Point("store.erasure.absence-recorded")
	_, groups := s.snapshot()
	settled := map[string]bool{}
	for _, g := range groups {
		l, err := s.look(ctx, g, objectFolder+"/", true)
		if err != nil {
			return err
		}
		for slot, err := range l.errs {
			if m := g.members[slot]; err != nil && m.up() && !l.behind[slot] {
				// It was there a moment ago. Without knowing what it says it cannot be one that counts.
				s.log.Warn("member of erasure set is not used", "member", m.id, "err", err)
				m.lose(err)
				return s.settle(ctx)
			}
		}
		failed, err := s.decide(ctx, l)
		if err != nil {
			return err
		}
		for slot, m := range g.members {
			settled[m.id] = l.seen[slot] && !failed[slot]
		}
	}
	return s.record(ctx, func(m *member, md *memberDoc) { md.Behind = md.Behind && !settled[m.id] })
}

// record changes what the document says about members, if that is a change.
func (s *Store) record(ctx context.Context, change func(*member, *memberDoc)) error {
	d, groups := s.snapshot()
	next := d.next()
	changed := false
	for i, g := range groups {
		for slot, m := range g.members {
			md := &next.Groups[i].Members[slot]
			change(m, md)
			changed = changed || *md != d.Groups[i].Members[slot]
		}
	}
	missing := false
	for _, g := range groups {
		for _, err := range each(g.members, func(_ int, _ *member, b blob.Store) error {
			_, err := b.Stat(ctx, d.name())
			return err
		}) {
			missing = missing || (err != nil && fault.KindOf(err) == fault.NotFound)
		}
	}
	switch {
	case changed:
		return s.install(ctx, next)
	case missing:
		return s.install(ctx, d)
	}
	return nil
}

// decide settles every write of a group; failed tells which members did not follow.
func (s *Store) decide(ctx context.Context, l *listing) (failed []bool, err error) {
	g := l.group
	failed = make([]bool, g.n())
	writes := l.writesAnyName()
	waiting := map[string]map[int]bool{} // by write: slots with a pending shard
	for slot, files := range l.wait {
		for _, name := range files {
			write, shard, ok := parsePending(name)
			if !ok || slotOf(write, shard, g.n()) != slot || s.isFlying(write) {
				continue
			}
			if waiting[write] == nil {
				waiting[write] = map[int]bool{}
			}
			waiting[write][slot] = true
		}
	}
	unseen, behind := 0, 0
	for slot, m := range g.members {
		md := s.memberDoc(m)
		if !l.seen[slot] || md.Filling {
			unseen++
		}
		if !l.seen[slot] || md.Behind {
			behind++
		}
	}
	moves := map[string]map[int]bool{} // by write: the marks of moves that members have
	all := map[string]bool{}
	for write := range writes {
		all[write] = true
	}
	for write := range waiting {
		all[write] = true
	}
	for slot := range l.dead {
		for mark := range l.dead[slot] {
			write, n, ok := parseMoved(mark)
			if !ok {
				write = mark
			} else if moves[write] == nil {
				moves[write] = map[int]bool{n: true}
			} else {
				moves[write][n] = true
			}
			all[write] = true
		}
	}
	fail := func(errs []error) (ok bool) {
		ok = true
		for slot, err := range errs {
			if err != nil {
				failed[slot], ok = true, false
			}
		}
		return ok
	}
	for _, write := range slices.Sorted(maps.Keys(all)) {
		if err := ctx.Err(); err != nil {
			return failed, err
		}
		if s.isFlying(write) {
			continue
		}
		w := writes[write]
		dead := l.marked(write)
		// A mark on a member that was away, of a write nobody else knows, is all that is left of it.
		if w == nil && len(waiting[write]) == 0 && l.markedAnywhere(write) {
			dead = true
		}
		if !dead && w == nil && len(waiting[write]) > 0 {
			// Never committed, unless where we cannot look.
			if unseen >= s.need(g) {
				s.log.Warn("unfinished write is kept until missing members are back", "write", write)
				continue
			}
			dead = true
		}
		if dead {
			gone := fail(s.bury(ctx, l, w, write, waiting[write], behind > 0))
			if gone && behind == 0 {
				fail(s.clear(ctx, l, write))
			}
			for n := range moves[write] {
				if gone && behind == 0 {
					fail(s.clear(ctx, l, movedMark(write, n)))
				}
			}
			continue
		}
		named := w == nil || fail(s.complete(ctx, w, waiting[write]))
		// What members that were away believe to be deleted or renamed is not.
		fail(s.clear(ctx, l, write))
		for n := range moves[write] {
			if named && behind == 0 || w != nil && n > w.moves {
				fail(s.clear(ctx, l, movedMark(write, n)))
			}
		}
	}
	return failed, nil
}

// scattered is a write with all files that members have of it.
type scattered struct {
	part
	group *group
	files [][]string // by slot
}

// writesAnyName merges the whole listing by write; the name is the newest one of members whose word counts.
func (l *listing) writesAnyName() map[string]*scattered {
	n := l.group.n()
	out := map[string]*scattered{}
	for _, behind := range []bool{false, true} {
		for slot := range l.files {
			if !l.seen[slot] || l.behind[slot] != behind {
				continue
			}
			for _, info := range l.files[slot] {
				p, ok := parsePart(info.Name)
				if !ok || slotOf(p.write, p.shard, n) != slot {
					continue
				}
				w := out[p.write]
				if w == nil {
					w = &scattered{part: p, group: l.group, files: make([][]string, n)}
					out[p.write] = w
				}
				if p.moves > w.moves && !behind {
					w.part = p
				}
				w.files[slot] = append(w.files[slot], info.Name)
			}
		}
	}
	return out
}

func (l *listing) markedAnywhere(mark string) bool {
	return slices.ContainsFunc(l.dead, func(m map[string]bool) bool { return m[mark] })
}

func (s *Store) isFlying(write string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flying[write]
}

// bury removes all of a dead write, with a mark first where not everybody can be told.
func (s *Store) bury(ctx context.Context, l *listing, w *scattered, write string, waiting map[int]bool, keep bool) []error {
	return each(l.group.members, func(slot int, _ *member, b blob.Store) error {
		if !l.seen[slot] {
			return nil
		}
		files := []string{}
		if w != nil {
			files = append(files, w.files[slot]...)
		}
		if waiting[slot] {
			files = append(files, part{write: write, shard: shardOf(write, slot, l.group.n())}.pending())
		}
		if (keep || (w != nil && len(files) > 0)) && !l.dead[slot][write] {
			err := blob.Put(ctx, b, deadFolder+"/"+write, nil)
			if err != nil && fault.KindOf(err) != fault.Exists && !isFull(err) {
				return err
			}
			l.dead[slot][write] = true
		}
		for _, name := range files {
			if err := ignoreMissing(b.Delete(ctx, name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// clear removes a mark from the members that have it.
func (s *Store) clear(ctx context.Context, l *listing, mark string) []error {
	return each(l.group.members, func(slot int, _ *member, b blob.Store) error {
		if !l.seen[slot] || !l.dead[slot][mark] {
			return nil
		}
		return ignoreMissing(b.Delete(ctx, deadFolder+"/"+mark))
	})
}

// complete gives every shard of a living write its one right name.
func (s *Store) complete(ctx context.Context, w *scattered, waiting map[int]bool) []error {
	return each(w.group.members, func(slot int, _ *member, b blob.Store) error {
		p := w.part
		p.shard = shardOf(w.write, slot, w.group.n())
		right := p.path()
		have := slices.Contains(w.files[slot], right)
		for _, name := range w.files[slot] {
			var err error
			switch {
			case name == right:
			case !have:
				have = true
				err = b.Rename(ctx, name, right)
			default:
				err = b.Delete(ctx, name)
			}
			if err := ignoreMissing(err); err != nil {
				return err
			}
		}
		if !waiting[slot] {
			return nil
		}
		if have {
			return ignoreMissing(b.Delete(ctx, p.pending()))
		}
		return ignoreMissing(b.Rename(ctx, p.pending(), right))
	})
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
