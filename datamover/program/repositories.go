package program

import (
	"context"
	"log/slog"

	"google.golang.org/grpc"

	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/remote"
)

// open makes the mover that does the work. Its way to every repository is the manager's listener.
func open(conn *grpc.ClientConn, log *slog.Logger) agent.Mover {
	m := agent.NewLocal(func(ctx context.Context, ticket string) (agent.Access, error) {
		c, err := remote.Open(ctx, conn, remote.ClientOptions{Ticket: ticket, Log: log})
		if err != nil {
			return agent.Access{}, err
		}
		return agent.Access{Session: session{c}, Repository: repository{c}, Close: c.Close}, nil
	})
	m.Transports, m.Log = openers(), log
	return m
}

// What a ticket does not allow, the client refuses itself, and the manager would.
type (
	session    struct{ *remote.Client }
	repository struct{ *remote.Client }
)

// NewImage implements agent.Session.
func (s session) NewImage(ctx context.Context, o store.ImageOptions) (agent.ImageWriter, error) {
	w, err := s.Client.NewImage(ctx, o)
	if err != nil {
		return nil, err // and not a nil writer in an interface
	}
	return w, nil
}

// OpenImage implements agent.Repository.
func (r repository) OpenImage(ctx context.Context, ref store.ImageRef) (agent.ImageReader, error) {
	i, err := r.Client.OpenImage(ctx, ref)
	if err != nil {
		return nil, err
	}
	return i, nil
}
