package erasure

import (
	"context"
	"errors"

	"github.com/cairn-backup/cairn/internal/fault"
)

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
	return p, s.owning(ctx, func() error { return s.grow(ctx, p) })
}

func (s *Store) grow(ctx context.Context, p Plan) error {
	d, groups := s.snapshot()
	next := d.next()
	for _, members := range p.Groups {
		next.Groups = append(next.Groups, newGroup(members, p.Layout))
	}
	fresh, err := s.enlistGroups(ctx, p.Groups, len(groups))
	if err == nil {
		err = s.describeTo(ctx, next, fresh)
	}
	if err != nil {
		for _, m := range fresh {
			err = errors.Join(err, m.discharge())
		}
		return err
	}
	fault.Point("store.erasure.group-added")
	open := seated(groups)
	for _, m := range fresh {
		open[m.id] = m
	}
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
	return s.remember(ctx)
}

// enlistGroups enlists the members of new groups, the first of which has a number. On an error it returns those it has
// enlisted, too.
func (s *Store) enlistGroups(ctx context.Context, groups [][]Member, number int) (fresh []*member, err error) {
	for i, members := range groups {
		for slot, given := range members {
			m, _, err := s.enlist(ctx, given, number+i, slot)
			if err != nil {
				return fresh, err
			}
			fresh = append(fresh, m)
		}
	}
	return fresh, nil
}

// describeTo makes a description count that has new members. They get it first: as soon as the others have it, all of
// the new ones must be there.
func (s *Store) describeTo(ctx context.Context, next *setDocument, fresh []*member) error {
	for _, m := range fresh {
		b, err := m.store()
		if err == nil {
			err = putDocument(ctx, b, next)
		}
		if err != nil {
			return m.failed(err)
		}
	}
	fault.Point("store.erasure.group-described")
	return s.install(ctx, next)
}
