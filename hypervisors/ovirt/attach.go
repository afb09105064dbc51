package ovirt

import (
	"context"
	"slices"
	"strings"
	"sync"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// attached is a disk in a mover's VM.
type attached struct {
	d       *Driver
	owed    hypervisors.Owed
	export  hypervisors.Export
	restore *restoring // that the disk is of; nil for a frozen one

	mu       sync.Mutex
	detached bool
}

// Export tells the mover what to look for: the engine gives a disk its own id as serial number.
func (a *attached) Export() hypervisors.Export { return a.export }

// Detach unplugs the disk and waits until the engine says that it is gone. A disk of a restore can be uploaded to again
// then, which is not possible while a VM that runs has it.
func (a *attached) Detach(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.detached {
		return nil
	}
	if err := a.d.CleanUp(ctx, a.owed); err != nil {
		return err
	}
	a.detached = true
	if a.restore == nil {
		return nil
	}
	if err := a.restore.reopen(ctx, a.owed.Args[argDisk]); err != nil {
		a.d.log.InfoContext(ctx, "a disk that was plugged into a mover is not offered over the network again", "disk", a.owed.Args[argDisk], "err", err)
	}
	return nil
}

// argSource is the VM in the arguments of an owed attachment whose frozen disk it is; "" is a disk of a restore.
const argSource = "source"

// Attach plugs a disk of a freeze, or of a restore, into a mover.
func (d *Driver) Attach(ctx context.Context, req hypervisors.AttachRequest) (hypervisors.Attached, error) {
	if err := checkAttach(req); err != nil {
		return nil, err
	}
	mover, err := d.read(ctx, req.Mover)
	if err != nil {
		return nil, err
	}
	if err := takesDisks(mover); err != nil {
		return nil, err
	}
	disk := req.Export.Name
	if attachment(mover, disk) != nil {
		return nil, fault.New(fault.Exists, "plug disk into mover", val(mover.Name()), "disk %s is plugged in already", disk).
			Explain("A disk can be in a mover once only, also at two instants.", "Wait for the other task that reads this disk, or use another mover.")
	}
	p, err := d.plug(ctx, req, disk)
	if err != nil {
		return nil, err
	}
	a := &attached{d: d, restore: p.restore, owed: hypervisors.Owed{
		Kind: hypervisors.OwedAttached, VM: req.Mover, Name: marker + req.Tag + "/" + disk,
		Args: map[string]string{argTag: req.Tag, argDisk: disk, argSource: p.source},
	}}
	if err := req.Owe(ctx, a.owed); err != nil {
		return nil, fault.Context("record owed clean-up", a.owed.Name, err)
	}
	if err := d.plugIn(ctx, req, val(mover.Name()), disk, p); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), canceledLimit)
		defer cancel()
		if e := a.Detach(undo); e != nil {
			d.log.WarnContext(ctx, "a disk is left in the mover, owed", "disk", disk, "mover", req.Mover, "err", e)
		}
		return nil, err
	}
	a.export = req.Export
	a.export.Transport, a.export.Serial = hypervisors.TransportHotadd, disk
	a.export.Network, a.export.Address, a.export.Imageio, a.export.DirtyContext = "", "", nil, ""
	return a, nil
}

func checkAttach(req hypervisors.AttachRequest) error {
	if err := checkTag(req.Tag); err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "plug disk into mover", req.Export.Name, format, args...)
	}
	switch {
	case !hypervisors.GoodSerial(req.Serial):
		return bad("%q is no serial number", req.Serial)
	case req.Export.Transport != hypervisors.TransportImageio:
		return bad("it is offered by %q, and not by this driver", req.Export.Transport)
	case !goodID.MatchString(req.Export.Name):
		return bad("it is no disk of an engine")
	case req.Export.Unpluggable != "":
		return fault.New(fault.Unsupported, "plug disk into mover", req.Export.Name, "%s", req.Export.Unpluggable)
	}
	return nil
}

// takesDisks says whether disks may be plugged into a VM.
func takesDisks(mover *sdk.Vm) error {
	no := func(format string, args ...any) error {
		return fault.New(fault.Denied, "plug disk into mover", val(mover.Name()), format, args...).
			Explain("Disks are plugged only into VMs that are marked as movers and run.", "Start the mover, or deploy one: cairn mover deploy.")
	}
	if !isMover(mover) {
		return no("it is no mover: its comment does not begin with %q", moverComment)
	}
	if status := val(mover.Status()); status != sdk.VMSTATUS_UP {
		return no("its status is %q", status)
	}
	return nil
}

// plugging says what is plugged in.
type plugging struct {
	frozen   *frozen    // nil for a disk of a restore
	restore  *restoring // nil for a frozen disk
	source   string     // the VM that the disk is of; "" is a disk of a restore
	snapshot string
}

// plug finds the disk that an export is of.
func (d *Driver) plug(ctx context.Context, req hypervisors.AttachRequest, disk string) (plugging, error) {
	d.mu.Lock()
	f, r := d.frozen[req.Tag], d.restores[req.Tag]
	d.mu.Unlock()
	if r != nil && req.Export.Writable && r.index(disk) >= 0 {
		return plugging{restore: r}, nil
	}
	if f == nil || req.Export.Writable {
		return plugging{}, fault.New(fault.Conflict, "plug disk into mover", disk, "it is of no freeze or restore that stands")
	}
	s, err := d.findSnapshot(ctx, f.vm, marker+req.Tag)
	if err != nil {
		return plugging{}, err
	}
	if s == nil {
		return plugging{}, fault.New(fault.Conflict, "plug disk into mover", disk, "its snapshot is gone")
	}
	return plugging{frozen: f, source: f.vm, snapshot: val(s.Id())}, nil
}

// plugIn ends the disk's image transfer, which locks the image, plugs the disk in, and opens a transfer again beside it.
func (d *Driver) plugIn(ctx context.Context, req hypervisors.AttachRequest, mover, disk string, p plugging) error {
	const op = "plug disk into mover"
	if p.restore != nil {
		if err := p.restore.close(ctx, disk); err != nil {
			return fault.Context(op, mover, err)
		}
	} else if err := p.frozen.close(ctx, disk); err != nil {
		return fault.Context(op, mover, err)
	}
	err := d.attach(ctx, req.Tag, req.Mover, disk, p.snapshot)
	if p.frozen != nil {
		reopen, cancel := ctx, context.CancelFunc(func() {})
		if err != nil { // the network remains, also for a caller who has given up this way
			reopen, cancel = context.WithTimeout(context.WithoutCancel(ctx), canceledLimit)
		}
		defer cancel()
		if e := p.frozen.reopen(reopen, disk); e != nil && err == nil {
			err = e
		}
	}
	if err != nil {
		return fault.Context(op, mover, err)
	}
	return nil
}

// attach makes the attachment, which is owed, and waits until the engine has plugged it in.
func (d *Driver) attach(ctx context.Context, tag, mover, disk, snapshot string) error {
	const op = "attach disk"
	doc, err := attachmentDocument(attachmentSpec{disk: disk, snapshot: snapshot, bus: sdk.DISKINTERFACE_VIRTIO_SCSI, readOnly: snapshot != "", active: true})
	if err != nil {
		return err
	}
	path := "/vms/" + mover + "/diskattachments"
	err = d.pace.unlessBusy(ctx, op, func() error {
		_, err := makeFor(ctx, d, tag, op, disk, func(ctx context.Context) ([]byte, error) { return d.conn.Post(ctx, op, disk, path, doc, "") })
		return err
	})
	if err != nil {
		return err
	}
	return d.pace.poll(ctx, d.pace.busy, "disk "+disk+" is plugged into its mover", func() (bool, error) {
		a, err := engine.One(ctx, d.conn, engine.Request{Op: op, Subject: disk, Path: path + "/" + disk}, "disk_attachment", sdk.XMLDiskAttachmentReadOne)
		return err == nil && val(a.Active()), err
	})
}

// cleanAttached unplugs what is owed. The engine does not tell of which snapshot an attached disk is, but removes none
// whose disks are attached: so where the freeze's snapshot is gone, what is attached is somebody else's.
func (d *Driver) cleanAttached(ctx context.Context, o hypervisors.Owed, tag string) error {
	if source := o.Args[argSource]; source != "" {
		if err := checkID("VM", source); err != nil {
			return err
		}
		s, err := d.findSnapshot(ctx, source, marker+tag)
		if err != nil && !engine.Gone(err) {
			return err
		}
		if s == nil {
			return nil
		}
	}
	return d.detach(ctx, o.VM, o.Args[argDisk])
}

// detach unplugs a disk from a mover, and waits until it is gone. The disk itself is never deleted by it: that is one word
// away in this call.
func (d *Driver) detach(ctx context.Context, mover, disk string) error {
	const op = "detach disk"
	if err := checkID("disk", disk); err != nil {
		return err
	}
	x, err := d.read(ctx, mover)
	if engine.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !isMover(x) {
		return fault.New(fault.Invalid, op, disk, "VM %s is no mover", val(x.Name()))
	}
	if attachment(x, disk) == nil {
		return nil
	}
	path := "/vms/" + mover + "/diskattachments/" + disk
	if err := d.pace.unlessBusy(ctx, op, func() error { return d.conn.Remove(ctx, op, disk, path, "detach_only", "true") }); err != nil {
		return err
	}
	return d.pace.poll(ctx, d.pace.create, "disk "+disk+" is unplugged", func() (bool, error) {
		_, err := d.conn.Do(ctx, engine.Request{Op: op, Subject: disk, Path: path})
		if engine.Gone(err) {
			return true, nil
		}
		return false, err
	})
}

// close ends the transfer of one disk.
func (f *frozen) close(ctx context.Context, disk string) error {
	ours, err := f.d.ourTransfers(ctx, f.tag, disk)
	if err != nil {
		return err
	}
	for _, t := range ours {
		f.keeper.drop(val(t.Id()))
		if _, err := f.d.endTransfer(ctx, val(t.Id()), disk, verbFinalize); err != nil {
			return err
		}
	}
	return nil
}

// reopen opens the transfer of one disk again; Info says from then on where.
func (f *frozen) reopen(ctx context.Context, disk string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.info.Disks, func(o hypervisors.FrozenDiskInfo) bool { return o.Disk.ID == disk })
	if i < 0 || f.released {
		return fault.New(fault.Conflict, "open image transfer of disk", disk, "the freeze does not have it")
	}
	ca, err := f.d.conn.ImageioAuthority(ctx)
	if err != nil {
		return err
	}
	e, err := f.open(ctx, transferSpec{disk: disk, image: f.images[disk]}, ca, f.info.Disks[i].Export)
	if err == nil {
		f.info.Disks[i].Export = e
	}
	return err
}

// Movers lists the VMs that are marked as movers.
func (d *Driver) Movers(ctx context.Context) ([]hypervisors.VM, error) {
	p, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	all, err := d.list(ctx)
	if err != nil {
		return nil, err
	}
	owners := plugged(all)
	out := []hypervisors.VM{}
	for _, x := range all {
		if !isMover(x) {
			continue
		}
		vm := describe(x, p)
		vm.Disks = slices.DeleteFunc(vm.Disks, func(disk hypervisors.Disk) bool { return owners[disk.ID] != "" || ourAlias.MatchString(disk.Name) })
		out = append(out, vm)
	}
	sortVMs(out)
	return out, nil
}

// plugged maps the disks of users' VMs to those VMs: what of them a mover has is plugged into it for a while.
func plugged(all []*sdk.Vm) map[string]string {
	out := map[string]string{}
	for _, vm := range all {
		if isMover(vm) {
			continue
		}
		for _, a := range items(vm.DiskAttachments()) {
			out[val(a.Id())] = val(vm.Id())
		}
	}
	return out
}

// leftInMover returns what is plugged into a mover: of the freezes that VMs have, whose snapshots' names are known, and of
// restores.
func leftInMover(mover *sdk.Vm, owners, freezes map[string]string) (out []hypervisors.Owed) {
	for _, a := range items(mover.DiskAttachments()) {
		disk := val(a.Id())
		if x, ok := a.Disk(); ok && aliasTag(val(x.Alias())) != "" {
			tag := aliasTag(val(x.Alias()))
			out = append(out, hypervisors.Owed{
				Kind: hypervisors.OwedAttached, VM: val(mover.Id()), Name: marker + tag + "/" + disk, Args: map[string]string{argTag: tag, argDisk: disk},
			})
			continue
		}
		source := owners[disk]
		name := freezes[source]
		if source == "" || name == "" {
			continue
		}
		out = append(out, hypervisors.Owed{
			Kind: hypervisors.OwedAttached, VM: val(mover.Id()), Name: name + "/" + disk,
			Args: map[string]string{argTag: strings.TrimPrefix(name, marker), argDisk: disk, argSource: source},
		})
	}
	return out
}
