package program

import (
	"context"
	"log/slog"
	"maps"
	"slices"

	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/blockdev"
	"github.com/cairn-backup/cairn/datamover/transport/hotadd"
	santransport "github.com/cairn-backup/cairn/datamover/transport/san"
	"github.com/cairn-backup/cairn/hypervisors"
)

// openers are the ways to disks that a mover on a machine of its own has.
func openers() map[hypervisors.Transport]agent.Opener {
	out := agent.Network()
	out[hypervisors.TransportHotadd] = hotadd.Options{}
	out[hypervisors.TransportSAN] = santransport.Options{}
	return out
}

// transports are their names, as the manager is told.
func transports() []string {
	var out []string
	for _, t := range slices.Sorted(maps.Keys(openers())) {
		out = append(out, string(t))
	}
	return out
}

// luns are the names of the LUNs that this machine sees now.
func luns(ctx context.Context, log *slog.Logger) []string {
	all, err := blockdev.System{}.WWNs()
	if err != nil {
		log.WarnContext(ctx, "the LUNs that are attached to this machine are not known", "err", err)
	}
	return all
}
