package ovirtsim

import (
	"slices"
)

// attachment is a disk, or a snapshot of one, in a VM.
type attachment struct {
	vm       *vm
	disk     *disk
	snapshot string // whose frozen content it is; "" is the disk itself
	volume   string // that of the snapshot

	active, bootable, readOnly, discard bool

	model    string // "virtio", "virtio_scsi", …
	going    bool   // being detached
	original bool   // the site has it so
	device   *device
}

func attachmentRoutes() []route {
	one := func(do func(c *call, a *attachment) (*reply, error)) handler {
		return withVM(func(c *call, v *vm) (*reply, error) {
			a, found := v.attached.get(c.vars["disk"])
			if !found {
				return nil, notFound("DiskAttachment", c.vars["disk"])
			}
			return do(c, a)
		})
	}
	return []route{
		get("/vms/:vm/diskattachments", withVM(func(c *call, v *vm) (*reply, error) {
			var out []*node
			for _, a := range v.attached.all() {
				out = append(out, a.node())
			}
			return c.plain("disk_attachments", out)
		})),
		get("/vms/:vm/diskattachments/:disk", one(func(_ *call, a *attachment) (*reply, error) { return ok(a.node()) })),
		post("/vms/:vm/diskattachments", "attach_disk", withVM(addAttachment)),
		put("/vms/:vm/diskattachments/:disk", "edit_disk_properties", one(editAttachment)),
		del("/vms/:vm/diskattachments/:disk", "attach_disk", one(removeAttachment)),
	}
}

func (a *attachment) node() *node {
	href := "/vms/" + a.vm.id + "/diskattachments/" + a.disk.id
	return el("disk_attachment", self(href, a.disk.id), flag("active", a.active), flag("bootable", a.bootable), txt("interface", a.model), txt("logical_name", ""),
		flag("pass_discard", a.discard), flag("read_only", a.readOnly), flag("uses_scsi_reservation", false),
		ref("disk", "disks", a.disk.id), ref("vm", "vms", a.vm.id))
}

var models = []string{"ide", "sata", "spapr_vscsi", "virtio", "virtio_scsi"}

// addAttachment attaches a disk that is there, or makes one.
func addAttachment(c *call, v *vm) (*reply, error) {
	b := c.body
	if !b.has("bootable") || !b.has("interface") {
		return nil, incomplete("DiskAttachment", "bootable, interface", "add")
	}
	a := &attachment{vm: v, model: b.str("interface"), snapshot: b.id("disk", "snapshot")}
	if !slices.Contains(models, a.model) {
		return nil, badRequest("Invalid value for interface: %s", a.model)
	}
	for name, where := range map[string]*bool{"active": &a.active, "bootable": &a.bootable, "read_only": &a.readOnly, "pass_discard": &a.discard} {
		value, err := b.boolean(false, name)
		if err != nil {
			return nil, err
		}
		*where = value
	}
	d, found := c.e.disks.get(b.id("disk"))
	if !found {
		if b.id("disk") != "" && !b.has("disk", "provisioned_size") {
			return nil, notFound("Disk", b.id("disk"))
		}
		if err := a.fits(); err != nil {
			return nil, err
		}
		var err error
		if d, err = c.e.newDisk(c, b.child("disk")); err != nil {
			return nil, err
		}
		a.disk = d
		v.attached.add(d.id, a)
		c.e.later(c.e.cfg.Pace, func() {
			if a.active && v.runs() {
				c.e.plug(a)
			}
		})
		return created(a.node())
	}
	a.disk = d
	if err := c.e.attachable(a); err != nil {
		return nil, err
	}
	c.e.attach(c, a)
	return created(a.node())
}

// fits says what the engine refuses of an attachment whatever the disk is.
func (a *attachment) fits() error {
	const cannot = "Cannot attach Virtual Disk"
	if err := a.vm.free("attach Virtual Disk"); err != nil {
		return err
	}
	switch {
	case !a.vm.runs() && a.vm.status != vmDown:
		return conflict(cannot + ". VM status is not Up, Paused or Down.")
	case a.readOnly && a.model == "ide":
		return conflict(cannot + ". Disk interface IDE does not support read-only disks.")
	case a.model == "virtio_scsi" && !a.vm.virtioSCSI:
		return conflict(cannot + ". Cannot attach the disk to the VM as VirtIO-SCSI interface is not enabled.")
	case a.model == "ide" && a.vm.runs() && a.active:
		return conflict(cannot + ". IDE disks cannot be hot plugged.")
	}
	if a.bootable {
		for _, other := range a.vm.attached.all() {
			if other.bootable && other.snapshot == a.snapshot {
				return conflict(cannot+". Disk %s in VM %s is already marked as boot.", other.disk.alias, a.vm.name)
			}
		}
	}
	return nil
}

// attachable says what the engine refuses.
func (e *Engine) attachable(a *attachment) error {
	const cannot = "Cannot attach Virtual Disk"
	d := a.disk
	if err := a.fits(); err != nil {
		return err
	}
	if e.strikes(AttachLocked, d.id, d.alias) {
		return conflict(cannot+". Disk %s is locked. Please try again in a few minutes.", d.alias)
	}
	if d.status == diskLocked && a.snapshot == "" {
		e.happens(AttachLocked)
		return conflict(cannot+". Disk %s is locked. Please try again in a few minutes.", d.alias)
	}
	if _, dup := a.vm.attached.get(d.id); dup {
		return conflict(cannot + ". Disk is already attached to VM.")
	}
	if !d.lun {
		switch {
		case d.domain.dc != a.vm.cluster.dc:
			return conflict(cannot + ". The disk's storage domain is not in the VM's data center.")
		case d.domain.status != "active" || d.domain.backup:
			return conflict(cannot+". Storage Domain %s cannot be accessed.", d.domain.name)
		}
	}
	if a.snapshot != "" {
		return e.attachableSnapshot(a)
	}
	switch {
	case d.status == diskIllegal && a.vm.runs():
		return conflict(cannot + ". The disk is in ILLEGAL status.")
	case !d.shareable && len(e.owners(d)) > 0:
		return conflict(cannot+". The disk is not shareable and is already attached to VM %s.", e.owners(d)[0].name)
	}
	return nil
}

func (e *Engine) attachableSnapshot(a *attachment) error {
	const cannot = "Cannot attach Virtual Disk"
	s := e.snapshotByID(a.snapshot)
	if s == nil {
		return notFound("Snapshot", a.snapshot)
	}
	v, in := s.disks[a.disk.id]
	switch {
	case s.kind != snapshotRegular:
		return conflict(cannot + ". The snapshot is not a regular one.")
	case s.status != snapshotOK:
		e.happens(AttachLocked)
		return conflict(cannot + ". The snapshot is locked. Please try again in a few minutes.")
	case !in:
		return conflict(cannot + ". The disk is not in the snapshot.")
	}
	if e.transferOf(v.id) != nil {
		e.happens(AttachLocked)
		return conflict(cannot+". The snapshot of disk %s is being transferred. Please try again in a few minutes.", a.disk.alias)
	}
	a.volume = v.id
	return nil
}

// attach puts a disk into a VM and, if both are active, plugs it in.
func (e *Engine) attach(c *call, a *attachment) {
	a.vm.attached.add(a.disk.id, a)
	e.audit(&event{code: 2016, severity: "normal", text: "Disk " + a.disk.alias + " was successfully attached to VM " + a.vm.name + " by " + c.user.name + ".", correlation: c.correlation, vm: a.vm.id})
	if a.active && a.vm.runs() {
		e.plug(a)
	}
}

// editAttachment activates and deactivates a disk, and changes how it is attached and what it is.
func editAttachment(c *call, a *attachment) (*reply, error) {
	e, b := c.e, c.body
	if err := a.vm.free("edit Virtual Disk"); err != nil {
		return nil, err
	}
	active, err := b.boolean(a.active, "active")
	if err != nil {
		return nil, err
	}
	bootable, err := b.boolean(a.bootable, "bootable")
	if err != nil {
		return nil, err
	}
	if m := b.str("interface"); m != "" && m != a.model {
		if !slices.Contains(models, m) || a.vm.runs() {
			return nil, conflict("Cannot edit Virtual Disk. The interface %s is not known, or the VM is running.", m)
		}
		a.model = m
	}
	if k := b.child("disk"); k != nil && len(k.kids) > 0 {
		if a.disk.status == diskLocked {
			return nil, conflict("Cannot edit Virtual Disk. Disk %s is locked. Please try again in a few minutes.", a.disk.alias)
		}
		if err := e.editDisk(c, a.disk, k); err != nil {
			return nil, err
		}
	}
	a.bootable = bootable
	if active != a.active {
		if a.vm.activeBackup().has(a.disk) {
			return nil, conflict("Cannot hot unplug Virtual Disk. The disk is in a backup.")
		}
		a.active = active
		switch {
		case active && a.vm.runs():
			e.plug(a)
		case !active:
			e.unplug(a, func() {})
		}
	}
	return accepted(a.node())
}

// removeAttachment detaches a disk; it deletes the disk, too, when detach_only is false.
func removeAttachment(c *call, a *attachment) (*reply, error) {
	only, err := c.flag("detach_only", true)
	if err != nil {
		return nil, err
	}
	e, v, d := c.e, a.vm, a.disk
	if err := v.free("detach Virtual Disk"); err != nil {
		return nil, err
	}
	switch {
	case a.going:
		return nil, conflict("Cannot detach Virtual Disk. Disk %s is being detached.", d.alias)
	case d.status == diskLocked && a.snapshot == "":
		return nil, conflict("Cannot detach Virtual Disk. Disk %s is locked. Please try again in a few minutes.", d.alias)
	case a.snapshot == "" && v.activeBackup().has(d):
		return nil, conflict("Cannot detach Virtual Disk. The disk is in a backup.")
	case a.snapshot == "" && e.frozenVolumes(d) > 0:
		return nil, conflict("Cannot detach Virtual Disk. The disk is in snapshots of VM %s.", v.name)
	case !only && a.snapshot != "":
		return nil, conflict("Cannot remove Virtual Disk. A snapshot of it is attached.")
	case !only && v.runs() && a.active:
		return nil, conflict("Cannot remove Virtual Disk. The disk is active in a running VM.")
	}
	if !only {
		if err := e.removeDisk(c, d); err != nil {
			return nil, err
		}
		return gone()
	}
	a.going = true
	wait := e.cfg.Pace
	if e.strikes(DetachSlow, d.id, d.alias) {
		wait *= 10
	}
	e.later(wait, func() {
		e.unplug(a, func() {
			v.attached.remove(d.id)
			e.audit(&event{code: 2018, severity: "normal", text: "Disk " + d.alias + " was successfully detached from VM " + v.name + ".", correlation: c.correlation, vm: v.id})
		})
	})
	return gone()
}
