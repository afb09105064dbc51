package remote

import (
	"context"

	"google.golang.org/grpc/metadata"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// Access is what a ticket allows: to write one image of a session, or to read images of a repository.
type Access struct {
	Session *store.Session
	Image   string          // key of the one image that may be written; a transfer that is begun anew has the same
	Parent  *store.ImageRef // that the image may build on; nil: on none

	Repository *store.Repository
	Images     []store.ImageRef
}

// Authorizer knows the tickets. Both methods answer an error of kind Denied for what is not allowed. The mover's
// identity is in the context, put there by whoever made the connection.
type Authorizer interface {
	// Open begins to use a ticket. opener is a random word of the caller, the same for all calls of one transfer.
	Open(ctx context.Context, ticket, opener string) (Access, error)
	// Check says what a ticket allows that was opened.
	Check(ctx context.Context, ticket, opener string) (Access, error)
}

// Names of a call's metadata.
const (
	ticketKey = "cairn-ticket"
	openerKey = "cairn-opener"
)

func ticketOf(ctx context.Context) (ticket, opener string, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	t, o := md.Get(ticketKey), md.Get(openerKey)
	if len(t) != 1 || len(o) != 1 || t[0] == "" || o[0] == "" || len(t[0]) > 512 || len(o[0]) > 128 {
		return "", "", fault.New(fault.Denied, "use repository", "", "the call has no ticket").Explain(
			"A mover may use a repository only with the ticket of a transfer.", "Nothing is to be done if this was an attempt; else look at the mover's version.")
	}
	return t[0], o[0], nil
}

func (s *Server) check(ctx context.Context) (Access, error) {
	ticket, opener, err := ticketOf(ctx)
	if err != nil {
		return Access{}, err
	}
	a, err := s.o.Authorizer.Check(ctx, ticket, opener)
	if err != nil {
		return Access{}, judged{err}
	}
	return a, nil
}

// carrier returns who may write the ticket's image, if the caller's turn is the present one.
func (s *Server) carrier(ctx context.Context, turn uint64) (*store.Carrier, error) {
	a, err := s.check(ctx)
	if err != nil {
		return nil, err
	}
	if a.Session == nil {
		return nil, mayNot("write")
	}
	return a.Session.Carrier(a.Image, turn)
}

func mayNot(what string) error {
	return fault.New(fault.Denied, "use repository", "", "the ticket does not allow to %s", what).Explain(
		"The ticket of this transfer does not name it.", "Look at the audit log: a mover asked for more than its task needs.")
}
