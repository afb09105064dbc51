package ovirt

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Disks that are restored alone, or into a VM that is there, are handed over when all of them are complete. Until then they carry our mark; it
// is taken off last. A manager that dies in the middle goes on with a handover for which nothing is missing but names, and takes back any other.

// kindHanded is a handover. The VM of the Owed is the one that gets the disks; "" is none.
const kindHanded hypervisors.OwedKind = "handed-disks"

// argNames are the names that the disks of argAll get, with slashes between them, which no name has.
const argNames = "names"

// checkNames refuses names that the engine has not, and those by which disks of unfinished restores are known.
func (p *restorePlan) checkNames() error {
	for _, disk := range p.disks {
		why := ""
		switch {
		case !goodName.MatchString(disk.name):
			why = "it is not 1 to 255 letters, digits, '.', '_' and '-'"
		case aliasTag(disk.name) != "":
			why = "it is like those of disks that Cairn has not completed"
		default:
			continue
		}
		return fault.New(fault.Invalid, "restore disk as", fmt.Sprintf("%.100q", disk.name), "%s", why).
			Explain("This cannot be the name of a disk of the engine.", "Choose another name.")
	}
	return nil
}

// planInto checks that a VM can get the disks.
func (d *Driver) planInto(ctx context.Context, p *restorePlan, req hypervisors.RestoreRequest, at *places) error {
	if err := p.checkNames(); err != nil {
		return err
	}
	x, err := d.read(ctx, req.Into)
	if err != nil {
		return err
	}
	p.cluster = at.clusters[idOf(x.Cluster())]
	for i := range p.disks {
		disk := &p.disks[i]
		if disk.store.center != p.cluster.center {
			return fault.New(fault.Invalid, "restore disk", disk.src.ID, "the storage domain %q is not in the data center of VM %s", disk.store.Name, val(x.Name())).
				Explain("All disks of a VM must be in its data center.", "Choose a storage domain there.")
		}
		disk.attach.boot, disk.attach.active = false, true
	}
	return p.fit(x)
}

// fit says whether a VM can get the disks as it is now.
func (p *restorePlan) fit(x *sdk.Vm) error {
	no := func(what, meaning, advice string) error {
		return fault.New(fault.Conflict, "restore disks into VM", val(x.Name()), "%s", what).Explain(meaning, advice)
	}
	status := val(x.Status())
	switch {
	case isMover(x):
		return no("it is a mover", "What is plugged into a mover belongs to Cairn's own work.", "Choose another VM.")
	case isUnfinished(x):
		return no("it is being restored itself", "The VM is not complete.", "Wait until its restore has ended.")
	case status != sdk.VMSTATUS_DOWN && status != sdk.VMSTATUS_UP:
		return no("its status is "+strconv.Quote(string(status)), "Disks are given to VMs that are off, or up.", "Wait until the VM is up, or shut it down, and start the restore again.")
	}
	scsi := true
	if c, ok := x.VirtioScsi(); ok {
		scsi = val(c.Enabled())
	}
	for _, disk := range p.disks {
		switch bus := disk.attach.bus; {
		case bus == sdk.DISKINTERFACE_VIRTIO_SCSI && !scsi:
			return no("it has no VirtIO-SCSI controller, and disk "+disk.src.ID+" wants one", "The VM cannot take a disk of this interface.", "Enable VirtIO-SCSI for the VM in the engine, or choose another VM.")
		case status == sdk.VMSTATUS_UP && bus != sdk.DISKINTERFACE_VIRTIO && bus != sdk.DISKINTERFACE_VIRTIO_SCSI:
			return no("it runs, and disk "+disk.src.ID+" is a disk of the interface "+string(bus), "The engine plugs only virtio and virtio_scsi disks into a VM that runs.",
				"Shut the VM down and start the restore again, or restore the disk alone and attach it in the engine as you like.")
		}
	}
	return nil
}

// oweHandover records that the disks are being handed over.
func (r *restoring) oweHandover(ctx context.Context) error {
	names := make([]string, len(r.plan.disks))
	for i, disk := range r.plan.disks {
		names[i] = disk.name
	}
	return r.owe(ctx, hypervisors.Owed{Kind: kindHanded, VM: r.req.Into, Name: marker + r.req.Tag, Args: map[string]string{
		argTag: r.req.Tag, argAll: strings.Join(r.ids, ","), argNames: strings.Join(names, "/"),
	}})
}

// leave names the disks, which no VM has: from then on they are the user's.
func (r *restoring) leave(ctx context.Context) (hypervisors.VM, error) {
	out := hypervisors.VM{Name: r.req.VM.Name, Notes: r.plan.notes}
	if err := r.oweHandover(ctx); err != nil {
		return out, err
	}
	for _, disk := range r.plan.disks {
		id := disk.attach.disk
		if err := r.d.nameFloating(ctx, id, disk.name); err != nil {
			return out, err
		}
		made := disk.src
		made.ID, made.Name, made.SizeBytes, made.Datastore = id, disk.name, disk.size, disk.store.Name
		out.Disks = append(out.Disks, made)
		out.Notes = append(out.Notes, fmt.Sprintf("Disk %s is restored as the disk %q (%s), which no VM has.", disk.src.ID, disk.name, id))
	}
	r.finished = true
	r.forget()
	return out, nil
}

// nameFloating names a disk that no VM has.
func (d *Driver) nameFloating(ctx context.Context, disk, name string) error {
	doc := []byte("<disk><alias>" + apixml.Text(name) + "</alias></disk>")
	_, err := d.conn.Do(ctx, engine.Request{Op: "name disk", Subject: name, Method: http.MethodPut, Path: "/disks/" + disk, Body: doc, Repeat: true})
	return err
}

// give gives the VM that was named the disks, and then names them.
func (r *restoring) give(ctx context.Context) (string, []string, error) {
	id := r.req.Into
	x, err := r.d.read(ctx, id)
	if err == nil {
		err = r.plan.fit(x)
	}
	if err == nil {
		err = r.oweHandover(ctx)
	}
	if err != nil {
		return "", nil, err
	}
	var notes []string
	for _, disk := range r.plan.disks {
		if err := r.attach(ctx, id, disk); err != nil {
			return "", nil, err
		}
		how := "attached to"
		if val(x.Status()) == sdk.VMSTATUS_UP {
			how = "plugged into"
			if err := r.d.waitPlugged(ctx, id, disk); err != nil {
				return "", nil, err
			}
		}
		notes = append(notes, fmt.Sprintf("Disk %s is %s VM %s as the disk %q (%s).", disk.src.ID, how, val(x.Name()), disk.name, disk.attach.disk))
	}
	return id, append(notes, r.named(ctx, id)...), nil
}

// waitPlugged waits until the guest of a VM that runs has a disk.
func (d *Driver) waitPlugged(ctx context.Context, vm string, disk plannedDisk) error {
	path := "/vms/" + vm + "/diskattachments/" + disk.attach.disk
	return d.pace.poll(ctx, d.pace.busy, "disk "+disk.name+" is plugged in", func() (bool, error) {
		r := engine.Request{Op: "plug disk into VM", Subject: disk.name, Path: path}
		a, err := engine.One(ctx, d.conn, r, "disk_attachment", sdk.XMLDiskAttachmentReadOne)
		return err == nil && val(a.Active()), err
	})
}

// cleanHanded ends a handover that was cut off. Disks that have their names are the user's, whatever became of the others.
func (d *Driver) cleanHanded(ctx context.Context, o hypervisors.Owed, tag string) error {
	all, names := strings.Split(o.Args[argAll], ","), strings.Split(o.Args[argNames], "/")
	if len(all) != len(names) {
		return fault.New(fault.Invalid, "clean up handover", o.Name, "it has %d disks and %d names", len(all), len(names))
	}
	whole := true
	if o.VM != "" {
		x, err := d.read(ctx, o.VM)
		if err != nil && !engine.Gone(err) {
			return err
		}
		whole = err == nil && !slices.ContainsFunc(all, func(id string) bool { return attachment(x, id) == nil })
	}
	for i, id := range all {
		if err := checkID("disk", id); err != nil {
			return err
		}
		disk, err := d.disk(ctx, id)
		if engine.Gone(err) || err == nil && aliasTag(val(disk.Alias())) != tag {
			continue
		}
		switch {
		case err != nil:
		case !whole:
			err = d.takeBack(ctx, o.VM, id)
		case o.VM != "":
			err = d.nameDisk(ctx, o.VM, id, names[i])
		default:
			err = d.nameFloating(ctx, id, names[i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// abandonHandover takes all disks back, whatever they are called by now: the restore that made them is still there and says so.
func (d *Driver) abandonHandover(ctx context.Context, o hypervisors.Owed) error {
	var errs []error
	for id := range strings.SplitSeq(o.Args[argAll], ",") {
		errs = append(errs, d.takeBack(ctx, o.VM, id))
	}
	return errors.Join(errs...)
}

// takeBack takes a disk out of the VM that was to have it, if any, and removes it.
func (d *Driver) takeBack(ctx context.Context, vm, disk string) error {
	if vm != "" {
		x, err := d.read(ctx, vm)
		if err != nil && !engine.Gone(err) {
			return err
		}
		if err == nil && attachment(x, disk) != nil {
			if err := d.takeOut(ctx, vm, disk); err != nil {
				return err
			}
		}
	}
	return d.removeDisk(ctx, disk, disk)
}
