package erasure

import (
	"context"
	"errors"
	"slices"
	"syscall"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// mark makes a mark durable on every member whose word counts. Marks are empty, so that they fit on a full disk.
func (s *Store) mark(ctx context.Context, g *group, mark string, skip func(slot int) bool) []error {
	return each(g.members, func(slot int, m *member, b blob.Store) error {
		if skip != nil && skip(slot) {
			return nil
		}
		if s.memberDoc(m).Behind {
			return fault.New(fault.Transient, "mark on member", m.id, "it has to catch up first")
		}
		err := blob.Put(ctx, b, deadFolder+"/"+mark, nil)
		if err != nil && fault.KindOf(err) == fault.Exists {
			return nil
		}
		return err
	})
}

// unmark takes a mark back; gone reports whether it is nowhere any more.
func (s *Store) unmark(ctx context.Context, g *group, mark string) (gone bool) {
	gone = true
	for _, err := range each(g.members, func(_ int, _ *member, b blob.Store) error {
		return ignoreMissing(b.Delete(ctx, deadFolder+"/"+mark))
	}) {
		gone = gone && err == nil
	}
	return gone
}

func ignoreMissing(err error) error {
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return nil
	}
	return err
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// Delete implements blob.Store. The object is gone when enough members have a mark that says so; then its shards go,
// then the marks, unless a member that could not be reached may still have a shard.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return err
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	defer s.lockName(name)()
	all, err := s.find(ctx, name)
	if err != nil {
		return fault.Context("delete object", name, err)
	}
	if len(all) == 0 {
		return fault.New(fault.NotFound, "delete object", name, "no such object")
	}
	for _, e := range all {
		if err := s.kill(context.WithoutCancel(ctx), e); err != nil {
			return fault.Context("delete object", name, err)
		}
	}
	return nil
}

// kill makes a write dead, then removes what it stored.
func (s *Store) kill(ctx context.Context, e *entry) error {
	defer s.cache.forget(e.name)
	g := e.group
	errs, err := s.condemn(ctx, e)
	if err != nil {
		if !s.unmark(ctx, g, e.write) {
			s.doom(e)
		}
		return err
	}
	s.counted(g, func(c *census) { c.remove(e) })
	fault.Point("store.erasure.delete-marked")
	clean := succeeded(errs) == g.n()
	for slot, err := range s.removeShards(ctx, e) {
		clean = clean && err == nil && e.at[slot] != "" && !s.memberDoc(g.members[slot]).Behind
	}
	fault.Point("store.erasure.shards-removed")
	if clean {
		s.unmark(ctx, g, e.write)
	}
	return nil
}

// condemn marks a write as dead on enough members, and records which of the others do not know of it.
func (s *Store) condemn(ctx context.Context, e *entry) (errs []error, err error) {
	g := e.group
	errs = s.mark(ctx, g, e.write, nil)
	if succeeded(errs) < s.need(g) && s.makeRoom(ctx, e, errs) {
		errs = s.mark(ctx, g, e.write, nil)
	}
	if n := succeeded(errs); n < s.need(g) {
		return errs, tooFew("delete object", e.name, n, s.need(g), errs)
	}
	return errs, s.unaware(ctx, g, failing(errs))
}

// failing lists the slots with an error.
func failing(errs []error) (slots []int) {
	for slot, err := range errs {
		if err != nil {
			slots = append(slots, slot)
		}
	}
	return slots
}

// makeRoom removes one shard from a member that is too full for a mark; the others can do without it.
func (s *Store) makeRoom(ctx context.Context, e *entry, errs []error) bool {
	if e.whole() <= e.k {
		return false
	}
	for slot, err := range errs {
		if err == nil || !isFull(err) || e.at[slot] == "" || s.missed(ctx, e.group, []int{slot}) != nil {
			continue
		}
		b, err := e.group.members[slot].store()
		return err == nil && b.Delete(ctx, e.at[slot]) == nil
	}
	return false
}

// dropAside removes a bad shard that was put aside and is still there after its exchange.
func dropAside(ctx context.Context, b blob.Store, e *entry, slot int) error {
	if e.aside[slot] == "" {
		return nil
	}
	return ignoreMissing(b.Delete(ctx, e.aside[slot]))
}

func (s *Store) removeShards(ctx context.Context, e *entry) []error {
	return each(e.group.members, func(slot int, _ *member, b blob.Store) error {
		if err := dropAside(ctx, b, e, slot); err != nil {
			return err
		}
		if e.at[slot] != "" && !e.exchanging(slot) {
			return ignoreMissing(b.Delete(ctx, e.at[slot]))
		}
		p := e.part
		p.shard = shardOf(e.write, slot, e.group.n())
		return errors.Join(ignoreMissing(b.Delete(ctx, p.path())), ignoreMissing(b.Delete(ctx, p.pending())))
	})
}

// doom makes a write dead for this process: whether it is for all, the next settling decides.
func (s *Store) doom(e *entry) {
	s.counted(e.group, func(c *census) { c.remove(e) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doomed[e.write] = true
}

// Rename implements blob.Store. The new name counts as soon as one member has it.
func (s *Store) Rename(ctx context.Context, from, to string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := errors.Join(checkName(from), checkName(to)); err != nil {
		return fault.Wrap(fault.Invalid, "rename object", from, err)
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	defer s.lockName(from, to)()
	defer s.cache.forget(from, to)
	src, err := s.find(ctx, from)
	if err != nil {
		return fault.Context("rename object", from, err)
	}
	if len(src) == 0 {
		return fault.New(fault.NotFound, "rename object", from, "no such object")
	}
	dst, err := s.find(ctx, to)
	if err != nil {
		return fault.Context("rename object", from, err)
	}
	if len(dst) > 0 {
		return fault.New(fault.Exists, "rename object", from, "%s is there already", to)
	}
	return s.move(context.WithoutCancel(ctx), src[0], to)
}

func (s *Store) move(ctx context.Context, e *entry, to string) error {
	g := e.group
	there, moved := 0, make([]bool, g.n())
	target := func(slot int) string {
		p := e.part
		p.name, p.moves, p.shard = to, e.moves+1, shardOf(e.write, slot, g.n())
		return p.path()
	}
	for slot := range e.at {
		if e.at[slot] != "" && !s.memberDoc(g.members[slot]).Behind {
			there++
		}
	}
	errs := each(g.members, func(slot int, m *member, b blob.Store) error {
		if e.at[slot] == "" || s.memberDoc(m).Behind {
			return nil
		}
		var err error
		if !e.exchanging(slot) {
			err = dropAside(ctx, b, e, slot) // else it would show the old name
		}
		if err == nil {
			err = b.Rename(ctx, e.at[slot], target(slot))
		}
		moved[slot] = err == nil
		fault.Point("store.erasure.shard-renamed")
		return err
	})
	n, left := 0, []int{}
	for slot, m := range g.members {
		if moved[slot] {
			n++
		} else if s.memberDoc(m).Behind || errs[slot] != nil || e.seen == nil || !e.seen[slot] {
			left = append(left, slot) // it may have the old name still, which readers would see when it is back
		}
	}
	var err error
	if need := min(s.need(g), max(there, 1)); n < need {
		err = tooFew("rename object", e.name, n, need, errs)
	} else if n < g.n() { // an older copy of a member may have the old name, too
		err = s.voidNames(ctx, e, left, moved)
	}
	if err == nil {
		return nil
	}
	back := each(g.members, func(slot int, _ *member, b blob.Store) error {
		if !moved[slot] {
			return nil
		}
		return b.Rename(ctx, target(slot), e.at[slot])
	})
	undone := n == g.n() || s.unmark(ctx, g, movedMark(e.write, e.moves+1))
	for slot, err := range back {
		undone = undone && (err == nil || !moved[slot])
	}
	// A rename that failed on a member may have happened there all the same; then it may count for the next owner.
	if len(left) > 0 || !undone {
		s.doom(e)
	}
	return err
}

// voidNames marks names of a write with fewer moves as void, for members that may have one, and records which do not
// know of it.
func (s *Store) voidNames(ctx context.Context, e *entry, left []int, moved []bool) error {
	marks := s.mark(ctx, e.group, movedMark(e.write, e.moves+1), nil)
	if n := succeeded(marks); n < s.need(e.group) {
		return tooFew("rename object", e.name, n, s.need(e.group), marks)
	}
	if err := s.missed(ctx, e.group, left); err != nil {
		return err
	}
	return s.unaware(ctx, e.group, slices.DeleteFunc(failing(marks), func(slot int) bool { return moved[slot] }))
}
