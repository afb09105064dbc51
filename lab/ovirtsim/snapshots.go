package ovirtsim

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/lab/ovirtsim/storage"
)

// The states and types of snapshots.
const (
	snapshotOK      = "ok"
	snapshotLocked  = "locked"
	snapshotActive  = "active"
	snapshotRegular = "regular"
)

// snapshot is a state of a VM. The newest one is the active one, in which the disks' volumes are those that are written.
type snapshot struct {
	id, description, kind, status string

	made   time.Time
	memory bool
	disks  map[string]volume // by disk; of the active one it is the disks' own
	ovf    string
	parts  []part // the VM's settings
}

func snapshotRoutes() []route {
	one := func(do func(c *call, v *vm, s *snapshot) (*reply, error)) handler {
		return withVM(func(c *call, v *vm) (*reply, error) {
			s, found := v.snapshots.get(c.vars["snapshot"])
			if !found {
				return nil, notFound("Snapshot", c.vars["snapshot"])
			}
			return do(c, v, s)
		})
	}
	return []route{
		get("/vms/:vm/snapshots", withVM(func(c *call, v *vm) (*reply, error) {
			full, err := c.flag("all_content", false)
			if err != nil {
				return nil, err
			}
			var out []*node
			for _, s := range v.snapshots.all() {
				out = append(out, s.node(c.e, v, full))
			}
			return c.plain("snapshots", out)
		})),
		get("/vms/:vm/snapshots/:snapshot", one(func(c *call, v *vm, s *snapshot) (*reply, error) {
			full, err := c.flag("all_content", false)
			if err != nil {
				return nil, err
			}
			return ok(s.node(c.e, v, full))
		})),
		get("/vms/:vm/snapshots/:snapshot/disks", one(func(c *call, v *vm, s *snapshot) (*reply, error) {
			return c.plain("disks", c.e.snapshotDisks(v, s))
		})),
		get("/vms/:vm/snapshots/:snapshot/nics", one(func(c *call, v *vm, _ *snapshot) (*reply, error) {
			var out []*node
			for _, n := range v.nics.all() {
				out = append(out, n.node(v))
			}
			return c.plain("nics", out)
		})),
		post("/vms/:vm/snapshots", "manipulate_vm_snapshots", withVM(addSnapshot)),
		del("/vms/:vm/snapshots/:snapshot", "manipulate_vm_snapshots", one(removeSnapshot)),
	}
}

func (s *snapshot) node(e *Engine, v *vm, full bool) *node {
	href := "/vms/" + v.id + "/snapshots/" + s.id
	n := el("snapshot", self(href, s.id), txt("description", s.description), actions(href, "restore"), links(href, "cdroms", "disks", "nics"),
		when("date", s.made), flag("persist_memorystate", s.memory), txt("snapshot_status", s.status), txt("snapshot_type", s.kind), ref("vm", "vms", v.id))
	if s.kind == snapshotActive {
		return n
	}
	n.add(txt("name", v.name), ref("cluster", "clusters", v.cluster.id))
	n.add(s.parts...)
	if full {
		n.add(sub("initialization", sub("configuration", txt("data", s.ovf), txt("type", "ovf"))))
	}
	return n
}

// snapshotDisks are disks as they are in a snapshot.
func (e *Engine) snapshotDisks(v *vm, s *snapshot) (out []*node) {
	for _, d := range e.disks.all() {
		layer, in := s.disks[d.id]
		if s.kind == snapshotActive {
			a, attached := v.attached.get(d.id)
			layer, in = d.active, attached && a.snapshot == "" && !d.lun
		}
		if !in {
			continue
		}
		status := diskOK
		if s.status == snapshotLocked {
			status = diskLocked
		}
		n := el("disk", self("/vms/"+v.id+"/snapshots/"+s.id+"/disks/"+d.id, d.id), txt("name", d.alias), txt("alias", d.alias), num("actual_size", d.totalSize()),
			txt("content_type", d.content), txt("format", layer.format), txt("image_id", layer.id), num("provisioned_size", d.size), flag("sparse", layer.sparse),
			txt("status", status), txt("storage_type", "image"), sub("storage_domains", ref("storage_domain", "storagedomains", d.domain.id)),
			sub("snapshot", self("/vms/"+v.id+"/snapshots/"+s.id, s.id)))
		out = append(out, n)
	}
	return out
}

// listDiskSnapshots is GET /storagedomains/:sd/disksnapshots.
func listDiskSnapshots(c *call, sd *domain) (*reply, error) {
	active, err := c.flag("include_active", false)
	if err != nil {
		return nil, err
	}
	var out []*node
	for _, v := range c.e.vms.all() {
		for _, d := range c.e.disks.all() {
			if d.domain == sd {
				out = append(out, diskSnapshots(v, d, sd, active)...)
			}
		}
	}
	return c.plain("disk_snapshots", out)
}

// diskSnapshots are the volumes of a VM's disk, each with the one below it.
func diskSnapshots(v *vm, d *disk, sd *domain, active bool) (out []*node) {
	parent := ""
	add := func(s *snapshot, layer volume) {
		href := "/storagedomains/" + sd.id + "/disksnapshots/" + layer.id
		n := el("disk_snapshot", self(href, layer.id), txt("alias", d.alias), num("actual_size", d.totalSize()), txt("content_type", d.content), txt("description", s.description),
			txt("format", layer.format), txt("image_id", layer.id), num("provisioned_size", d.size), flag("sparse", layer.sparse), txt("status", diskOK), txt("storage_type", "image"),
			ref("disk", "disks", d.id), sub("snapshot", self("/vms/"+v.id+"/snapshots/"+s.id, s.id)), sub("storage_domain", self("/storagedomains/"+sd.id, sd.id)))
		if parent != "" {
			n.add(sub("parent", self("/storagedomains/"+sd.id+"/disksnapshots/"+parent, parent)))
		}
		parent, out = layer.id, append(out, n)
	}
	for _, s := range v.snapshots.all() {
		if layer, in := s.disks[d.id]; in && s.kind != snapshotActive {
			add(s, layer)
		}
	}
	if a, attached := v.attached.get(d.id); attached && a.snapshot == "" && active {
		add(v.active(), d.active)
	}
	return out
}

// active is the snapshot that is written.
func (v *vm) active() *snapshot {
	s, _ := v.snapshots.find(func(s *snapshot) bool { return s.kind == snapshotActive })
	return s
}

func (e *Engine) snapshotByID(id string) *snapshot {
	for _, v := range e.vms.all() {
		if s, ok := v.snapshots.get(id); ok {
			return s
		}
	}
	return nil
}

// snapshotable are a VM's disks that a snapshot can have.
func (v *vm) snapshotable() (out []*disk) {
	for _, a := range v.attached.all() {
		if a.snapshot == "" && !a.disk.lun && !a.disk.shareable && !a.readOnly {
			out = append(out, a.disk)
		}
	}
	return out
}

// addSnapshot is POST /vms/:vm/snapshots.
func addSnapshot(c *call, v *vm) (*reply, error) {
	if c.body.str("description") == "" {
		return nil, incomplete("Snapshot", "description", "add")
	}
	memory, err := c.body.boolean(true, "persist_memorystate")
	if err != nil {
		return nil, err
	}
	disks, err := c.e.chosenDisks(c.body, v)
	if err != nil {
		return nil, err
	}
	if err := c.e.mayFreeze(v, disks, "create Snapshot"); err != nil {
		return nil, err
	}
	m := c.e.beginSnapshot(v, disks, c.body.str("description"), c.correlation)
	m.new.memory = memory && v.runs()
	c.e.runSnapshot(m, func(bool) {})
	return accepted(m.new.node(c.e, v, false))
}

// chosenDisks are those that a request names: all that can be when it names none, none when its list is empty.
func (e *Engine) chosenDisks(b *node, v *vm) ([]*disk, error) {
	all := v.snapshotable()
	if !b.has("disk_attachments") {
		return all, nil
	}
	var out []*disk
	for _, k := range b.child("disk_attachments").children("disk_attachment") {
		id := k.id("disk")
		if id == "" {
			id = k.attr("id")
		}
		d, err := e.disk(id)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(all, d) {
			return nil, conflict("Cannot create Snapshot. The disk %s cannot be snapshotted: it is shareable, a direct LUN, read-only, or not of this VM.", d.alias)
		}
		out = append(out, d)
	}
	return out, nil
}

// mayFreeze says what the engine refuses of snapshots and backups alike.
func (e *Engine) mayFreeze(v *vm, disks []*disk, doing string) error {
	if err := v.free(doing); err != nil {
		return err
	}
	switch {
	case v.status != vmDown && !v.runs():
		return conflict("Cannot %s. VM status is illegal: %s.", doing, v.status)
	case v.activeBackup() != nil:
		return conflict("Cannot %s. The VM is during a backup operation.", doing)
	}
	for _, s := range v.snapshots.all() {
		if s.status != snapshotOK {
			return conflict("Cannot %s. The VM is performing an operation on a Snapshot. Please wait for the operation to finish, and try again.", doing)
		}
	}
	for _, d := range disks {
		switch d.status {
		case diskLocked:
			return conflict("Cannot %s. The following disks are locked: %s. Please try again in a few minutes.", doing, d.alias)
		case diskIllegal:
			return conflict("Cannot %s. The following disks are illegal: %s.", doing, d.alias)
		}
	}
	return nil
}

// making is a snapshot that is being made.
type making struct {
	vm          *vm
	new, active *snapshot // new has the id that the active one had
	was         string    // the active one's description
	disks       []*disk
	layers      map[string]volume // the new ones
	job         *job
	correlation string
}

// beginSnapshot locks what it needs. The new snapshot takes over the id of the active one, which gets another.
func (e *Engine) beginSnapshot(v *vm, disks []*disk, description, correlation string) *making {
	old := v.active()
	m := &making{vm: v, new: old, was: old.description, disks: disks, layers: map[string]volume{}, correlation: correlation}
	m.active = &snapshot{id: e.newID(), description: m.was, kind: snapshotActive, status: snapshotOK, made: e.clock.Now(), disks: map[string]volume{}}
	v.snapshots.add(m.active.id, m.active)
	old.kind, old.status, old.description, old.made = snapshotRegular, snapshotLocked, description, e.clock.Now()
	old.disks = map[string]volume{}
	for _, d := range disks {
		old.disks[d.id], m.layers[d.id] = d.active, volume{e.newID(), "cow", true}
		d.status = diskLocked
	}
	old.parts, old.ovf = v.settings(), e.ovf(v, old)
	v.busy = "a snapshot is being created"
	if v.status == vmDown {
		v.status = vmLocked
	}
	m.job = e.startJob(correlation, "Creating VM Snapshot "+description+" for VM "+v.name)
	return m
}

// runSnapshot makes it. then is called under the lock, with whether it was made.
func (e *Engine) runSnapshot(m *making, then func(made bool)) {
	v, wait := m.vm, e.cfg.Pace
	if m.new.memory {
		v.status, wait = "saving_state", 10*wait
	}
	finish := func(err error) {
		if e.endSnapshot(m, err == nil); err == nil {
			e.refreshSizes(m.disks)
		}
		then(err == nil)
	}
	step := func() {
		if e.strikes(SnapshotFails, v.id, v.name) {
			finish(errInjected)
			return
		}
		quiesced := v.runs() && v.agent && !m.new.memory && !e.strikes(FreezeFails, v.id, v.name)
		if v.runs() && !quiesced && !m.new.memory {
			if !v.agent {
				e.happens(FreezeFails)
			}
			e.audit(&event{code: failedToFreeze, severity: "warning", text: "Failed to freeze guest filesystems on VM " + v.name +
				". Note that using the created snapshot might cause data inconsistency.", correlation: m.correlation, vm: v.id})
		}
		var layers []storage.NewVolume
		for _, d := range m.disks {
			layers = append(layers, storage.NewVolume{Disk: d.id, Volume: m.layers[d.id].id})
		}
		e.work(func(ctx context.Context) error {
			if err := e.freezeDisks(ctx, v, m.disks, layers, quiesced); err != nil {
				return err
			}
			return e.tellSnapshot(ctx, m)
		}, finish)
	}
	e.later(wait, func() {
		if e.strikes(SnapshotHangs, v.id, v.name) {
			e.hanging = append(e.hanging, step)
			return
		}
		step()
	})
}

// endSnapshot unlocks all, and undoes what was begun if nothing came of it.
func (e *Engine) endSnapshot(m *making, made bool) {
	v := m.vm
	v.busy = ""
	switch v.status {
	case vmLocked:
		v.status = vmDown
	case "saving_state":
		v.status = vmUp
	}
	for _, d := range m.disks {
		if d.status = diskOK; made {
			d.active = m.layers[d.id]
		}
	}
	if made {
		m.new.status = snapshotOK
		e.audit(&event{code: snapshotMade, severity: "normal", text: "Snapshot '" + m.new.description + "' creation for VM '" + v.name + "' has been completed.", correlation: m.correlation, vm: v.id})
	} else {
		e.audit(&event{code: snapshotFailed, severity: "error", text: "Failed to complete snapshot '" + m.new.description + "' creation for VM '" + v.name + "'.", correlation: m.correlation, vm: v.id})
		v.snapshots.remove(m.active.id)
		m.new.kind, m.new.status, m.new.description, m.new.memory = snapshotActive, snapshotOK, m.was, false
		m.new.disks = map[string]volume{}
	}
	e.endJob(m.job, made)
}

// removeSnapshot is DELETE /vms/:vm/snapshots/:snapshot.
func removeSnapshot(c *call, v *vm, s *snapshot) (*reply, error) {
	e := c.e
	if e.strikes(SnapshotRemoveBusy, v.id, v.name) {
		return nil, conflict("Cannot remove Snapshot. VM %s is locked: a snapshot is being removed. Please try again in a few minutes.", v.name)
	}
	if strings.HasSuffix(v.busy, "being removed") {
		e.happens(SnapshotRemoveBusy)
	}
	if err := v.free("remove Snapshot"); err != nil {
		return nil, err
	}
	if s.kind != snapshotRegular {
		return nil, conflict("Cannot remove Snapshot. Removing the VM active Snapshot is not allowed.")
	}
	var disks []*disk
	for id := range s.disks {
		if d, there := e.disks.get(id); there {
			disks = append(disks, d)
		}
	}
	if err := e.mayFreeze(v, disks, "remove Snapshot"); err != nil {
		return nil, err
	}
	if err := e.mayMerge(v, s, disks); err != nil {
		return nil, err
	}
	e.merge(v, s, disks, c.correlation, func(bool) {})
	return gone()
}

func (e *Engine) mayMerge(v *vm, s *snapshot, disks []*disk) error {
	for _, d := range disks {
		for _, a := range e.uses(d) {
			switch {
			case a.snapshot == s.id:
				return conflict("Cannot remove Snapshot. The following disks are attached to other VMs: %s (VM %s).", d.alias, a.vm.name)
			case a.vm == v && v.runs() && !a.active:
				return conflict("Cannot remove Snapshot. Live merge is not possible while disk %s is inactive.", d.alias)
			}
		}
		if t := e.transferOf(s.disks[d.id].id); t != nil {
			return conflict("Cannot remove Snapshot. The snapshot of disk %s is being transferred.", d.alias)
		}
	}
	return nil
}

// merge removes a snapshot disk by disk: what lies above each of its volumes is merged into it.
func (e *Engine) merge(v *vm, s *snapshot, disks []*disk, correlation string, then func(done bool)) {
	job := e.startJob(correlation, "Removing Snapshot "+s.description+" of VM "+v.name)
	v.busy, s.status = "a snapshot is being removed", snapshotLocked
	if v.status == vmDown {
		v.status = vmLocked
	}
	for _, d := range disks {
		d.status = diskLocked
	}
	finish := func(err error) {
		v.busy = ""
		if v.status == vmLocked {
			v.status = vmDown
		}
		for _, d := range disks {
			d.status = diskOK
		}
		if err != nil {
			s.status = snapshotOK
			e.audit(&event{code: snapshotNotRemoved, severity: "error", text: "Failed to delete snapshot '" + s.description + "' for VM '" + v.name + "'.", correlation: correlation, vm: v.id})
		} else {
			v.snapshots.remove(s.id)
			e.refreshSizes(disks)
			e.audit(&event{code: snapshotRemoved, severity: "normal", text: "Snapshot '" + s.description + "' for VM '" + v.name + "' has been deleted.", correlation: correlation, vm: v.id})
		}
		e.endJob(job, err == nil)
		then(err == nil)
	}
	e.later(e.cfg.Pace, func() {
		if e.strikes(SnapshotRemoveFails, v.id, v.name) {
			finish(errInjected)
			return
		}
		e.mergeNext(v, s, disks, finish)
	})
}

// mergeNext merges one disk after the other, as a live merge does.
func (e *Engine) mergeNext(v *vm, s *snapshot, disks []*disk, finish func(error)) {
	if len(disks) == 0 {
		finish(nil)
		return
	}
	d := disks[0]
	layer := s.disks[d.id]
	e.work(func(ctx context.Context) error { return e.mergeDisk(ctx, d, layer) }, func(err error) {
		if err != nil {
			finish(err)
			return
		}
		v.settle(s, d, layer)
		delete(s.disks, d.id) // should one of the others fail, this one is not in the snapshot any more
		e.mergeNext(v, s, disks[1:], finish)
	})
}

// settle gives a merged volume to the snapshot that had the one above it.
func (v *vm) settle(s *snapshot, d *disk, layer volume) {
	below := true
	for _, other := range v.snapshots.all() {
		_, in := other.disks[d.id]
		switch {
		case other == s:
			below = false
		case below:
		case other.kind == snapshotActive:
			d.active = layer
			if layer.format != "cow" {
				d.incremental = false // a raw volume has no changed blocks
			}
			return
		case in:
			other.disks[d.id] = layer
			return
		}
	}
}
