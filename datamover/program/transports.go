package program

import (
	"maps"
	"slices"

	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/transport/hotadd"
	nbdtransport "github.com/cairn-backup/cairn/datamover/transport/nbd"
	santransport "github.com/cairn-backup/cairn/datamover/transport/san"
	"github.com/cairn-backup/cairn/hypervisors"
)

// openers are the ways to disks that a mover on a machine of its own has.
func openers() map[hypervisors.Transport]agent.Opener {
	return map[hypervisors.Transport]agent.Opener{
		hypervisors.TransportNBD:    nbdtransport.Options{},
		hypervisors.TransportHotadd: hotadd.Options{},
		hypervisors.TransportSAN:    santransport.Options{},
	}
}

// transports are their names, as the manager is told.
func transports() []string {
	var out []string
	for _, t := range slices.Sorted(maps.Keys(openers())) {
		out = append(out, string(t))
	}
	return out
}
