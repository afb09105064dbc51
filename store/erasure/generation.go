package erasure

import (
	"context"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Generation is how far a set has come. Who uses one again and again keeps the newest it has seen apart from it: a
// mirror's half that is used alone, after the other was, has no other way to know.
type Generation struct {
	Set      string `json:"set"`
	Version  uint64 `json:"version"`  // of the set's description
	Document string `json:"document"` // the id of that version
	Session  uint64 `json:"session"`  // the number of the last owner
}

// Generation returns how far the set has come.
func (s *Store) Generation() Generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Generation{Set: s.doc.Set, Version: s.doc.Version, Document: s.doc.ID, Session: s.session}
}

// remember tells of a new generation. What led to it does not count before that has worked.
func (s *Store) remember(ctx context.Context) error {
	g := s.Generation()
	if s.o.Remember == nil || g == s.known {
		return nil
	}
	if err := s.o.Remember(context.WithoutCancel(ctx), g); err != nil {
		return fault.Context("remember how far the set has come", s.Location(), err)
	}
	s.known = g
	return nil
}

// current refuses members that together are not as new as what is remembered apart from them, unless one is trusted.
func (s *Store) current() error {
	known, d := s.known, s.doc
	if known.Set != d.Set || d.descends(&setDocument{ID: known.Document, Version: known.Version}) && s.session >= known.Session {
		return nil
	}
	for _, id := range s.o.Trust {
		if m := s.memberByID(id); m == nil || !m.up() {
			continue
		}
		next := d.next()
		next.Version = max(next.Version, known.Version+1)
		next.Ancestors = append(next.Ancestors, known.Document)
		s.log.Warn("member of erasure set is trusted although it was used later", "member", id, "session", s.session, "known", known.Session)
		s.mu.Lock()
		s.doc, s.session = next, max(s.session, known.Session) // install makes it count
		s.trusted = append(s.trusted, id)
		s.mu.Unlock()
		return nil
	}
	_, groups := s.snapshot()
	i := max(0, slices.IndexFunc(groups, func(g *group) bool { return slices.Contains(present(g), true) }))
	return fault.New(fault.Transient, "open erasure set", s.Location(), "the members that are there are older than what was used here last").Explain(
		"The set was used without these members since, or they are older copies: what was written then is not on them, and what was deleted then is. Nothing was changed.",
		"Bring back the members that were used last. If they are lost for good, say that what is there counts: "+s.standing(groups[i], present(groups[i])).command())
}
