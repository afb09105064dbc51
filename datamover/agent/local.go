package agent

import (
	"cmp"
	"context"
	"log/slog"

	"golang.org/x/time/rate"

	"github.com/cairn-backup/cairn/datamover/transfer"
	imageiotransport "github.com/cairn-backup/cairn/datamover/transport/imageio"
	nbdtransport "github.com/cairn-backup/cairn/datamover/transport/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// Opener opens the exports of one transport; the options of each package below datamover/transport are one.
type Opener interface {
	// OpenSource opens a frozen disk, OpenTarget a new one. ctx bounds the opening only; Close makes calls under way
	// return.
	OpenSource(ctx context.Context, e hypervisors.Export) (hypervisors.FrozenDisk, error)
	OpenTarget(ctx context.Context, e hypervisors.Export) (hypervisors.TargetDisk, error)
}

// Local is a mover in this process. Its fields may be set before the first task.
type Local struct {
	// Transports are the ways to disks that this mover has.
	Transports map[hypervisors.Transport]Opener
	Workers    int // see transfer.Options
	Log        *slog.Logger

	resolve func(ctx context.Context, ticket string) (Access, error)
	shared  *rate.Limiter
}

// sharedBurst is how much all transfers together move at once under a limit.
const sharedBurst = 1 << 20

// Network are the openers of the transports over the network, which every mover has.
func Network() map[hypervisors.Transport]Opener {
	return map[hypervisors.Transport]Opener{
		hypervisors.TransportNBD:     nbdtransport.Options{},
		hypervisors.TransportImageio: imageiotransport.Options{},
	}
}

// NewLocal makes a mover that has the transports over the network and asks resolve what a ticket allows. resolve refuses
// tickets it does not know.
func NewLocal(resolve func(ctx context.Context, ticket string) (Access, error)) *Local {
	return &Local{Transports: Network(), resolve: resolve, shared: rate.NewLimiter(rate.Inf, sharedBurst)}
}

// Limit makes all transfers together read from, and write to, disks no more than so many bytes a second, those under way
// too; 0 is no limit. It may be called at any time.
func (l *Local) Limit(bytes int64) {
	if bytes <= 0 {
		l.shared.SetLimit(rate.Inf)
		return
	}
	l.shared.SetLimit(rate.Limit(bytes))
}

var _ Mover = (*Local)(nil)

// Backup implements Mover.
func (l *Local) Backup(ctx context.Context, task BackupTask, progress func(transfer.Progress)) (BackupResult, error) {
	access, err := l.resolve(ctx, task.Ticket)
	if err != nil {
		return BackupResult{}, fault.Context("use ticket of", task.ID, err)
	}
	defer access.close()
	if access.Session == nil {
		return BackupResult{}, fault.New(fault.Denied, "back up disk", task.Disk, "the ticket does not allow writing")
	}
	transport, err := l.transport(task.Export)
	if err != nil {
		return BackupResult{}, err
	}
	if task.Parent == nil { // nothing could stand for what is unchanged
		task.Export.DirtyContext = ""
	}
	disk, err := transport.OpenSource(ctx, task.Export)
	if err != nil {
		return BackupResult{}, fault.Context("back up disk", task.Disk, err)
	}
	defer closeWith(ctx, disk)()
	// What another transfer read counts for nothing where the disk confirms only what was read since it was opened.
	anew := task.Export.Transport == hypervisors.TransportSAN || task.Export.Imageio != nil && task.Export.Imageio.Checksum
	w, err := access.Session.NewImage(ctx, store.ImageOptions{SizeBytes: disk.Size(), Parent: task.Parent, Anew: anew})
	if err != nil {
		return BackupResult{}, fault.Context("back up disk", task.Disk, err)
	}
	l.started("backup of disk started", task.ID, task.Disk, disk.Size())
	o := l.options(task.Limit, progress)
	o.FullRead = task.Parent == nil
	o.Afresh = anew
	out, err := transfer.Backup(ctx, disk, w, o)
	res := BackupResult{Result: out}
	if err == nil {
		res.Image, err = w.Finish(ctx)
	}
	res.Stats = w.Stats()
	if err != nil {
		return res, fault.Context("back up disk", task.Disk, err)
	}
	return res, nil
}

// Restore implements Mover.
func (l *Local) Restore(ctx context.Context, task RestoreTask, progress func(transfer.Progress)) (RestoreResult, error) {
	access, err := l.resolve(ctx, task.Ticket)
	if err != nil {
		return RestoreResult{}, fault.Context("use ticket of", task.ID, err)
	}
	defer access.close()
	if access.Repository == nil {
		return RestoreResult{}, fault.New(fault.Denied, "restore disk", task.Disk, "the ticket does not allow reading")
	}
	transport, err := l.transport(task.Export)
	if err != nil {
		return RestoreResult{}, err
	}
	image, err := access.Repository.OpenImage(ctx, task.Image)
	if err != nil {
		return RestoreResult{}, fault.Context("restore disk", task.Disk, err)
	}
	defer func() { _ = image.Close() }()
	disk, err := transport.OpenTarget(ctx, task.Export)
	if err != nil {
		return RestoreResult{}, fault.Context("restore disk", task.Disk, err)
	}
	defer closeWith(ctx, disk)()
	l.started("restore of disk started", task.ID, task.Disk, image.Size())
	o := l.options(task.Limit, progress)
	o.SeedZero = task.SeedZero
	if task.Verify {
		o.VerifyTarget = func(ctx context.Context) (hypervisors.FrozenDisk, error) {
			return transport.OpenSource(ctx, task.Export)
		}
	}
	out, err := transfer.Restore(ctx, image, disk, o)
	if err != nil {
		return RestoreResult{out}, fault.Context("restore disk", task.Disk, err)
	}
	return RestoreResult{out}, nil
}

func (l *Local) options(limit int64, progress func(transfer.Progress)) transfer.Options {
	return transfer.Options{Workers: l.Workers, Limit: limit, Shared: l.shared, Progress: progress}
}

func (l *Local) started(msg, id, disk string, size int64) {
	cmp.Or(l.Log, slog.New(slog.DiscardHandler)).Debug(msg, "transfer_id", id, "disk", disk, "bytes", size)
}

// closeWith closes a disk when ctx ends, so that calls without a context return, and again with the function it
// returns.
func closeWith(ctx context.Context, disk interface{ Close() error }) func() {
	stop := context.AfterFunc(ctx, func() { _ = disk.Close() })
	return func() {
		stop()
		_ = disk.Close()
	}
}

// transport refuses exports that this mover has no transport for.
func (l *Local) transport(e hypervisors.Export) (Opener, error) {
	if t := l.Transports[e.Transport]; t != nil {
		return t, nil
	}
	return nil, fault.New(fault.Unsupported, "open export", e.Name, "this mover has no transport %q", e.Transport)
}
