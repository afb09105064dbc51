package program

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/grpc"

	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/remote"
)

// open makes the mover that does the work. Its way to every repository is the manager's listener, and for packs the
// repository's own storage where that is mounted on this machine.
func open(conn grpc.ClientConnInterface, mounted *mounts, log *slog.Logger) *agent.Local {
	m := agent.NewLocal(func(ctx context.Context, ticket string) (agent.Access, error) {
		var files *file.Store
		c, err := remote.Open(ctx, conn, remote.ClientOptions{Ticket: ticket, Log: log, Mounted: func(id string, write bool) remote.Files {
			if files = mounted.find(ctx, id, write); files == nil {
				return nil // and not a nil store in an interface
			}
			log.InfoContext(ctx, "the repository's storage is mounted here", "path", files.Location(), "repository", id)
			return files
		}})
		shut := func() error {
			if files == nil {
				return nil
			}
			return files.Close()
		}
		if err != nil {
			return agent.Access{}, errors.Join(err, shut())
		}
		access := agent.AccessOf(c)
		access.Close = func() error { return errors.Join(c.Close(), shut()) }
		return access, nil
	})
	m.Transports, m.Log = openers(), log
	return m
}
