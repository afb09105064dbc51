// Package tickets is the list of what movers may do with repositories: one ticket for each transfer.
//
// A ticket is a random secret that is bound to one mover, one transfer and one session or set of images, and that is
// void when the transfer has ended or its time is over. It is kept in memory only: when the manager ends, so do the
// transfers. The package moves no data; who serves a repository to movers asks Open or Check on every call, and says with
// Refuse what was asked that the ticket does not name. Its invariant: an access is given only to the mover that the
// ticket was made for, and to the first one who opens it.
package tickets

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// BuiltIn is the id and name of the mover in the appliance's own process, in Grant.Mover and wherever movers are listed.
const BuiltIn = "built-in"

// Grant is what a ticket allows. A ticket to write has a Session, one to read a Repository and Images.
type Grant struct {
	Mover        string // id of the mover, or BuiltIn
	Transfer     string // for the logs
	RepositoryID string // the catalog's
	StoreID      string // the repository's own identity
	// Session may be given images and asked which chunks there are; nothing else of its repository may be read, except
	// Parent where it is set.
	Session *store.Session
	Image   string // key of the one image that may be written; a transfer that is begun anew has the same
	Parent  *store.ImageRef
	// Repository may be read, but only the Images.
	Repository *store.Repository
	Images     []store.ImageRef
	Expires    time.Time // zero: with the transfer only
}

// Reads reports whether the grant allows reading an image.
func (g *Grant) Reads(ref store.ImageRef) bool {
	return g.Repository != nil && slices.Contains(g.Images, ref)
}

// Refusal tells of a ticket that was refused.
type Refusal struct {
	Mover, Transfer string // Transfer is "" when the ticket is not known
	Reason          string
}

// Service keeps the tickets. Its methods may be called from several goroutines.
type Service struct {
	refused func(ctx context.Context, r Refusal)

	mu      sync.Mutex
	tickets map[[32]byte]*ticket
}

type ticket struct {
	grant  Grant
	opener string // of the first Open
}

// New makes a service. refused, which may be nil, is told of every refusal.
func New(refused func(ctx context.Context, r Refusal)) *Service {
	if refused == nil {
		refused = func(context.Context, Refusal) {}
	}
	return &Service{refused: refused, tickets: map[[32]byte]*ticket{}}
}

// Issue makes a ticket. end makes it void; may be repeated.
func (s *Service) Issue(g Grant) (secret string, end func()) {
	secret = "ticket_" + rand.Text()
	key := sha256.Sum256([]byte(secret)) // so that looking it up takes no time that depends on the secret
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickets[key] = &ticket{grant: g}
	return secret, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.tickets, key)
	}
}

// Open begins to use a ticket. opener is a random word that the mover made for this transfer: the same one may open
// the ticket again after its connection broke, any other is a replay and is refused.
func (s *Service) Open(ctx context.Context, mover, secret, opener string) (Grant, error) {
	return s.look(ctx, mover, secret, func(t *ticket) string {
		switch {
		case opener == "" || len(opener) > 128:
			return "its opener has no word of its own"
		case t.opener == "":
			t.opener = opener
		case t.opener != opener:
			return "it was used already"
		}
		return ""
	})
}

// Check says what a ticket allows that was opened, as often as it is asked.
func (s *Service) Check(ctx context.Context, mover, secret, opener string) (Grant, error) {
	return s.look(ctx, mover, secret, func(t *ticket) string {
		if t.opener == "" || t.opener != opener {
			return "it was not opened by who uses it"
		}
		return ""
	})
}

// look finds a ticket and refuses it for a reason that use names.
func (s *Service) look(ctx context.Context, mover, secret string, use func(*ticket) string) (Grant, error) {
	grant, reason := s.find(mover, sha256.Sum256([]byte(secret)), use)
	if reason == "" {
		return grant, nil
	}
	s.refused(ctx, Refusal{Mover: mover, Transfer: grant.Transfer, Reason: reason})
	return Grant{}, fault.New(fault.Denied, "use ticket", grant.Transfer, "%s", reason).Explain(
		"A ticket is good for one transfer, on the mover it was made for, as long as that transfer runs.",
		"If this was no restart of the manager or the mover, look at the audit log for who used it.")
}

func (s *Service) find(mover string, key [32]byte, use func(*ticket) string) (g Grant, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tickets[key]
	switch {
	case !ok:
		return Grant{}, "it is not known, or its transfer has ended"
	case t.grant.Mover != mover:
		return Grant{Transfer: t.grant.Transfer}, "it was made for another mover"
	case !t.grant.Expires.IsZero() && !time.Now().Before(t.grant.Expires):
		return Grant{Transfer: t.grant.Transfer}, "its time is over"
	}
	return t.grant, use(t)
}

// Refuse tells of an attempt of a mover to do what a ticket, good or not, does not name. mover may be "": the ticket's.
func (s *Service) Refuse(ctx context.Context, mover, secret, reason string) {
	s.mu.Lock()
	r := Refusal{Mover: mover, Reason: reason}
	if t := s.tickets[sha256.Sum256([]byte(secret))]; t != nil {
		r.Transfer = t.grant.Transfer
		r.Mover = cmp.Or(mover, t.grant.Mover)
	}
	s.mu.Unlock()
	s.refused(ctx, r)
}
