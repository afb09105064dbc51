package ovirt

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// makeVM makes the VM of a restore with its disks and NICs. Until all is there its comment says that it is not complete.
func (r *restoring) makeVM(ctx context.Context) (id string, notes []string, err error) {
	tag := r.req.Tag
	if err := r.owe(ctx, hypervisors.Owed{Kind: kindVM, Name: marker + tag, Args: map[string]string{argTag: tag}}); err != nil {
		return "", nil, err
	}
	if id, notes, err = r.create(ctx); err != nil {
		return "", nil, err
	}
	err = r.d.pace.poll(ctx, r.d.pace.create, "VM "+r.req.Name+" is made", func() (bool, error) {
		vm, err := r.d.read(ctx, id)
		return err == nil && val(vm.Status()) == sdk.VMSTATUS_DOWN, err
	})
	if err != nil {
		return "", nil, err
	}
	for _, disk := range r.plan.disks {
		if err := r.give(ctx, id, disk); err != nil {
			return "", nil, err
		}
	}
	for _, nic := range r.plan.nics {
		doc, err := nicDocument(nic)
		if err != nil {
			return "", nil, err
		}
		if _, err := r.d.conn.post(ctx, "make NIC", nic.name, "/vms/"+id+"/nics", doc, ""); err != nil {
			return "", nil, err
		}
	}
	notes = append(notes, r.mark(ctx, id)...)
	return id, notes, r.complete(ctx, id)
}

// create makes the VM without disks: of the engine's own document, which has all settings, or of what the API says.
func (r *restoring) create(ctx context.Context) (id string, notes []string, err error) {
	if r.plan.ovf != nil {
		doc, err := importDocument(r.req.Name, r.plan.cluster.id, string(r.plan.ovf))
		if err != nil {
			return "", nil, err
		}
		if id, err = r.post(ctx, doc); err == nil {
			return id, nil, nil
		}
		switch fault.KindOf(err) {
		case fault.Invalid, fault.Conflict, fault.NotFound, fault.Unsupported:
		default:
			return "", nil, err
		}
		notes = append(notes, note("The engine does not take the VM's OVF, so a few settings have their defaults", err))
	}
	doc, err := vmDocument(r.req, r.plan)
	if err != nil {
		return "", nil, err
	}
	id, err = r.post(ctx, doc)
	return id, notes, err
}

func (r *restoring) post(ctx context.Context, doc []byte) (string, error) {
	const op = "make VM"
	tag := r.req.Tag
	return makeFor(ctx, r.d, tag, op, r.req.Name, func(ctx context.Context) (string, error) {
		out, err := r.d.conn.post(ctx, op, r.req.Name, "/vms", doc, correlation(tag, "vm"))
		if err != nil {
			if fault.KindOf(err) == fault.Transient {
				if found, e := r.d.restored(ctx, tag); e == nil && len(found) == 1 {
					return val(found[0].Id()), nil // only the reply was lost
				}
			}
			return "", err
		}
		vm, err := decodeOne(out.body, "vm", sdk.XMLVmReadOne)
		if err != nil {
			return "", fault.Context(op, r.req.Name, err)
		}
		return val(vm.Id()), checkID("VM", val(vm.Id()))
	})
}

// give attaches a disk to the new VM, and names it as it was.
func (r *restoring) give(ctx context.Context, vm string, disk plannedDisk) error {
	doc, err := attachmentDocument(disk.attach)
	if err != nil {
		return err
	}
	path := "/vms/" + vm + "/diskattachments"
	err = r.d.pace.unlessBusy(ctx, "attach disk", func() error {
		_, err := r.d.conn.post(ctx, "attach disk", disk.alias, path, doc, "")
		return err
	})
	if err != nil {
		return err
	}
	return r.d.pace.poll(ctx, r.d.pace.create, "disk "+disk.alias+" is attached", func() (bool, error) {
		_, err := r.d.conn.do(ctx, request{op: "attach disk", subject: disk.alias, path: path + "/" + disk.attach.disk})
		if gone(err) {
			return false, nil
		}
		return err == nil, err
	})
}

// mark gives the VM the source's tags and labels, as far as the engine has them.
func (r *restoring) mark(ctx context.Context, vm string) (notes []string) {
	for _, name := range r.req.VM.Tags {
		doc := []byte("<tag><name>" + text(name) + "</name></tag>")
		if _, err := r.d.conn.post(ctx, "tag VM", r.req.Name, "/vms/"+vm+"/tags", doc, ""); err != nil {
			notes = append(notes, note("The tag "+name+" could not be given to the VM", err))
		}
	}
	if len(r.req.VM.Labels) == 0 {
		return notes
	}
	labels, err := getAll[*sdk.AffinityLabel](ctx, r.d.conn, request{op: "list affinity labels", path: "/affinitylabels"}, "affinity_labels", sdk.XMLAffinityLabelReadMany)
	if err != nil {
		return append(notes, note("Affinity labels could not be given to the VM", err))
	}
	for _, name := range r.req.VM.Labels {
		i := slices.IndexFunc(labels, func(l *sdk.AffinityLabel) bool { return val(l.Name()) == name })
		if i < 0 {
			notes = append(notes, fmt.Sprintf("The affinity label %s is not on this engine.", name))
			continue
		}
		doc := []byte(`<vm id="` + vm + `"/>`)
		if _, err := r.d.conn.post(ctx, "label VM", r.req.Name, "/affinitylabels/"+val(labels[i].Id())+"/vms", doc, ""); err != nil {
			notes = append(notes, note("The affinity label "+name+" could not be given to the VM", err))
		}
	}
	return notes
}

// nameDisk names a disk that a VM has.
func (d *Driver) nameDisk(ctx context.Context, vm, disk, name string) error {
	doc := []byte("<disk_attachment><disk><alias>" + text(name) + "</alias></disk></disk_attachment>")
	path := "/vms/" + vm + "/diskattachments/" + disk
	_, err := d.conn.do(ctx, request{op: "name disk", subject: name, method: http.MethodPut, path: path, body: doc, repeat: true})
	return err
}

// nameOf is the name that a disk is given when its VM is complete.
func nameOf(src hypervisors.Disk, req hypervisors.RestoreRequest) string {
	if src.Name == "" {
		return req.Name + "_" + src.ID
	}
	return src.Name
}

// nameDisks gives the new disks the names that the old ones had.
func (r *restoring) nameDisks(ctx context.Context, vm string) error {
	for _, disk := range r.plan.disks {
		if err := r.d.nameDisk(ctx, vm, disk.attach.disk, nameOf(disk.src, r.req)); err != nil {
			return err
		}
	}
	return nil
}

// complete takes our marks off: from then on all of it is the user's. The VM's goes last, so that a crash before it leaves
// what is known as ours.
func (r *restoring) complete(ctx context.Context, vm string) error {
	if err := r.nameDisks(ctx, vm); err != nil {
		return err
	}
	comment := ""
	if r.plan.source != nil {
		comment = val(r.plan.source.Comment())
	}
	doc := []byte("<vm><comment>" + text(comment) + "</comment></vm>")
	_, err := r.d.conn.do(ctx, request{op: "complete VM", subject: r.req.Name, method: http.MethodPut, path: "/vms/" + vm, body: doc, repeat: true})
	return err
}

// restored returns the VMs that a restore has begun and not completed.
func (d *Driver) restored(ctx context.Context, tag string) ([]*sdk.Vm, error) {
	all, err := d.list(ctx)
	return slices.DeleteFunc(all, func(vm *sdk.Vm) bool { return val(vm.Comment()) != restoreComment+tag }), err
}

// cleanVM removes a VM that an unfinished restore has made, without its disks. One that runs has been adopted by somebody.
func (d *Driver) cleanVM(ctx context.Context, tag string) error {
	all, err := d.restored(ctx, tag)
	if err != nil {
		return err
	}
	for _, vm := range all {
		id := val(vm.Id())
		if s := val(vm.Status()); s != sdk.VMSTATUS_DOWN && s != sdk.VMSTATUS_IMAGE_LOCKED {
			continue
		}
		err := d.pace.unlessBusy(ctx, "remove VM", func() error {
			return d.conn.remove(ctx, "remove VM", val(vm.Name()), "/vms/"+id, "detach_only", "true")
		})
		if err != nil {
			return err
		}
		err = d.pace.poll(ctx, d.pace.create, "VM "+val(vm.Name())+" is gone", func() (bool, error) {
			_, err := d.read(ctx, id)
			if gone(err) {
				return true, nil
			}
			return false, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// cleanDisk removes a disk of a restore by its alias, unless it belongs to a VM: then it is no leftover any more.
func (d *Driver) cleanDisk(ctx context.Context, tag, alias string) error {
	if !ourAlias.MatchString(alias) || aliasTag(alias) != tag {
		return fault.New(fault.Invalid, "clean up disk", alias, "it does not carry the mark of %s", tag)
	}
	found, err := d.disksNamed(ctx, alias)
	if err != nil || len(found) == 0 {
		return err
	}
	for _, disk := range found {
		id := val(disk.Id())
		if err := d.endTransfers(ctx, tag, id, verbCancel); err != nil { // which removes the disk
			return err
		}
		kept, err := d.disown(ctx, id)
		if err != nil {
			return err
		}
		if kept {
			continue
		}
		err = d.pace.unlessBusy(ctx, "remove disk", func() error { return d.conn.remove(ctx, "remove disk", alias, "/disks/"+id) })
		if err != nil {
			return err
		}
		err = d.pace.poll(ctx, d.pace.create, "disk "+alias+" is gone", func() (bool, error) {
			_, err := d.disk(ctx, id)
			if gone(err) {
				return true, nil
			}
			return false, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// disown unplugs a disk of a restore from movers, and says whether a VM of a user's has it.
func (d *Driver) disown(ctx context.Context, disk string) (kept bool, err error) {
	all, err := d.list(ctx)
	if err != nil {
		return false, err
	}
	for _, vm := range all {
		if attachment(vm, disk) == nil {
			continue
		}
		if !isMover(vm) {
			return true, nil
		}
		if err := d.detach(ctx, val(vm.Id()), disk); err != nil {
			return false, err
		}
	}
	return false, nil
}
