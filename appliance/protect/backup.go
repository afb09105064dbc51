package protect

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

const (
	disksAtOnce = 2
	// cleanUpTime bounds each clean-up call to a platform.
	cleanUpTime = 2 * time.Minute
	// maxDiskBytes is beyond what any platform can have; a larger size is a wrong answer.
	maxDiskBytes = 1 << 50
)

// backup is one backup under way.
type backup struct {
	*Protector
	t      *jobs.Task
	spec   BackupSpec
	vm     catalog.VM
	conn   catalog.Connection
	driver hypervisors.Driver
	repo   *store.Repository
	base   base
	frozen hypervisors.Frozen
	info   hypervisors.FrozenInfo
	plugs  jobs.Plugs
	away   away
}

// Backup is the handler of backup tasks.
func (p *Protector) Backup(ctx context.Context, t *jobs.Task) error {
	fault.Point("backup.claimed")
	b := &backup{Protector: p, t: t}
	var k kept
	goesOn, err := t.TakenUp(&k)
	if err != nil {
		return err
	}
	err = b.work(ctx, goesOn, k)
	if err == nil {
		return nil
	}
	if left, leaves := t.Leave(ctx, err); leaves {
		return left
	}
	if goesOn {
		b.giveUp(ctx, k)
	}
	return err
}

// work is the backup from its start, or from where an earlier process left it.
func (b *backup) work(ctx context.Context, goesOn bool, k kept) error {
	t := b.t
	if err := b.prepare(ctx, goesOn); err != nil {
		return err
	}
	release, err := t.Journal().Hold(ctx, b.vm.ConnectionID, b.vm.PlatformID)
	if err != nil {
		return err
	}
	defer release()
	if err := t.Journal().SettleVM(ctx, b.vm.ConnectionID, b.vm.PlatformID, t.ID); err != nil {
		t.Warn(ctx, "Leftovers of an earlier task on this VM could not be removed: "+err.Error())
	}
	session, err := b.begin(ctx, goesOn, k)
	if err != nil {
		return err
	}
	point, err := b.run(ctx, session)
	if err != nil {
		if _, leaves := t.Leave(ctx, err); leaves {
			return err // the session is suspended with its repository, and the freeze stands
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
		defer cancel()
		if abortErr := session.Abort(clean); abortErr != nil {
			b.log.WarnContext(ctx, "session was not aborted", "task_id", t.ID, "err", abortErr)
		}
		b.release(clean)
		return err
	}
	if err := b.complete(context.WithoutCancel(ctx), point); err != nil {
		return err
	}
	b.retain(context.WithoutCancel(ctx))
	return nil
}

// begin opens the session: the one of an earlier process if the backup goes on.
func (b *backup) begin(ctx context.Context, goesOn bool, k kept) (*store.Session, error) {
	if goesOn {
		return b.takeUp(ctx, k)
	}
	session, err := b.repo.Begin(ctx, store.SessionOptions{Series: b.series(), Writer: b.t.ID, Resumable: true})
	if err != nil {
		return nil, fault.Context("begin backup in repository", "", err)
	}
	return session, nil
}

// prepare finds everything the backup needs and changes nothing.
func (b *backup) prepare(ctx context.Context, goesOn bool) (err error) {
	b.t.SetPhase(ctx, "checking")
	if err = b.t.ReadSpec(&b.spec); err != nil {
		return err
	}
	if b.vm, err = b.catalog.VM(ctx, b.spec.VMID); err != nil {
		return err
	}
	if b.conn, err = b.catalog.Connection(ctx, b.vm.ConnectionID); err != nil {
		return err
	}
	if b.driver, err = b.drivers(ctx, b.conn.ID); err != nil {
		return err
	}
	b.plugs = b.t.Plugs(ctx, b.driver, b.conn.ID)
	now, err := b.driver.VM(ctx, b.vm.PlatformID)
	if err != nil {
		return fault.Named("look up VM", b.vm.Name, b.vm.PlatformID, err)
	}
	if b.vm, err = b.catalog.SeeVM(ctx, b.conn.ID, now); err != nil {
		return err
	}
	if b.repo, err = b.repositories(ctx, b.spec.RepositoryID); err != nil {
		return err
	}
	if !goesOn {
		b.base, err = b.findBase(ctx)
	}
	return err
}

func (b *backup) series() string {
	return fmt.Sprintf("%s/%s/%s", b.conn.Platform, b.conn.ID, b.vm.PlatformID)
}

// run does everything up to the durable manifest.
func (b *backup) run(ctx context.Context, session *store.Session) (store.RestorePoint, error) {
	if b.frozen == nil {
		if err := b.freeze(ctx); err != nil {
			return store.RestorePoint{}, err
		}
	}
	manifest := b.manifest()
	fault.Point("backup.configured")
	b.t.SetPhase(ctx, "transferring")
	images, err := b.transfer(ctx, session)
	if err != nil {
		return store.RestorePoint{}, err
	}
	fault.Point("backup.transferred")
	manifest.Images = images
	b.t.SetPhase(ctx, "publishing")
	if err := ctx.Err(); err != nil {
		return store.RestorePoint{}, err
	}
	point, err := session.Publish(context.WithoutCancel(ctx), manifest)
	if err != nil {
		return store.RestorePoint{}, fault.Context("publish restore point of", b.vm.Name, err)
	}
	return point, nil
}

func (b *backup) freeze(ctx context.Context) error {
	b.t.SetPhase(ctx, "freezing")
	frozen, err := b.driver.Freeze(ctx, hypervisors.FreezeRequest{
		VM: b.vm.PlatformID, Tag: jobs.Tag(b.t.ID), Exclude: b.spec.Exclude, Quiesce: b.spec.Quiesce,
		Since: b.base.since, Track: b.driver.Capabilities().ChangeTracking,
		Owe: b.t.Journal().Owe(b.conn.ID, b.t.ID),
	})
	if err != nil {
		return fault.Context("freeze VM", b.vm.Name, err)
	}
	fault.Point("backup.frozen")
	b.frozen, b.info = frozen, frozen.Info()
	b.tellFrozen(ctx)
	return checkInfo(b.info)
}

// checkInfo doubts what a driver says of a freeze.
func checkInfo(info hypervisors.FrozenInfo) error {
	seen := map[string]bool{}
	for _, d := range info.Disks {
		if d.Disk.ID == "" || seen[d.Disk.ID] || d.Export.SizeBytes < 0 || d.Export.SizeBytes > maxDiskBytes {
			return fault.New(fault.Internal, "freeze VM", info.VM.Name, "impossible disk %q of %d bytes", d.Disk.ID, d.Export.SizeBytes)
		}
		seen[d.Disk.ID] = true
	}
	if len(info.Disks) == 0 {
		return fault.New(fault.Unsupported, "freeze VM", info.VM.Name, "it has no disk that can be backed up")
	}
	return nil
}

func (b *backup) tellFrozen(ctx context.Context) {
	b.t.Event(ctx, "The VM is frozen: "+string(b.info.Consistency)+" consistent.",
		"consistency", string(b.info.Consistency), "note", b.info.ConsistencyNote)
	for _, w := range b.info.Warnings {
		b.t.Warn(ctx, w)
	}
	for _, s := range b.info.Skipped {
		message := fmt.Sprintf("Disk %s is not in the backup: %s", s.Disk.ID, s.Reason)
		if harmless(s.Disk, b.spec.Exclude) {
			b.t.Event(ctx, message, "disk", s.Disk.ID)
		} else {
			b.t.Warn(ctx, message, "disk", s.Disk.ID)
		}
	}
}

// harmless reports whether nobody will miss a disk: it was excluded, or it is a removable medium.
func harmless(d hypervisors.Disk, excluded []string) bool {
	return d.Kind == hypervisors.KindCDROM || d.Kind == hypervisors.KindFloppy || slices.Contains(excluded, d.ID)
}

// transfer has all disks read, a few at once.
func (b *backup) transfer(ctx context.Context, session *store.Session) ([]store.NamedImage, error) {
	images := make([]store.NamedImage, len(b.info.Disks))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(disksAtOnce)
	for i, d := range b.info.Disks {
		g.Go(func() (err error) {
			images[i], err = b.transferDisk(gctx, session, d)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return images, nil
}

func (b *backup) transferDisk(ctx context.Context, session *store.Session, d hypervisors.FrozenDiskInfo) (store.NamedImage, error) {
	plan := b.base.plan(d)
	show := func(p catalog.DiskProgress) {
		p.Disk, p.Mode, p.Reason = d.Disk.ID, plan.mode, plan.reason
		b.t.SetProgress(ctx, p)
	}
	show(catalog.DiskProgress{BytesTotal: d.Export.SizeBytes})
	res, err := b.reader.ReadDisk(ctx, ReadRequest{
		ID: b.t.ID + "/" + d.Disk.ID, Disk: d.Disk.ID, Export: plan.export, Now: func() hypervisors.Export { return b.exportNow(d.Disk.ID, plan.export) }, Session: session, Parent: plan.parent,
		Mover: b.spec.Mover, Transport: b.spec.Transport, Fallback: b.spec.Fallback, Plugs: b.plugs, ConnectionID: b.conn.ID, RepositoryID: b.spec.RepositoryID,
		VMHost: b.info.VM.Host, Datastore: d.Disk.Datastore, Tell: b.t.Event, Warn: b.t.Warn,
		Before: b.before(d.Disk.ID), Away: func(ctx context.Context, mover string) error { return b.leaves(ctx, session, d.Disk.ID, mover) },
	}, show)
	if err != nil {
		return store.NamedImage{}, fault.Context("read disk", d.Disk.ID, err)
	}
	message := fmt.Sprintf("Disk %s: %s, %d of %d bytes read", d.Disk.ID, plan.mode, res.BytesRead, d.Export.SizeBytes)
	if plan.reason != "" {
		message += "; " + plan.reason
	}
	b.t.Event(ctx, message+".", "disk", d.Disk.ID, "mode", plan.mode, "full_reason", plan.reason)
	return store.NamedImage{Name: d.Disk.ID, Ref: res.Image, Meta: encode(diskMeta{
		Format: d.Disk.Format, Mode: plan.mode, Reason: plan.reason,
		BytesRead: res.BytesRead, BytesNew: res.BytesNew, BytesStored: res.BytesStored,
	})}, nil
}

// complete makes a durable restore point known and leaves the platform clean. It is not cancelled any more.
func (b *backup) complete(ctx context.Context, point store.RestorePoint) error {
	row, err := pointRow(b.spec.RepositoryID, b.vm.ID, point)
	if err == nil {
		err = b.catalog.AddRestorePoint(ctx, row)
	}
	if err != nil {
		// The start-up of the manager takes it from the repository; until then its checkpoint is not used.
		b.release(ctx)
		return fault.Context("record restore point", point.ID, err)
	}
	fault.Point("backup.published")
	b.t.SetPhase(ctx, "cleaning up")
	keepErr := b.keepCheckpoint(ctx)
	fault.Point("backup.checkpoint-kept")
	released := b.release(ctx)
	fault.Point("backup.released")
	if keepErr != nil {
		keepErr = b.keepCheckpoint(ctx)
	}
	if keepErr != nil {
		b.t.Warn(ctx, "Older checkpoints could not be removed; it will be tried again: "+keepErr.Error())
	}
	if released {
		if err := b.t.Journal().StrikeOff(ctx, b.t.ID); err != nil {
			b.t.Warn(ctx, "The journal of clean-ups could not be written: "+err.Error())
		}
	}
	fault.Point("backup.struck-off")
	b.t.Event(ctx, "Restore point "+row.ID+" is complete.", "restore_point", row.ID)
	return b.t.SetResult(ctx, catalog.Result{
		RestorePointID: row.ID, BytesRead: row.BytesRead, BytesNew: row.BytesNew, BytesStored: row.BytesStored,
	})
}

// exportNow is how a disk is offered now, read in the way that was planned.
func (b *backup) exportNow(disk string, planned hypervisors.Export) hypervisors.Export {
	for _, d := range b.frozen.Info().Disks {
		if d.Disk.ID == disk {
			now := d.Export
			now.DirtyContext = planned.DirtyContext
			return now
		}
	}
	return planned
}

func (b *backup) keepCheckpoint(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanUpTime)
	defer cancel()
	if !b.driver.Capabilities().ChangeTracking {
		return nil
	}
	return b.driver.KeepCheckpoint(ctx, b.vm.PlatformID, b.info.Checkpoint)
}

// release ends the freeze, once no mover has a disk of it any more. What it could not remove is owed and is settled when
// the task ends.
func (b *backup) release(ctx context.Context) bool {
	if b.frozen == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, cleanUpTime)
	defer cancel()
	if err := b.t.Journal().Unplug(ctx, b.t.ID); err != nil {
		b.t.Event(ctx, "A disk could not be unplugged from a mover at once, and the freeze is kept until it is: "+err.Error())
		return false
	}
	if err := b.frozen.Release(ctx); err != nil {
		b.t.Event(ctx, "The freeze could not be ended at once: "+err.Error())
		return false
	}
	return true
}
