// Package protect makes restore points: it freezes a VM, has its disks read into a repository, publishes the restore
// point and leaves the platform as it was. It also verifies restore points and repositories, heals them, collects free
// space, repairs sets and brings the catalog up to date with what a repository holds.
//
// It moves no bytes itself and knows no platform. Its invariant: a checkpoint is recorded only with a restore point
// that is durable, and a disk is read incrementally only on top of the image that was frozen with that checkpoint;
// in any doubt the whole disk is read and the reason is kept.
package protect

import (
	"context"
	"log/slog"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/erasure"
)

// Reader reads frozen disks into a repository; a mover does it.
type Reader interface {
	ReadDisk(ctx context.Context, r ReadRequest, progress func(catalog.DiskProgress)) (ReadResult, error)
}

// ReadRequest asks for one disk to be read.
type ReadRequest struct {
	ID     string // of the transfer
	Disk   string
	Export hypervisors.Export // without DirtyContext the whole disk is read
	// Now is the export as the platform offers it now, which changes where a disk was plugged into a mover; nil is Export.
	Now     func() hypervisors.Export
	Session *store.Session
	Parent  *store.ImageRef // what is unchanged is as in it; nil for a full

	// What the choice of a mover goes by.
	Mover, Transport string // id or name of the one that was asked for; "" is chosen
	Fallback         bool   // when a transport fails another one may take its place
	Plugs            jobs.Plugs
	ConnectionID     string
	RepositoryID     string
	VMHost           string // of the platform, where the VM runs; "" is not known
	Datastore        string // of the disk
	// Before is the mover that had the disk when the manager ended, which is waited for; "" if there is none.
	Before string
	// Away is called before the disk is given to a mover in another process, by its id.
	Away func(ctx context.Context, mover string) error
	// Tell adds a line to the task's log; fields are pairs of a name and a value. Warn adds a warning to the task.
	Tell, Warn func(ctx context.Context, message string, fields ...string)
}

// ReadResult is what became of it.
type ReadResult struct {
	Image       store.ImageRef
	BytesRead   int64
	BytesNew    int64
	BytesStored int64
}

// Repositories gives an open repository. It stays open as long as a task uses it.
type Repositories func(ctx context.Context, id string) (*store.Repository, error)

// Sets gives the erasure set that a repository is on; an Unsupported error if it is on none.
type Sets func(ctx context.Context, id string) (*erasure.Store, error)

// Protector makes and keeps restore points.
type Protector struct {
	catalog      *catalog.Catalog
	drivers      jobs.Platforms
	repositories Repositories
	sets         Sets
	there        func(ctx context.Context, repositoryID string) error
	retention    Retention
	reader       Reader
	log          *slog.Logger
}

// Options of New.
type Options struct {
	Catalog      *catalog.Catalog
	Drivers      jobs.Platforms
	Repositories Repositories
	Sets         Sets
	There        func(ctx context.Context, repositoryID string) error // an error if a repository does not lie where it was opened any more
	Retention    Retention
	Reader       Reader
	Log          *slog.Logger
}

// New makes a Protector.
func New(o Options) *Protector {
	return &Protector{
		catalog: o.Catalog, drivers: o.Drivers, repositories: o.Repositories, sets: o.Sets, there: o.There, retention: o.Retention, reader: o.Reader, log: o.Log,
	}
}
