package erasure

import (
	"context"
	"fmt"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

// standing is whose word counts in a group: doc.go has the theorem.
type standing struct {
	layout Layout
	docs   []memberDoc // by slot
	there  []bool      // by slot: the member answers
	o      Options
}

func (s *Store) standing(g *group, there []bool) standing {
	st := standing{layout: g.layout, there: there, o: s.o}
	for _, m := range g.members {
		st.docs = append(st.docs, s.memberDoc(m))
	}
	return st
}

// present tells by slot which members can be asked.
func present(g *group) []bool {
	there := make([]bool, g.n())
	for slot, m := range g.members {
		there[slot] = m.up()
	}
	return there
}

// knows reports whether somebody is there who knows of every delete and rename.
func (st standing) knows() bool {
	for slot, md := range st.docs {
		if st.there[slot] && md.knows() {
			return true
		}
	}
	return false
}

// complete reports whether a member is there that has a shard of every object, under its newest name.
func (st standing) complete() bool {
	for slot, md := range st.docs {
		if st.there[slot] && md.complete() {
			return true
		}
	}
	return false
}

// kept counts the members that are there and kept what was written to them.
func (st standing) kept() (n int) {
	for slot, md := range st.docs {
		if st.there[slot] && !md.Filling {
			n++
		}
	}
	return n
}

// proves reports whether no object can be overlooked: a complete member is there, or more of those that kept what was
// written to them than an acknowledged write may have left out.
func (st standing) proves() bool {
	return st.complete() || st.kept() > st.layout.Members()-st.layout.Data
}

// names reports whether the newest name of every object is among those that are seen.
func (st standing) names() bool { return st.complete() || st.kept() == st.layout.Members() }

// wanted lists the members that would help, with where they stand.
func (st standing) wanted(help func(memberDoc) bool) string {
	var ids []string
	for slot, md := range st.docs {
		if !st.there[slot] && help(md) {
			ids = append(ids, md.ID)
		}
	}
	if len(ids) == 0 {
		return "none of the others"
	}
	return strings.Join(ids, ", ")
}

// unknowing is the error for members that cannot tell what was deleted or renamed.
func (st standing) unknowing(op, subject string) error {
	return fault.New(fault.Transient, op, subject, "the members that are there were away while others were used").Explain(
		"Objects may have been deleted or renamed by members that are not there now, and those that are would bring them back. Nothing was changed.",
		fmt.Sprintf("Bring a member back that knows of it: %s. If they are lost for good, say that what is there counts: %s",
			st.wanted(memberDoc.knows), st.command()))
}

// unproven is the error for members that may all lack an object.
func (st standing) unproven(op, subject string) error {
	return fault.New(fault.Transient, op, subject, "the members that are there may lack objects that others have").Explain(
		"Objects were written while these members were away, failed or were new, and they have not been rebuilt since. What they do not have may still be on members that are not there. Nothing was changed.",
		fmt.Sprintf("Bring a member back that has everything (%s), then rebuild or scrub. If they are lost for good, what only they had is, too; say so: %s",
			st.wanted(func(memberDoc) bool { return true }), st.command()))
}

// check is an error if an owner could take what is there for all there is.
func (st standing) check(op, subject string) error {
	switch {
	case !st.knows():
		return st.unknowing(op, subject)
	case !st.proves():
		return st.unproven(op, subject)
	}
	return nil
}

// reputation applies f to what the set knows of some members and makes that count before anything is acknowledged that
// relies on it. The owner alone may: others' words could contradict his.
func (s *Store) reputation(ctx context.Context, g *group, slots []int, f func(memberDoc) memberDoc) error {
	s.docs.Lock()
	defer s.docs.Unlock()
	d, _ := s.snapshot()
	changed := false
	for _, slot := range slots {
		changed = changed || f(s.memberDoc(g.members[slot])) != d.Groups[g.number].Members[slot]
	}
	if !changed {
		return nil
	}
	if !s.owned() {
		return fault.New(fault.Transient, "go on without a member", s.Location(), "only the owner of the set may").Explain(
			"A member failed, and that it lacks something from now on can only be recorded by the process that owns the set.",
			"Open the set as its owner, or bring the member back.")
	}
	return s.record(ctx, func(m *member, md *memberDoc) {
		for _, slot := range slots {
			if g.members[slot] == m {
				*md = f(*md)
			}
		}
	})
}

// missed records that members have no shard of a write that is about to be acknowledged. Where any k members have one
// among them that has, others than the owner go on without a record: the next owner counts.
func (s *Store) missed(ctx context.Context, g *group, slots []int) error {
	if s.overlaps(g) && !s.owned() {
		return nil
	}
	return s.reputation(ctx, g, slots, func(md memberDoc) memberDoc {
		if md.complete() {
			md.Incomplete, md.Why = true, whyFailed
		}
		return md
	})
}

// unaware records that members do not know of a delete or rename that is about to be acknowledged. Where any k members
// have one among them that does, that is not needed, and a member that failed once goes on being written to.
func (s *Store) unaware(ctx context.Context, g *group, slots []int) error {
	if s.overlaps(g) {
		return nil
	}
	return s.reputation(ctx, g, slots, func(md memberDoc) memberDoc { return md.fell(whyFailed, s.session) })
}

// overlaps reports whether any members that are enough to open a set have one among them that took part in a change.
func (s *Store) overlaps(g *group) bool { return s.need(g)+g.layout.Data > g.n() }
