package server

import (
	"context"

	"google.golang.org/grpc"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/tickets"
	"github.com/cairn-backup/cairn/store/remote"
)

// moverServer makes the server for movers: control, enrolment, and the repositories as far as a ticket goes.
func (a *Appliance) moverServer() *grpc.Server {
	s := a.fleet.Server(a.authority.TLSConfig(), remote.GRPC()...)
	pb.RegisterRepositoryServer(s, a.mover.data)
	return s
}

// desk lets enrolled movers use their tickets; it is a remote.Authorizer.
type desk struct{ tickets *tickets.Service }

// Open implements remote.Authorizer.
func (d desk) Open(ctx context.Context, ticket, opener string) (remote.Access, error) {
	return d.ask(ctx, ticket, opener, d.tickets.Open)
}

// Check implements remote.Authorizer.
func (d desk) Check(ctx context.Context, ticket, opener string) (remote.Access, error) {
	return d.ask(ctx, ticket, opener, d.tickets.Check)
}

// refused tells of what a mover asked that its ticket does not name.
func (d desk) refused(ctx context.Context, ticket, call string, err error) {
	if p, noPeer := fleet.PeerOf(ctx); noPeer == nil {
		d.tickets.Refuse(ctx, p.Mover.ID, ticket, call+": "+err.Error())
	}
}

func (d desk) ask(
	ctx context.Context, ticket, opener string, do func(ctx context.Context, mover, secret, opener string) (tickets.Grant, error),
) (remote.Access, error) {
	p, err := fleet.PeerOf(ctx)
	if err != nil {
		return remote.Access{}, err
	}
	g, err := do(ctx, p.Mover.ID, ticket, opener)
	if err != nil {
		return remote.Access{}, err
	}
	return remote.Access{Session: g.Session, Image: g.Image, Parent: g.Parent, Repository: g.Repository, Images: g.Images}, nil
}
