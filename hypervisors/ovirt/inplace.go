package ovirt

import (
	"context"
	"slices"
	"strconv"
	"strings"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// More arguments of owed clean-ups: how a replaced disk was attached, what takes its place, and all new disks of the
// restore, for only together they are the restored VM.
const (
	argNew     = "new"
	argAll     = "all"
	argBus     = "bus"
	argBoot    = "boot"
	argActive  = "active"
	argDiscard = "discard"
)

// planInPlace checks that the original can get its disks back.
func (d *Driver) planInPlace(ctx context.Context, p *restorePlan, req hypervisors.RestoreRequest, at *places) error {
	x, err := d.read(ctx, req.VM.ID)
	if err != nil {
		return err
	}
	no := func(what, meaning, advice string) error {
		return fault.New(fault.Conflict, "restore VM in place", val(x.Name()), "%s", what).Explain(meaning, advice)
	}
	if isMover(x) {
		return no("it is a mover", "Movers are not restored.", "Deploy a new one.")
	}
	if val(x.Status()) != sdk.VMSTATUS_DOWN {
		return no("it is not off", "The disks of a VM cannot be replaced while it runs.", "Shut the VM down and start the restore again, or restore it as a new VM.")
	}
	snapshots, err := d.snapshots(ctx, req.VM.ID)
	if err != nil {
		return err
	}
	for _, s := range snapshots {
		if val(s.SnapshotType()) != sdk.SNAPSHOTTYPE_ACTIVE {
			return no("it has the snapshot "+strconv.Quote(engine.Clip(val(s.Description()))), "The engine does not take disks out of a VM that has snapshots.",
				"Remove its snapshots and start the restore again, or restore it as a new VM.")
		}
	}
	p.original, p.cluster = x, at.clusters[idOf(x.Cluster())]
	if err := p.planDisks(req, at); err != nil {
		return err
	}
	if _, err := p.standing(x, req); err != nil {
		return err
	}
	for _, disk := range p.disks {
		if disk.store.center != p.cluster.center {
			return fault.New(fault.Invalid, "restore disk", disk.src.ID, "the storage domain %q is not in the VM's data center", disk.store.Name).
				Explain("All disks of a VM must be in its data center.", "Choose a storage domain there.")
		}
	}
	return nil
}

// switchOriginal gives the original its new disks and then removes those that they replace.
func (r *restoring) switchOriginal(ctx context.Context) (string, []string, error) {
	id := val(r.plan.original.Id())
	x, err := r.d.read(ctx, id)
	if err != nil {
		return "", nil, err
	}
	if val(x.Status()) != sdk.VMSTATUS_DOWN {
		return "", nil, fault.New(fault.Conflict, "restore VM in place", val(x.Name()), "it is not off any more").
			Explain("The disks of a VM cannot be replaced while it runs.", "Shut the VM down and start the restore again.")
	}
	standing, err := r.plan.standing(x, r.req)
	if err != nil {
		return "", nil, err
	}
	var old []hypervisors.Owed
	for i, a := range standing {
		if a == nil { // it was removed since; then there is nothing to replace
			if r.plan.disks[i].attach.boot && boots(x) {
				r.plan.disks[i].attach.boot = false
				r.plan.notes = append(r.plan.notes, "The VM starts from another disk than it did; disk "+r.plan.disks[i].src.ID+" was given back as one that it does not start from.")
			}
			continue
		}
		spec := specOf(a, idOf(a.Disk()))
		o := replaced(r.req.Tag, id, spec, r.ids[i], r.ids)
		if err := r.owe(ctx, o); err != nil {
			return "", nil, err
		}
		old = append(old, o)
		spec.disk = r.ids[i]
		r.plan.disks[i].attach = spec
	}
	for _, o := range old {
		if err := r.d.takeOut(ctx, id, o.Args[argDisk]); err != nil {
			return "", nil, err
		}
	}
	for _, disk := range r.plan.disks {
		if err := r.attach(ctx, id, disk); err != nil {
			return "", nil, err
		}
	}
	// From here on the VM has its new disks; what fails now is a note, and stays owed.
	notes := r.named(ctx, id)
	if err := r.d.KeepCheckpoint(ctx, id, ""); err != nil {
		notes = append(notes, note("The checkpoints of the replaced disks could not be removed", err))
	}
	for _, o := range old {
		if err := r.d.CleanUp(ctx, o); err != nil {
			notes = append(notes, note("The replaced disk "+o.Args[argDisk]+" could not be removed", err))
		}
	}
	fault.Point("restore.original-removed")
	return id, notes, nil
}

// standing finds what the original has where each planned disk stood: that disk or, when an earlier restore in place has put another
// one there, the one that was given its name. nil: it was removed. An error: it cannot be told.
func (p *restorePlan) standing(x *sdk.Vm, req hypervisors.RestoreRequest) ([]*sdk.DiskAttachment, error) {
	out := make([]*sdk.DiskAttachment, len(p.disks))
	known := func(id string) bool {
		return slices.ContainsFunc(req.VM.Disks, func(d hypervisors.Disk) bool { return d.ID == id })
	}
	taken := map[string]bool{}
	for i, disk := range p.disks {
		if out[i] = attachment(x, disk.src.ID); out[i] != nil {
			continue
		}
		name := nameOf(disk.src, req)
		for _, a := range items(x.DiskAttachments()) {
			if d, ok := a.Disk(); !ok || val(d.Alias()) != name || known(idOf(a.Disk())) {
				continue
			}
			if out[i] != nil || taken[idOf(a.Disk())] {
				return nil, fault.New(fault.Conflict, "restore VM in place", val(x.Name()), "it has not disk %s, and several disks of the name %q", disk.src.ID, name).
					Explain("It cannot be told which of its disks this one is to replace.", "Give its disks different names, or restore it as a new VM.")
			}
			out[i] = a
		}
		if out[i] != nil {
			taken[idOf(out[i].Disk())] = true
		}
	}
	return out, nil
}

// boots says whether a VM has a disk that it starts from.
func boots(x *sdk.Vm) bool {
	return slices.ContainsFunc(items(x.DiskAttachments()), func(a *sdk.DiskAttachment) bool { return val(a.Bootable()) })
}

func specOf(a *sdk.DiskAttachment, disk string) attachmentSpec {
	out := attachmentSpec{disk: disk, bus: val(a.Interface()), boot: val(a.Bootable()), active: true, passDiscard: val(a.PassDiscard())}
	if active, ok := a.Active(); ok {
		out.active = active
	}
	return out
}

// replaced says of a disk of the original all that is needed to put it back.
func replaced(tag, vm string, spec attachmentSpec, with string, all []string) hypervisors.Owed {
	return hypervisors.Owed{Kind: hypervisors.OwedReplaced, VM: vm, Name: marker + tag + "/" + spec.disk, Args: map[string]string{
		argTag: tag, argDisk: spec.disk, argNew: with, argAll: strings.Join(all, ","), argBus: string(spec.bus),
		argBoot: strconv.FormatBool(spec.boot), argActive: strconv.FormatBool(spec.active), argDiscard: strconv.FormatBool(spec.passDiscard),
	}}
}

// takeOut detaches a disk from a VM, and leaves the disk.
func (d *Driver) takeOut(ctx context.Context, vm, disk string) error {
	path := "/vms/" + vm + "/diskattachments/" + disk
	err := d.pace.unlessBusy(ctx, "detach disk", func() error { return d.conn.Remove(ctx, "detach disk", disk, path, "detach_only", "true") })
	if err != nil {
		return err
	}
	return d.pace.poll(ctx, d.pace.create, "disk "+disk+" is detached", func() (bool, error) {
		_, err := d.conn.Do(ctx, engine.Request{Op: "detach disk", Subject: disk, Path: path})
		if engine.Gone(err) {
			return true, nil
		}
		return false, err
	})
}

// cleanReplaced removes a disk that an in-place restore has replaced, when the VM has all its new disks. Where it has not, the
// restore was cut off in the middle: then the VM gets the old one back.
func (d *Driver) cleanReplaced(ctx context.Context, o hypervisors.Owed) error {
	old := o.Args[argDisk]
	if err := checkID("disk", old); err != nil {
		return err
	}
	x, err := d.read(ctx, o.VM)
	if engine.Gone(err) {
		return nil
	}
	if err != nil || attachment(x, old) != nil {
		return err
	}
	for id := range strings.SplitSeq(o.Args[argAll], ",") {
		if attachment(x, id) == nil {
			return d.switchBack(ctx, o)
		}
	}
	all, err := d.list(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(vm *sdk.Vm) bool { return attachment(vm, old) != nil }) {
		return nil // another VM has it now
	}
	if err := d.inherit(ctx, x, o); err != nil {
		return err
	}
	return d.removeDisk(ctx, old, old)
}

// inherit gives a new disk the name of the one that it has replaced, if the restore was cut off before it was named: by its name a later
// restore knows what it stands for.
func (d *Driver) inherit(ctx context.Context, x *sdk.Vm, o hypervisors.Owed) error {
	a := attachment(x, o.Args[argNew])
	if a == nil {
		return nil
	}
	disk, ok := a.Disk()
	if !ok || !strings.HasPrefix(val(disk.Alias()), marker+o.Args[argTag]) {
		return nil
	}
	old, err := d.disk(ctx, o.Args[argDisk])
	if engine.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.nameDisk(ctx, o.VM, o.Args[argNew], val(old.Alias()))
}

// switchBack gives a VM a disk back that was to be replaced.
func (d *Driver) switchBack(ctx context.Context, o hypervisors.Owed) error {
	x, err := d.read(ctx, o.VM)
	if engine.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if with := o.Args[argNew]; attachment(x, with) != nil {
		if err := d.takeOut(ctx, o.VM, with); err != nil {
			return err
		}
	}
	old := o.Args[argDisk]
	if attachment(x, old) != nil {
		return nil
	}
	was, err := d.disk(ctx, old)
	if engine.Gone(err) {
		return nil // it was removed: the restore had finished
	}
	if err != nil {
		return err
	}
	if taken, err := d.placeTaken(ctx, x, val(was.Alias()), o); taken || err != nil {
		return err
	}
	doc, err := attachmentDocument(attachmentSpec{
		disk: old, bus: sdk.DiskInterface(o.Args[argBus]), boot: o.Args[argBoot] == "true", active: o.Args[argActive] == "true", passDiscard: o.Args[argDiscard] == "true",
	})
	if err != nil {
		return err
	}
	return d.pace.unlessBusy(ctx, "attach disk", func() error {
		_, err := d.conn.Post(ctx, "attach disk", old, "/vms/"+o.VM+"/diskattachments", doc, "")
		return err
	})
}

// placeTaken says whether a later restore has put another disk where an old one was: the VM has a disk of its name, and none
// of the disks that were to replace it exists. The old one is left alone then, floating.
func (d *Driver) placeTaken(ctx context.Context, x *sdk.Vm, name string, o hypervisors.Owed) (bool, error) {
	if !slices.ContainsFunc(items(x.DiskAttachments()), func(a *sdk.DiskAttachment) bool {
		disk, ok := a.Disk()
		return ok && name != "" && val(disk.Alias()) == name
	}) {
		return false, nil
	}
	for id := range strings.SplitSeq(o.Args[argAll], ",") {
		if _, err := d.disk(ctx, id); !engine.Gone(err) {
			return false, err
		}
	}
	return true, nil
}
