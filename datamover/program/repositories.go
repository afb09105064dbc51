package program

import (
	"context"
	"log/slog"

	"google.golang.org/grpc"

	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/internal/fault"
)

// open makes the mover that does the work.
func open(_ *grpc.ClientConn, log *slog.Logger) agent.Mover {
	m := agent.NewLocal(func(context.Context, string) (agent.Access, error) {
		return agent.Access{}, fault.New(fault.Unsupported, "use ticket", "", "this mover has no way to a repository")
	})
	m.Log = log
	return m
}
