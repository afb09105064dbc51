package erasure

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// Sessions are the times that the set had an owner, numbered. Every member keeps the number of the last one it took
// part in, so that an older copy of a disk that is put back is found out: what was deleted since would come back with
// it. A number is announced on all members before it is begun on any: one that has neither was not there.
const (
	sessionPrefix  = setFolder + "/session-"
	announceSuffix = ".next"
)

// attended is which session a member has begun, and which was announced to it.
type attended struct{ begun, announced uint64 }

func (a attended) latest() uint64 { return max(a.begun, a.announced) }

func sessionName(n uint64) string { return fmt.Sprintf("%s%016x", sessionPrefix, n) }

func parseSession(file string) (n uint64, announced, ok bool) {
	rest, ok := strings.CutPrefix(file, sessionPrefix)
	rest, announced = strings.CutSuffix(rest, announceSuffix)
	n, err := strconv.ParseUint(rest, 16, 64)
	return n, announced, ok && err == nil && sessionName(n) == sessionPrefix+rest
}

func readSession(ctx context.Context, b blob.Store) (a attended, err error) {
	err = walk(ctx, b, setFolder+"/", func(i blob.Info) {
		switch n, announced, ok := parseSession(i.Name); {
		case !ok:
		case announced:
			a.announced = max(a.announced, n)
		default:
			a.begun = max(a.begun, n)
		}
	})
	return a, err
}

// compareSessions doubts members that have not attended what they should have: older copies of themselves.
func (s *Store) compareSessions(ctx context.Context) error {
	_, groups := s.snapshot()
	s.mu.Lock()
	clear(s.doubts)
	s.mu.Unlock()
	begun, latest := uint64(0), uint64(0)
	for _, g := range groups {
		sessions := make([]attended, g.n())
		errs := each(g.members, func(slot int, _ *member, b blob.Store) (err error) {
			sessions[slot], err = readSession(ctx, b)
			return err
		})
		if err := ctx.Err(); err != nil {
			return err
		}
		newest := uint64(0)
		for _, a := range sessions {
			newest, latest = max(newest, a.begun), max(latest, a.latest())
		}
		begun = max(begun, newest)
		for slot, m := range g.members {
			want := newest
			if md := s.memberDoc(m); md.Behind {
				want = md.Session
			}
			if errs[slot] == nil && sessions[slot].latest() < want {
				s.log.Warn("member of erasure set is an older copy of itself", "member", m.id, "session", sessions[slot].latest(), "expected", want)
				s.doubt(m, whyCopy)
			}
		}
	}
	s.mu.Lock()
	s.session, s.announced = begun, latest
	s.mu.Unlock()
	return nil
}

// beginSession numbers what the owner is about to do. The members that fail at it are lost: true says that there were
// some, so that this has to be recorded first.
func (s *Store) beginSession(ctx context.Context) (lost bool, err error) {
	_, groups := s.snapshot()
	s.mu.Lock()
	n := max(s.session, s.announced) + 1
	s.mu.Unlock()
	for _, name := range []string{sessionName(n) + announceSuffix, sessionName(n)} {
		for _, g := range groups {
			for slot, err := range each(g.members, func(_ int, _ *member, b blob.Store) error { return putEmpty(ctx, b, name) }) {
				if m := g.members[slot]; err != nil && m.up() {
					s.log.Warn("member of erasure set is not used", "member", m.id, "err", err)
					m.lose(err)
					lost = true
				}
			}
		}
		if err := ctx.Err(); err != nil || lost {
			return lost, err
		}
		fault.Point("store.erasure.session-placed")
	}
	s.mu.Lock()
	s.session = n
	s.mu.Unlock()
	for _, g := range groups {
		each(g.members, func(_ int, _ *member, b blob.Store) error { dropSessions(ctx, b, n); return nil })
	}
	return false, nil
}

// joinSession lets a new member take part in what goes on.
func (s *Store) joinSession(ctx context.Context, b blob.Store) error {
	s.mu.Lock()
	n := s.session
	s.mu.Unlock()
	if n == 0 {
		return nil
	}
	return putEmpty(ctx, b, sessionName(n))
}

func putEmpty(ctx context.Context, b blob.Store, name string) error {
	if err := blob.Put(ctx, b, name, nil); err != nil && fault.KindOf(err) != fault.Exists {
		return err
	}
	return nil
}

// dropSessions removes the numbers before n from a member. That some may stay does no harm.
func dropSessions(ctx context.Context, b blob.Store, n uint64) {
	var old []string
	if err := walk(ctx, b, setFolder+"/", func(i blob.Info) {
		if _, _, ok := parseSession(i.Name); ok && i.Name != sessionName(n) {
			old = append(old, i.Name)
		}
	}); err != nil {
		return
	}
	for _, name := range old {
		_ = b.Delete(ctx, name)
	}
}
