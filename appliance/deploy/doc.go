// Package deploy makes mover VMs on platforms and removes them: it uploads the mover image with a seed that holds a
// one-use token, has the platform make and start the VM, and waits until the mover in it has enrolled.
//
// It knows no platform and speaks to no mover. Its invariant: until a mover has enrolled from the very machine that was
// made, everything of its deployment is owed, and the token is worthless when the deployment ends.
package deploy

import (
	"context"
	"log/slog"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/hypervisors"
)

// Fleet enrols movers; *fleet.Fleet is one.
type Fleet interface {
	IssueToken(ctx context.Context, n fleet.NewToken) (catalog.JoinToken, string, error)
	// List returns all movers, Changed a channel that closes when one comes or goes.
	List(ctx context.Context) ([]fleet.Info, error)
	Changed() <-chan struct{}
	Drain(ctx context.Context, who fleet.Who, idOrName string, drain bool) (fleet.Info, error)
	Revoke(ctx context.Context, who fleet.Who, idOrName string) (fleet.Info, error)
	Remove(ctx context.Context, who fleet.Who, idOrName string) error
}

// Options of New.
type Options struct {
	Catalog     *catalog.Catalog
	Drivers     jobs.Platforms
	Fleet       Fleet
	Fingerprint string     // of the appliance's authority, hexadecimal
	Port        func() int // where the appliance listens for movers; 0 is nowhere
	Images      string     // directory with the mover images
	Log         *slog.Logger
	// Patience is how long a mover may take from the start of its VM until it is connected; 0 means 10 minutes.
	Patience time.Duration
}

// Deployer makes and removes mover VMs.
type Deployer struct{ Options }

// New makes a Deployer.
func New(o Options) *Deployer {
	if o.Patience == 0 {
		o.Patience = 10 * time.Minute
	}
	return &Deployer{o}
}

// imageOf is the file of the mover image in a platform's format.
var imageOf = map[hypervisors.Platform]string{
	hypervisors.KVM: "cairn-mover.qcow2", hypervisors.OVirt: "cairn-mover.qcow2",
}
