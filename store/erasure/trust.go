package erasure

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Trust makes a set usable whose members cannot answer for what is in it, on an admin's word: what those of ids have
// counts as all there is, one of each group that needs it, by id or path. What only members that are not there had is
// gone, and what was deleted while the trusted ones were away may be back. The word holds for this call; what it leads to
// is recorded on the members. A Conflict error says that it is not needed; then nothing was changed.
func Trust(ctx context.Context, members []Member, o Options, ids ...string) (err error) {
	o.Trust = ids
	s, err := Open(ctx, members, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	release, err := s.Acquire(ctx)
	if err != nil {
		return err
	}
	return release()
}

// named translates paths into ids, where somebody lies there.
func named(trust []string, members []*member) (ids []string) {
	for _, name := range trust {
		for _, m := range members {
			if m.up() && m.given.Path != "" && filepath.Clean(m.given.Path) == filepath.Clean(name) {
				name = m.id
			}
		}
		ids = append(ids, name)
	}
	return ids
}

// heeded is an error if the admin's word names somebody who is not there, or is not needed.
func (s *Store) heeded() error {
	for _, id := range s.o.Trust {
		m := s.memberByID(id)
		if m == nil {
			return unknownMember("trust member", id)
		}
		if _, err := m.store(); err != nil {
			return fault.Context("trust member", id, err).Explain(
				"The member is not there. Nothing was changed.", "Name one that is, or bring it back: then no such word may be needed.")
		}
	}
	if len(s.o.Trust) == 0 || len(s.trusted) > 0 {
		return nil
	}
	return fault.New(fault.Conflict, "trust members", strings.Join(s.o.Trust, ", "), "the set can be used without that").Explain(
		"The members that are there can answer for everything that is in the set. Nothing was changed.",
		"Use it. What it lacks, a rebuild or scrub brings back.")
}

// trust applies the admin's word: in groups that need it, a member named by Options.Trust knows everything and has all
// there is.
func (s *Store) trust() {
	for n := range s.o.Trust {
		d, groups := s.snapshot()
		m := s.memberByID(s.o.Trust[n])
		if m == nil || !m.up() {
			continue
		}
		g := groups[m.group]
		if s.standing(g, present(g)).check("", "") == nil {
			continue
		}
		next := d.next()
		md := &next.Groups[m.group].Members[m.slot]
		*md = memberDoc{ID: md.ID, Domain: md.Domain}
		s.log.Warn("member of erasure set is trusted with all there is", "member", m.id)
		s.mu.Lock()
		s.doc = next // install makes it count, with what else is recorded
		delete(s.doubts, m.id)
		s.trusted = append(s.trusted, m.id)
		s.mu.Unlock()
	}
}

// trusting makes the history that the trusted members know the one that counts: members with another are behind. newest
// and apart are two that contradict each other.
func (s *Store) trusting(docs map[string][]*setDocument, newest, apart *setDocument) (*setDocument, error) {
	theirs := map[string][]*setDocument{}
	for _, id := range s.o.Trust {
		if docs[id] != nil {
			theirs[id] = docs[id]
		}
	}
	refuse := func(why string) error {
		return fault.New(fault.Conflict, "open erasure set", newest.Set, "%s", why).Explain(
			"Some members of the set were used without the others, and those without them: there are two histories. Nothing was changed.",
			"Open it once with the members of only one side and look which is right. Then bring all back and name a member of that side, as one of "+
				sides(docs, newest)+" or of "+sides(docs, apart)+": "+s.o.command("MEMBER"))
	}
	if len(theirs) == 0 {
		return nil, refuse("members were written to apart from each other")
	}
	trusted, _ := choose(theirs, func(groupDoc) int { return 0 })
	for _, all := range theirs {
		last := slices.MaxFunc(all, func(a, b *setDocument) int { return int(a.Version) - int(b.Version) })
		if !trusted.descends(last) {
			return nil, refuse("members that are named were written to apart from each other")
		}
	}
	s.mu.Lock()
	s.trusted = append(s.trusted, slices.Sorted(maps.Keys(theirs))...)
	s.mu.Unlock()
	return prevail(docs, trusted), nil
}

// sides lists the members that know a description.
func sides(docs map[string][]*setDocument, d *setDocument) string {
	var ids []string
	for id, all := range docs {
		if slices.ContainsFunc(all, func(o *setDocument) bool { return o.descends(d) }) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return strings.Join(ids, ", ")
}

// prevail is the description that follows on trusted and ends all histories that contradict it.
func prevail(docs map[string][]*setDocument, trusted *setDocument) *setDocument {
	d := trusted.next()
	for name, all := range docs {
		for _, other := range all {
			d.Version = max(d.Version, other.Version+1)
			if trusted.descends(other) {
				continue
			}
			d.Ancestors = append(d.Ancestors, other.ID)
			for g := range d.Groups {
				for slot := range d.Groups[g].Members {
					if m := &d.Groups[g].Members[slot]; m.ID == name {
						*m = m.fell(whyDistrusted, 0)
					}
				}
			}
		}
	}
	return d
}

// command is how an admin says that what is there counts, with the member that is likely to have most.
func (st standing) command() string {
	best, rank := "MEMBER", -1
	for slot, md := range st.docs {
		r := 0
		if !md.Behind {
			r += 2
		}
		if !md.Filling {
			r++
		}
		if st.there[slot] && r > rank {
			best, rank = md.ID, r
		}
	}
	return st.o.command(best)
}

func (o Options) command(member string) string {
	if o.Attach {
		return "cairn repository create " + nameOf(o.Name) + " PATH... --attach --trust " + member
	}
	return "cairn repository trust " + nameOf(o.Name) + " " + member
}

// nameOf is a repository's name as a shell takes it.
func nameOf(name string) string {
	switch {
	case name == "":
		return "NAME"
	case strings.ContainsAny(name, " \t\"'`$&|;<>()*?[]{}!#~\\"):
		return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
	}
	return name
}
