// Package recover makes virtual machines from restore points: as new ones, or in place of the original.
//
// It moves no bytes itself and knows no platform. Its invariants: a request that cannot be carried out is refused
// before anything is queued, and until a restore has finished everything it made is owed: it is removed when the
// restore fails, is cancelled or dies with the manager. From the moment the result is recorded the VM is the user's.
package recover

import (
	"context"
	"log/slog"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/store"
)

// Writer writes images from a repository to disks; a mover does it. Everything it reads is verified.
type Writer interface {
	WriteDisk(ctx context.Context, r WriteRequest, progress func(catalog.DiskProgress)) (WriteResult, error)
}

// WriteRequest asks for one disk to be written.
type WriteRequest struct {
	ID         string // of the transfer
	Disk       string
	Export     hypervisors.Export
	Now        func() hypervisors.Export // as in protect.ReadRequest
	Repository *store.Repository
	Image      store.ImageRef

	// What the choice of a mover goes by; as in protect.ReadRequest.
	Mover, Transport string
	Fallback         bool
	Plugs            jobs.Plugs
	ConnectionID     string
	RepositoryID     string
	Host             string // of the platform, which makes the disk; "" is not known
	Datastore        string
	Tell, Warn       func(ctx context.Context, message string, fields ...string)
}

// WriteResult is what became of it.
type WriteResult struct{ BytesWritten int64 }

// Repositories gives an open repository. It stays open as long as a task uses it.
type Repositories func(ctx context.Context, id string) (*store.Repository, error)

// Recoverer restores VMs.
type Recoverer struct {
	catalog      *catalog.Catalog
	drivers      jobs.Platforms
	repositories Repositories
	writer       Writer
	log          *slog.Logger
}

// Options of New.
type Options struct {
	Catalog      *catalog.Catalog
	Drivers      jobs.Platforms
	Repositories Repositories
	Writer       Writer
	Log          *slog.Logger
}

// New makes a Recoverer.
func New(o Options) *Recoverer {
	return &Recoverer{
		catalog: o.Catalog, drivers: o.Drivers, repositories: o.Repositories, writer: o.Writer, log: o.Log,
	}
}
