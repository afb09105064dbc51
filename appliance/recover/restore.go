package recover

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

const (
	disksAtOnce = 2
	// cleanUpTime bounds each clean-up call, finishTime the making of the VM, which is not cancelled.
	cleanUpTime = 2 * time.Minute
	finishTime  = 10 * time.Minute
)

// Restore is the handler of restore tasks.
func (r *Recoverer) Restore(ctx context.Context, t *jobs.Task) error {
	fault.Point("restore.claimed")
	t.SetPhase(ctx, "checking")
	var spec Spec
	if err := t.ReadSpec(&spec); err != nil {
		return err
	}
	o, err := r.order(ctx, spec)
	if err != nil {
		return err
	}
	if err := o.check(ctx, jobs.Tag(t.ID)); err != nil {
		return err
	}
	if vm := o.changed(); vm != "" {
		release, err := t.Journal().Hold(ctx, o.conn.ID, vm)
		if err != nil {
			return err
		}
		defer release()
	}
	for _, left := range o.left {
		t.Event(ctx, fmt.Sprintf("Disk %s is not restored: %s.", left.Disk, left.Reason), "disk", left.Disk)
	}
	t.SetPhase(ctx, "creating disks")
	restoring, err := r.begin(ctx, t, o)
	if err != nil {
		return fault.Context("create disks for VM", o.req.Name, err)
	}
	vm, err := r.fill(ctx, t, o, restoring)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
		defer cancel()
		abandonErr := t.Journal().Unplug(clean, t.ID) // what a mover may still write to is not given back
		if abandonErr == nil {
			abandonErr = restoring.Abandon(clean)
		}
		if abandonErr != nil {
			t.Event(clean, "What was made could not be removed at once: "+abandonErr.Error())
		}
		return err
	}
	return r.complete(context.WithoutCancel(ctx), t, o, vm)
}

// changed is the VM that the restore changes, as the platform calls it; "" if it makes what it needs.
func (o *order) changed() string {
	switch o.spec.Mode {
	case hypervisors.RestoreInPlace:
		return o.req.VM.ID
	case hypervisors.RestoreInto:
		return o.req.Into
	}
	return ""
}

// begin makes the disks.
func (r *Recoverer) begin(ctx context.Context, t *jobs.Task, o *order) (hypervisors.Restoring, error) {
	owe := t.Journal().Owe(o.conn.ID, t.ID)
	var first sync.Once
	req := o.req
	req.Tag = jobs.Tag(t.ID)
	req.Owe = func(ctx context.Context, owed hypervisors.Owed) error {
		if err := owe(ctx, owed); err != nil {
			return err
		}
		first.Do(func() { fault.Point("restore.owed") })
		return nil
	}
	return o.driver.BeginRestore(ctx, req)
}

// fill has the disks written and makes the VM of them.
func (r *Recoverer) fill(ctx context.Context, t *jobs.Task, o *order, restoring hypervisors.Restoring) (hypervisors.VM, error) {
	t.SetPhase(ctx, "transferring")
	plugs := t.Plugs(ctx, o.driver, o.conn.ID)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(disksAtOnce)
	for _, target := range restoring.Disks() {
		now := func() hypervisors.Export { return exportNow(restoring, target) }
		g.Go(func() error { return r.write(gctx, t, o, target, now, plugs) })
	}
	if err := g.Wait(); err != nil {
		return hypervisors.VM{}, err
	}
	fault.Point("restore.transferred")
	if err := ctx.Err(); err != nil {
		return hypervisors.VM{}, err
	}
	if err := t.Journal().Unplug(ctx, t.ID); err != nil { // no VM begins with a disk that a mover may still write to
		return hypervisors.VM{}, fault.Context("unplug disks of", o.req.Name, err)
	}
	phase, what := "creating VM", "create VM"
	if o.spec.Mode.DisksOnly() {
		phase, what = "handing over disks", "hand over disks of"
	}
	t.SetPhase(ctx, phase)
	finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTime)
	defer cancel()
	if o.spec.Mode == hypervisors.RestoreInPlace {
		// The disks are replaced now, so no checkpoint tells their changes any more.
		if err := r.catalog.ForgetCheckpoints(finish, t.VMID); err != nil {
			return hypervisors.VM{}, err
		}
	}
	vm, err := restoring.Finish(finish)
	if err != nil {
		return hypervisors.VM{}, fault.Context(what, o.req.Name, err)
	}
	return vm, nil
}

// exportNow is how a target is offered now.
func exportNow(restoring hypervisors.Restoring, target hypervisors.TargetInfo) hypervisors.Export {
	for _, now := range restoring.Disks() {
		if now.DiskID == target.DiskID {
			return now.Export
		}
	}
	return target.Export
}

func (r *Recoverer) write(
	ctx context.Context, t *jobs.Task, o *order, target hypervisors.TargetInfo, now func() hypervisors.Export, plugs jobs.Plugs,
) error {
	image, ok := o.images[target.DiskID]
	if !ok || target.Export.SizeBytes < image.SizeBytes {
		return fault.New(fault.Internal, "write disk", target.DiskID, "%d bytes offered for %d", target.Export.SizeBytes, image.SizeBytes)
	}
	show := func(p catalog.DiskProgress) {
		p.Disk, p.Mode = target.DiskID, catalog.Full
		t.SetProgress(ctx, p)
	}
	show(catalog.DiskProgress{BytesTotal: image.SizeBytes})
	res, err := r.writer.WriteDisk(ctx, WriteRequest{
		ID: t.ID + "/" + target.DiskID, Disk: target.DiskID, Export: target.Export, Now: now, Repository: o.repo, Image: image,
		Mover: o.spec.Mover, Transport: o.spec.Transport, Fallback: o.spec.Fallback, Plugs: plugs, ConnectionID: o.conn.ID, RepositoryID: o.point.RepositoryID,
		Host: o.conn.Host, Datastore: o.datastoreOf(target.DiskID), Tell: t.Event, Warn: t.Warn,
	}, show)
	if err != nil {
		return fault.Context("write disk", target.DiskID, err)
	}
	t.Event(ctx, fmt.Sprintf("Disk %s: %d of %d bytes written and verified.", target.DiskID, res.BytesWritten, image.SizeBytes),
		"disk", target.DiskID)
	return nil
}

// datastoreOf is where a disk is made.
func (o *order) datastoreOf(disk string) string {
	for _, d := range o.req.Disks {
		if d.ID == disk {
			return d.Datastore
		}
	}
	return ""
}

// complete hands the VM over: recorded first, then no longer owed (but for what it replaced, which is removed), then
// started. It is not cancelled any more.
func (r *Recoverer) complete(ctx context.Context, t *jobs.Task, o *order, vm hypervisors.VM) error {
	result := catalog.Result{RestorePointID: o.point.ID, VMPlatformID: vm.ID, VMName: vm.Name}
	if err := t.SetResult(ctx, result); err != nil {
		return err
	}
	fault.Point("restore.defined")
	for _, note := range vm.Notes {
		if !slices.Contains(o.req.VM.Notes, note) {
			t.Event(ctx, note)
		}
	}
	if o.spec.Mode == hypervisors.RestoreInPlace && o.driver.Capabilities().ChangeTracking {
		if err := o.driver.KeepCheckpoint(ctx, vm.ID, ""); err != nil {
			t.Event(ctx, "Checkpoints of the replaced disks could not be removed; it will be tried again: "+err.Error())
		}
	}
	if err := t.Journal().Settle(ctx, t.ID); err != nil {
		t.Warn(ctx, "A replaced disk could not be removed yet; it will be tried again: "+err.Error())
	}
	fault.Point("restore.struck-off")
	switch o.spec.Mode {
	case hypervisors.RestoreDisks:
		t.Event(ctx, fmt.Sprintf("%d disks of VM %s are complete.", len(vm.Disks), vm.Name))
		return nil
	case hypervisors.RestoreInto:
		t.Event(ctx, fmt.Sprintf("VM %s has the disks.", vm.Name), "vm", vm.ID)
	default:
		t.Event(ctx, fmt.Sprintf("VM %s is complete.", vm.Name), "vm", vm.ID)
	}
	if o.spec.Start {
		t.SetPhase(ctx, "starting VM")
		if err := r.start(ctx, o, vm.ID); err != nil {
			t.Warn(ctx, "The VM was restored but could not be started: "+err.Error())
		} else {
			result.Started = true
			if err := t.SetResult(ctx, result); err != nil {
				return err
			}
		}
		fault.Point("restore.started")
	}
	r.see(ctx, o, vm.ID)
	return nil
}

func (r *Recoverer) start(ctx context.Context, o *order, vm string) error {
	ctx, cancel := context.WithTimeout(ctx, cleanUpTime)
	defer cancel()
	return o.driver.Start(ctx, vm)
}

// see puts the VM into the inventory, where the next reading would put it anyway.
func (r *Recoverer) see(ctx context.Context, o *order, id string) {
	vm, err := o.driver.VM(ctx, id)
	if err == nil {
		_, err = r.catalog.SeeVM(ctx, o.conn.ID, vm)
	}
	if err != nil {
		r.log.WarnContext(ctx, "restored VM was not put into the inventory", "vm", id, "err", err)
	}
}
