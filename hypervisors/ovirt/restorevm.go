package ovirt

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
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
		if err := r.attach(ctx, id, disk); err != nil {
			return "", nil, err
		}
	}
	for _, nic := range r.plan.nics {
		doc, err := nicDocument(nic)
		if err != nil {
			return "", nil, err
		}
		if _, err := r.d.conn.Post(ctx, "make NIC", nic.name, "/vms/"+id+"/nics", doc, ""); err != nil {
			return "", nil, err
		}
	}
	notes = append(notes, r.mark(ctx, id)...)
	more, err := r.complete(ctx, id)
	return id, append(notes, more...), err
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
		out, err := r.d.conn.Post(ctx, op, r.req.Name, "/vms", doc, correlation(tag, "vm"))
		if err != nil {
			if fault.KindOf(err) == fault.Transient {
				if found, e := r.d.restored(ctx, tag); e == nil && len(found) == 1 {
					return val(found[0].Id()), nil // only the reply was lost
				}
			}
			return "", err
		}
		vm, err := apixml.DecodeOne(out, "vm", sdk.XMLVmReadOne)
		if err != nil {
			return "", fault.Context(op, r.req.Name, err)
		}
		return val(vm.Id()), checkID("VM", val(vm.Id()))
	})
}

// attach attaches a disk to a VM.
func (r *restoring) attach(ctx context.Context, vm string, disk plannedDisk) error {
	doc, err := attachmentDocument(disk.attach)
	if err != nil {
		return err
	}
	path := "/vms/" + vm + "/diskattachments"
	err = r.d.pace.unlessBusy(ctx, "attach disk", func() error {
		_, err := r.d.conn.Post(ctx, "attach disk", disk.alias, path, doc, "")
		return err
	})
	if err != nil {
		return err
	}
	return r.d.pace.poll(ctx, r.d.pace.create, "disk "+disk.alias+" is attached", func() (bool, error) {
		_, err := r.d.conn.Do(ctx, engine.Request{Op: "attach disk", Subject: disk.alias, Path: path + "/" + disk.attach.disk})
		if engine.Gone(err) {
			return false, nil
		}
		return err == nil, err
	})
}

// mark gives the VM the source's tags and labels, as far as the engine has them.
func (r *restoring) mark(ctx context.Context, vm string) (notes []string) {
	for _, name := range r.req.VM.Tags {
		doc := []byte("<tag><name>" + apixml.Text(name) + "</name></tag>")
		if _, err := r.d.conn.Post(ctx, "tag VM", r.req.Name, "/vms/"+vm+"/tags", doc, ""); err != nil {
			notes = append(notes, note("The tag "+name+" could not be given to the VM", err))
		}
	}
	if len(r.req.VM.Labels) == 0 {
		return notes
	}
	labels, err := engine.All[*sdk.AffinityLabel](ctx, r.d.conn, engine.Request{Op: "list affinity labels", Path: "/affinitylabels"}, "affinity_labels", sdk.XMLAffinityLabelReadMany)
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
		if _, err := r.d.conn.Post(ctx, "label VM", r.req.Name, "/affinitylabels/"+val(labels[i].Id())+"/vms", doc, ""); err != nil {
			notes = append(notes, note("The affinity label "+name+" could not be given to the VM", err))
		}
	}
	return notes
}

// nameDisk names a disk that a VM has.
func (d *Driver) nameDisk(ctx context.Context, vm, disk, name string) error {
	doc := []byte("<disk_attachment><disk><alias>" + apixml.Text(name) + "</alias></disk></disk_attachment>")
	path := "/vms/" + vm + "/diskattachments/" + disk
	_, err := d.conn.Do(ctx, engine.Request{Op: "name disk", Subject: name, Method: http.MethodPut, Path: path, Body: doc, Repeat: true})
	return err
}

// nameOf is the name that a disk is given when its VM is complete.
func nameOf(src hypervisors.Disk, req hypervisors.RestoreRequest) string {
	if src.Name == "" {
		return req.Name + "_" + src.ID
	}
	return src.Name
}

// nameDisks gives the new disks of a VM their names.
func (r *restoring) nameDisks(ctx context.Context, vm string) error {
	for _, disk := range r.plan.disks {
		if err := r.d.nameDisk(ctx, vm, disk.attach.disk, disk.name); err != nil {
			return err
		}
	}
	return nil
}

// named gives the disks of a VM that has all it is to have their names. It is complete without them.
func (r *restoring) named(ctx context.Context, vm string) []string {
	if err := r.nameDisks(ctx, vm); err != nil {
		return []string{note("A disk could not be given its name", err)}
	}
	return nil
}

// complete takes our mark off the VM: from then on it is the user's, and its disks with it. They get their names after it, so that no crash
// leaves one that is neither known as ours nor in a VM; what of that is missing after one is done by cleanDisk.
func (r *restoring) complete(ctx context.Context, vm string) (notes []string, err error) {
	comment := ""
	if r.plan.source != nil {
		comment = val(r.plan.source.Comment())
	}
	doc := []byte("<vm><comment>" + apixml.Text(comment) + "</comment></vm>")
	_, err = r.d.conn.Do(ctx, engine.Request{Op: "complete VM", Subject: r.req.Name, Method: http.MethodPut, Path: "/vms/" + vm, Body: doc, Repeat: true})
	if err != nil {
		return nil, err
	}
	return r.named(ctx, vm), nil
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
			return d.conn.Remove(ctx, "remove VM", val(vm.Name()), "/vms/"+id, "detach_only", "true")
		})
		if err != nil {
			return err
		}
		err = d.pace.poll(ctx, d.pace.create, "VM "+val(vm.Name())+" is gone", func() (bool, error) {
			_, err := d.read(ctx, id)
			if engine.Gone(err) {
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

// cleanDisk removes a disk of a restore by its alias, unless it belongs to a VM: then it is no leftover any more, and gets the name that it
// was to have, if that is known.
func (d *Driver) cleanDisk(ctx context.Context, tag string, o hypervisors.Owed) error {
	alias := o.Args[argAlias]
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
		owner, err := d.disown(ctx, id)
		if err != nil {
			return err
		}
		if owner != "" {
			if name := o.Args[argName]; name != "" {
				if err := d.nameDisk(ctx, owner, id, name); err != nil {
					return err
				}
			}
			continue
		}
		if err := d.removeDisk(ctx, id, alias); err != nil {
			return err
		}
	}
	return nil
}

// removeDisk deletes a disk, and waits until it is gone; name is what errors call it.
func (d *Driver) removeDisk(ctx context.Context, id, name string) error {
	if err := d.pace.unlessBusy(ctx, "remove disk", func() error { return d.conn.Remove(ctx, "remove disk", name, "/disks/"+id) }); err != nil {
		return err
	}
	return d.pace.poll(ctx, d.pace.create, "disk "+name+" is gone", func() (bool, error) {
		_, err := d.disk(ctx, id)
		if engine.Gone(err) {
			return true, nil
		}
		return false, err
	})
}

// disown unplugs a disk of a restore from movers, and returns the VM of a user's that has it, if one does.
func (d *Driver) disown(ctx context.Context, disk string) (owner string, err error) {
	all, err := d.list(ctx)
	if err != nil {
		return "", err
	}
	for _, vm := range all {
		if attachment(vm, disk) == nil {
			continue
		}
		if !isMover(vm) {
			if s := val(vm.Status()); isUnfinished(vm) && (s == sdk.VMSTATUS_DOWN || s == sdk.VMSTATUS_IMAGE_LOCKED) {
				return "", fault.New(fault.Conflict, "clean up disk", disk, "the half-made VM %s still has it", val(vm.Name()))
			}
			return val(vm.Id()), nil
		}
		if err := d.detach(ctx, val(vm.Id()), disk); err != nil {
			return "", err
		}
	}
	return "", nil
}
