package ovirtsim

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cairn-backup/cairn/lab/ovirtsim/storage"
)

// The states of disks.
const (
	diskOK      = "ok"
	diskLocked  = "locked"
	diskIllegal = "illegal"
)

// volume is one layer of a disk.
type volume struct {
	id, format string
	sparse     bool
}

// disk is a disk, attached or floating.
type disk struct {
	id, alias, description string

	domain      *domain // nil for a direct LUN
	size        int64   // virtual
	initial     int64
	actual      int64 // allocated, as of the last change
	active      volume
	status      string
	content     string
	incremental bool
	shareable   bool
	lun         bool
	wipe        bool
	stored      atomic.Bool // there are volumes in the storage: before the first need there are none
}

func diskRoutes() []route {
	one := func(do func(c *call, d *disk) (*reply, error)) handler {
		return func(c *call) (*reply, error) {
			d, err := c.e.disk(c.vars["disk"])
			if err != nil {
				return nil, err
			}
			return do(c, d)
		}
	}
	return []route{
		get("/disks", listDisks),
		get("/disks/:disk", one(func(c *call, d *disk) (*reply, error) { return ok(d.node(c.e, true)) })),
		post("/disks", "create_disk", func(c *call) (*reply, error) {
			d, err := c.e.newDisk(c, c.body)
			if err != nil {
				return nil, err
			}
			return accepted(d.node(c.e, true))
		}),
		put("/disks/:disk", "edit_disk_properties", one(editDisk)),
		del("/disks/:disk", "delete_disk", one(removeDisk)),
		post("/disks/:disk/convert", "edit_disk_properties", one(convertDisk)),
		get("/disks/:disk/permissions", one(func(c *call, _ *disk) (*reply, error) { return c.plain("permissions", c.e.permissions()) })),
		get("/disks/:disk/vms", one(func(c *call, d *disk) (*reply, error) {
			var out []*node
			for _, a := range c.e.uses(d) {
				out = append(out, a.vm.node(c.e, false))
			}
			return c.plain("vms", out)
		})),
	}
}

func (e *Engine) disk(id string) (*disk, error) {
	if d, ok := e.disks.get(id); ok {
		return d, nil
	}
	return nil, notFound("Disk", id)
}

// uses lists the attachments of a disk, plain ones and those of its snapshots.
func (e *Engine) uses(d *disk) (out []*attachment) {
	for _, v := range e.vms.all() {
		if a, ok := v.attached.get(d.id); ok {
			out = append(out, a)
		}
	}
	return out
}

// owners are the VMs to which the disk itself is attached.
func (e *Engine) owners(d *disk) (out []*vm) {
	for _, a := range e.uses(d) {
		if a.snapshot == "" {
			out = append(out, a.vm)
		}
	}
	return out
}

func listDisks(c *call) (*reply, error) {
	var rows []*row
	for _, d := range c.e.disks.all() {
		var vms []string
		for _, v := range c.e.owners(d) {
			vms = append(vms, v.name)
		}
		rows = append(rows, (&row{id: d.id, node: func() *node { return d.node(c.e, false) }}).field("alias", d.alias).field("name", d.alias).field("id", d.id).
			field("status", d.status).field("storage", d.domain.nameOf()).field("vm_names", vms...).field("description", d.description))
	}
	return c.found("disks", rows)
}

func (d *disk) totalSize() int64 {
	switch {
	case d.lun:
		return 0
	case d.actual == 0 && !d.active.sparse:
		return d.size
	}
	return d.actual
}

// node is a disk; single is whether it is asked for alone.
func (d *disk) node(e *Engine, single bool) *node {
	href := "/disks/" + d.id
	n := el("disk", self(href, d.id), txt("name", d.alias), txt("description", d.description), txt("alias", d.alias), txt("content_type", d.content), flag("propagate_errors", false),
		flag("shareable", d.shareable), flag("wipe_after_delete", d.wipe), links(href, "permissions", "statistics"))
	if d.lun {
		n.add(txt("storage_type", "lun"), txt("status", diskOK), sub("lun_storage", attr("id", "36"+d.id[:8]), txt("type", "iscsi"), sub("logical_units",
			sub("logical_unit", attr("id", "36"+d.id[:8]), num("size", d.size), txt("vendor_id", "LIO-ORG"), txt("status", "used")))))
		return n
	}
	mode := "none"
	if d.incremental {
		mode = "incremental"
	}
	n.add(actions(href, "copy", "export", "move", "reduce", "refreshlun", "sparsify"), num("actual_size", d.totalSize()), txt("backup", mode), txt("format", d.active.format),
		txt("image_id", d.active.id), num("provisioned_size", d.size), flag("sparse", d.active.sparse), txt("status", d.status), txt("storage_type", "image"),
		sub("disk_profile", attr("id", d.domain.id)), sub("storage_domains", ref("storage_domain", "storagedomains", d.domain.id)))
	if d.active.format == "cow" {
		n.add(txt("qcow_version", "qcow2_v3"))
	}
	if d.initial > 0 {
		n.add(num("initial_size", d.initial))
	}
	if single {
		n.add(num("total_size", d.totalSize()))
	}
	return n
}

// newDisk makes a disk of a description; it is locked at first.
func (e *Engine) newDisk(c *call, b *node) (*disk, error) {
	d := &disk{id: b.attr("id"), alias: b.str("alias"), description: b.str("description"), status: diskLocked, content: "data"}
	if d.alias == "" {
		d.alias = b.str("name")
	}
	if d.id == "" {
		d.id = e.newID()
	} else if _, dup := e.disks.get(d.id); dup || !isID(d.id) {
		return nil, conflict("Cannot add Virtual Disk. A disk with the same id exists already, or the id is malformed: %s", d.id)
	}
	if b.has("lun_storage") {
		return nil, conflict("Cannot add Virtual Disk. The simulator makes no direct LUNs.")
	}
	if err := e.describe(b, d); err != nil {
		return nil, err
	}
	d.active.id = e.newID()
	e.disks.add(d.id, d)
	j := e.startJob(c.correlation, "Creating Virtual Disk "+d.alias)
	e.later(e.cfg.Pace, func() {
		if _, there := e.disks.get(d.id); there {
			d.status = diskOK
		}
		e.audit(&event{code: 2021, severity: "normal", text: "The disk '" + d.alias + "' was successfully added.", correlation: c.correlation})
		e.endJob(j, true)
	})
	return d, nil
}

// describe reads what a new disk is to be.
func (e *Engine) describe(b *node, d *disk) (err error) {
	if !b.has("provisioned_size") || !b.has("format") {
		return incomplete("Disk", "provisionedSize|size, format", "add")
	}
	sd := b.child("storage_domains", "storage_domain")
	switch {
	case sd.attr("id") != "":
		d.domain, err = e.domain(sd.attr("id"))
	case sd.str("name") != "":
		d.domain, _ = e.domains.find(func(x *domain) bool { return x.name == sd.str("name") })
	}
	switch {
	case err != nil:
		return err
	case d.domain == nil:
		return incomplete("Disk", "storageDomains.storageDomain.id|name", "add")
	case d.domain.kind != "data" || d.domain.status != "active":
		return conflict("Cannot add Virtual Disk. Storage Domain %s cannot be accessed, or is no data domain.", d.domain.name)
	}
	if d.size, err = b.integer(0, "provisioned_size"); err != nil {
		return err
	}
	if d.initial, err = b.integer(0, "initial_size"); err != nil {
		return err
	}
	d.active.format = b.str("format")
	if d.active.sparse, err = b.boolean(d.active.format == "cow", "sparse"); err != nil {
		return err
	}
	for name, where := range map[string]*bool{"shareable": &d.shareable, "wipe_after_delete": &d.wipe} {
		if *where, err = b.boolean(false, name); err != nil {
			return err
		}
	}
	d.incremental = b.str("backup") == "incremental"
	return d.sensible(e)
}

// sensible says what the engine refuses of a description.
func (d *disk) sensible(e *Engine) error {
	switch {
	case d.active.format != "cow" && d.active.format != "raw":
		return badRequest("Invalid value for format: %s", d.active.format)
	case d.size <= 0 || d.size%512 != 0:
		return conflict("Cannot add Virtual Disk. The size of %d bytes is not a positive multiple of 512.", d.size)
	case d.active.format == "raw" && d.active.sparse && d.domain.block():
		return conflict("Cannot add Virtual Disk. Disk configuration (RAW Sparse) is incompatible with the storage domain type.")
	case d.active.format == "cow" && !d.active.sparse && !d.domain.block():
		return conflict("Cannot add Virtual Disk. Disk configuration (COW Preallocated) is incompatible with the storage domain type.")
	case d.incremental && d.active.format == "raw":
		return conflict("Cannot add Virtual Disk. Incremental backup is not supported for a RAW disk.")
	case d.incremental && d.shareable:
		return conflict("Cannot add Virtual Disk. Incremental backup is not supported for a shareable disk.")
	case d.size > d.domain.size:
		return conflict("Cannot add Virtual Disk. Low disk space on Storage Domain %s.", d.domain.name)
	}
	for _, other := range e.disks.all() {
		if other.id == d.id {
			return conflict("Cannot add Virtual Disk. A disk with the same id exists already.")
		}
	}
	return nil
}

// isID says whether text is a UUID.
func isID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range s {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (r == '-') || !dash && !strings.ContainsRune("0123456789abcdef", r) {
			return false
		}
	}
	return true
}

// editDisk changes alias, description, backup mode and size.
func editDisk(c *call, d *disk) (*reply, error) {
	if d.status == diskLocked {
		return nil, conflict("Cannot edit Virtual Disk. Disk %s is locked. Please try again in a few minutes.", d.alias)
	}
	if err := c.e.editDisk(c, d, c.body); err != nil {
		return nil, err
	}
	return accepted(d.node(c.e, true))
}

func (e *Engine) editDisk(c *call, d *disk, b *node) error {
	size, err := b.integer(d.size, "provisioned_size")
	if err != nil {
		return err
	}
	switch mode := b.str("backup"); {
	case mode == "incremental" && d.active.format != "cow":
		return conflict("Cannot edit Virtual Disk. Incremental backup is not supported for a RAW disk.")
	case mode != "" && mode != "incremental" && mode != "none":
		return badRequest("Invalid value for backup: %s", mode)
	case mode != "":
		d.incremental = mode == "incremental"
	}
	for _, name := range []string{"name", "alias"} {
		if s := b.str(name); s != "" {
			d.alias = s
		}
	}
	if b.has("description") {
		d.description = b.str("description")
	}
	if size == d.size {
		return nil
	}
	if size < d.size || size%512 != 0 {
		return conflict("Cannot edit Virtual Disk. New disk size must be larger than the current disk size.")
	}
	for _, v := range e.owners(d) {
		if v.activeBackup() != nil {
			return conflict("Cannot edit Virtual Disk. The VM is during a backup operation.")
		}
	}
	e.extend(c, d, size)
	return nil
}

// extend makes a disk larger.
func (e *Engine) extend(c *call, d *disk, size int64) {
	j := e.startJob(c.correlation, "Extending disk "+d.alias)
	d.status = diskLocked
	e.later(e.cfg.Pace, func() {
		e.work(func(ctx context.Context) error {
			if !d.stored.Load() {
				return nil
			}
			s, err := e.storage(ctx)
			if err != nil {
				return err
			}
			return s.Resize(ctx, d.id, size)
		}, func(err error) {
			if d.status = diskOK; err == nil {
				d.size = size
			}
			e.endJob(j, err == nil)
		})
	})
}

// removeDisk removes a disk from everywhere.
func removeDisk(c *call, d *disk) (*reply, error) {
	if err := c.e.removeDisk(c, d); err != nil {
		return nil, err
	}
	return gone()
}

func (e *Engine) removeDisk(c *call, d *disk) error {
	if d.status == diskLocked {
		return conflict("Cannot remove Virtual Disk. Disk %s is locked. Please try again in a few minutes.", d.alias)
	}
	for _, a := range e.uses(d) {
		switch {
		case a.vm.status != vmDown && a.active:
			return conflict("Cannot remove Virtual Disk. At least one of the VMs it is attached to is not down: %s.", a.vm.name)
		case a.vm.busy != "" || a.vm.status == vmLocked:
			return conflict("Cannot remove Virtual Disk. VM %s is locked.", a.vm.name)
		case a.snapshot != "":
			return conflict("Cannot remove Virtual Disk. A snapshot of it is attached to VM %s.", a.vm.name)
		}
	}
	j := e.startJob(c.correlation, "Removing disk "+d.alias)
	d.status = diskLocked
	e.later(e.cfg.Pace, func() {
		for _, a := range e.uses(d) {
			a.vm.attached.remove(d.id)
		}
		e.dropDisk(d)
		e.audit(&event{code: 2014, severity: "normal", text: "Disk " + d.alias + " was successfully removed.", correlation: c.correlation})
		e.endJob(j, true)
	})
	return nil
}

// dropDisk forgets a disk and deletes what the storage has of it. Snapshots lose it, too.
func (e *Engine) dropDisk(d *disk) {
	e.disks.remove(d.id)
	for _, v := range e.vms.all() {
		for _, s := range v.snapshots.all() {
			delete(s.disks, d.id)
		}
	}
	e.work(func(ctx context.Context) error {
		if !d.stored.Load() {
			return nil
		}
		s, err := e.storage(ctx)
		if err != nil {
			return err
		}
		return s.DeleteDisk(ctx, d.id)
	}, func(error) {})
}

// convertDisk changes the format of a disk of a VM that is down.
func convertDisk(c *call, d *disk) (*reply, error) {
	format := c.body.str("disk", "format")
	switch {
	case format != "cow" && format != "raw":
		return nil, incomplete("Action", "disk.format", "convert")
	case d.status != diskOK || slices.ContainsFunc(c.e.uses(d), func(a *attachment) bool { return a.vm.status != vmDown }):
		return nil, conflict("Cannot convert disk. The disk is locked or its VM is not down.")
	case c.e.frozenVolumes(d) > 0:
		return nil, conflict("Cannot convert disk. The disk has snapshots.")
	case d.active.format == format:
		return nil, conflict("Cannot convert disk. The disk has this format already.")
	}
	sparse, err := c.body.boolean(d.active.sparse, "disk", "sparse")
	if err != nil {
		return nil, err
	}
	e, j := c.e, c.e.startJob(c.correlation, "Converting disk "+d.alias)
	d.status = diskLocked
	next := volume{e.newID(), format, sparse}
	e.later(e.cfg.Pace, func() {
		e.work(func(ctx context.Context) error { return e.rewrite(ctx, d, next) }, func(err error) {
			if d.status = diskOK; err == nil {
				d.active = next
			}
			e.endJob(j, err == nil)
		})
	})
	return done()
}

// frozenVolumes counts the snapshots that a disk is in.
func (e *Engine) frozenVolumes(d *disk) (n int) {
	for _, v := range e.vms.all() {
		for _, s := range v.snapshots.all() {
			if _, in := s.disks[d.id]; in && s.kind != snapshotActive {
				n++
			}
		}
	}
	return n
}

// spec is what the storage makes of a disk.
func (d *disk) spec(v volume) storage.DiskSpec {
	return storage.DiskSpec{ID: d.id, Volume: v.id, SizeBytes: d.size, Format: storage.Format(v.format), Preallocated: v.format == "raw" && !v.sparse}
}
