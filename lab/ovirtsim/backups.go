package ovirtsim

import (
	"context"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/ovirtsim/storage"
)

// The phases of backups.
const (
	backupInitializing = "initializing"
	backupStarting     = "starting"
	backupReady        = "ready"
	backupFinalizing   = "finalizing"
	backupSucceeded    = "succeeded"
	backupFailed       = "failed"
)

// backup is a backup of a VM under way, or one that has ended not long ago.
type backup struct {
	id, description, phase string

	vm          *vm
	from, to    string // checkpoints
	made        time.Time
	disks       []*disk
	mode        map[string]string // by disk, once it is ready
	running     *storage.Backup
	locked      bool      // its disks are
	unwatched   bool      // the engine was restarted while it was starting: it fails
	auto        *snapshot // what a hybrid backup reads
	correlation string
	job         *job
}

// has says whether a disk is in a backup, which may be nil.
func (b *backup) has(d *disk) bool { return b != nil && slices.Contains(b.disks, d) }

func (b *backup) over() bool { return b.phase == backupSucceeded || b.phase == backupFailed }

// activeBackup returns the backup that is under way, or nil.
func (v *vm) activeBackup() *backup {
	b, _ := v.backups.find(func(b *backup) bool { return !b.over() })
	return b
}

func backupRoutes() []route {
	one := func(do func(c *call, b *backup) (*reply, error)) handler {
		return withVM(func(c *call, v *vm) (*reply, error) {
			b, found := v.backups.get(c.vars["backup"])
			if !found {
				return nil, notFound("VmBackup", c.vars["backup"])
			}
			return do(c, b)
		})
	}
	return []route{
		get("/vms/:vm/backups", withVM(func(c *call, v *vm) (*reply, error) {
			var out []*node
			for _, b := range v.backups.all() {
				out = append(out, b.node())
			}
			return c.plain("backups", out)
		})),
		get("/vms/:vm/backups/:backup", one(func(_ *call, b *backup) (*reply, error) { return ok(b.node()) })),
		get("/vms/:vm/backups/:backup/disks", one(func(c *call, b *backup) (*reply, error) {
			var out []*node
			for _, d := range b.disks {
				n := d.node(c.e, false)
				n.add(some("backup_mode", b.mode[d.id]))
				out = append(out, n)
			}
			return c.plain("disks", out)
		})),
		post("/vms/:vm/backups", "backup_disk", withVM(addBackup)),
		post("/vms/:vm/backups/:backup/finalize", "backup_disk", one(finalizeBackup)),
	}
}

func (b *backup) node() *node {
	href := "/vms/" + b.vm.id + "/backups/" + b.id
	n := el("backup", self(href, b.id), txt("description", b.description), actions(href, "finalize"), links(href, "disks"), when("creation_date", b.made),
		some("from_checkpoint_id", b.from), txt("phase", b.phase), ref("vm", "vms", b.vm.id))
	if b.phase != backupInitializing && b.phase != backupStarting {
		n.add(some("to_checkpoint_id", b.to))
	}
	if b.vm.host != nil {
		n.add(ref("host", "hosts", b.vm.host.id))
	}
	return n
}

// descriptionMax is how long a backup's description may be.
const descriptionMax = 1024

// addBackup is POST /vms/:vm/backups.
func addBackup(c *call, v *vm) (*reply, error) {
	consistent, err := c.flag("require_consistency", false)
	if err != nil {
		return nil, err
	}
	live, err := c.flag("use_active", false)
	if err != nil {
		return nil, err
	}
	b := &backup{id: c.body.attr("id"), description: c.body.str("description"), phase: backupInitializing, vm: v, made: c.e.clock.Now(),
		from: c.body.str("from_checkpoint_id"), mode: map[string]string{}, correlation: c.correlation}
	if b.id == "" {
		b.id = c.e.newID()
	}
	if err := c.e.checkBackup(c, b); err != nil {
		return nil, err
	}
	if consistent && v.runs() && !v.agent {
		return nil, conflict("Cannot backup VM. The guest's file systems cannot be frozen, and consistency is required.")
	}
	hybrid := !live && atLeast(v.cluster.level, "4.7") && v.status == vmUp
	if slices.ContainsFunc(b.disks, func(d *disk) bool { return d.active.format == "cow" }) || hybrid {
		b.to = c.e.newID()
	}
	b.job = c.e.startJob(c.correlation, "Creating Backup of VM "+v.name)
	v.backups.add(b.id, b)
	c.e.later(c.e.cfg.Pace, func() { c.e.startBackup(b, hybrid, consistent) })
	return accepted(b.node())
}

// checkBackup says what the engine refuses.
func (e *Engine) checkBackup(c *call, b *backup) error {
	const cannot = "Cannot backup VM"
	v := b.vm
	if _, dup := v.backups.get(b.id); dup || !isID(b.id) {
		return conflict(cannot+". A backup with the same id exists already, or the id is malformed: %s", b.id)
	}
	if len(b.description) > descriptionMax {
		return conflict(cannot+". The description is longer than %d characters.", descriptionMax)
	}
	list := c.body.child("disks").children("disk")
	if len(list) == 0 {
		return incomplete("Backup", "disks", "add")
	}
	for _, k := range list {
		d, err := e.disk(k.attr("id"))
		if err != nil {
			return err
		}
		a, attached := v.attached.get(d.id)
		switch {
		case !attached || a.snapshot != "":
			return conflict(cannot+". Disk %s is not attached to the VM.", d.alias)
		case !a.active:
			return conflict(cannot+". Disk %s is not active.", d.alias)
		case d.lun || d.shareable:
			return conflict(cannot+". Disk %s is shareable or a direct LUN.", d.alias)
		}
		b.disks = append(b.disks, d)
	}
	if !atLeast(v.cluster.level, "4.5") {
		return conflict(cannot+". Incremental backup is not supported for cluster level %s.", v.cluster.level)
	}
	if v.activeBackup() != nil {
		return conflict(cannot + ". The VM is already during a backup operation.")
	}
	if err := e.mayFreeze(v, b.disks, "backup VM"); err != nil {
		return err
	}
	return e.checkFrom(b)
}

// checkFrom looks at the checkpoint that a backup starts from.
func (e *Engine) checkFrom(b *backup) error {
	if b.from == "" {
		return nil
	}
	cp, found := b.vm.checkpoints.get(b.from)
	if !found {
		return conflict("Cannot backup VM. The checkpoint %s does not exist.", b.from)
	}
	if e.strikes(CheckpointInvalid, b.vm.id, b.vm.name) {
		cp.invalid = true
	}
	if cp.invalid {
		return conflict("Cannot backup VM. The checkpoint %s is invalid.", b.from)
	}
	return nil
}

// startBackup goes on after the first phase. The caller holds mu.
func (e *Engine) startBackup(b *backup, hybrid, consistent bool) {
	if b.phase != backupInitializing {
		return // the engine was restarted meanwhile
	}
	b.phase = backupStarting
	if b.to != "" && !hybrid {
		b.addCheckpoint(e.clock.Now())
	}
	if e.strikes(BackupFails, b.vm.id, b.vm.name) {
		e.failBackup(b)
		return
	}
	if !hybrid {
		b.lock(diskLocked)
		e.later(e.cfg.Pace, func() { e.freezeBackup(b, consistent) })
		return
	}
	m := e.beginSnapshot(b.vm, b.disks, "Auto-generated for Backup VM", b.correlation)
	b.auto = m.new
	e.runSnapshot(m, func(made bool) {
		if !made {
			b.auto = nil
			e.failBackup(b)
			return
		}
		e.freezeBackup(b, consistent)
	})
}

// freezeBackup takes the instant that a backup shows.
func (e *Engine) freezeBackup(b *backup, consistent bool) {
	quiesced := b.vm.runs() && b.vm.agent && !e.strikes(FreezeFails, b.vm.id, b.vm.name)
	if b.unwatched || consistent && b.vm.runs() && !quiesced {
		e.failBackup(b)
		return
	}
	lost := map[string]bool{}
	for _, d := range b.disks {
		lost[d.id] = b.from != "" && e.strikes(CheckpointLost, d.id, d.alias, b.vm.id, b.vm.name)
	}
	e.work(func(ctx context.Context) error { return e.beginBackup(ctx, b, lost, quiesced) }, func(err error) {
		switch {
		case err != nil:
			if fault.KindOf(err) == fault.Conflict {
				e.invalidate(b)
			}
			e.failBackup(b)
		case b.unwatched:
			e.failBackup(b)
		default:
			e.backupIsReady(b)
		}
	})
}

// beginBackup freezes the disks in the storage.
func (e *Engine) beginBackup(ctx context.Context, b *backup, lost map[string]bool, quiesced bool) error {
	if err := e.fill(ctx, b.vm); err != nil {
		return err
	}
	s, err := e.stored(ctx, b.disks...)
	if err != nil {
		return err
	}
	spec := storage.BackupSpec{ID: b.id, Checkpoint: b.to}
	for _, d := range b.disks {
		x := storage.BackupDisk{ID: d.id}
		if b.from != "" && !lost[d.id] {
			have, err := s.Checkpoints(ctx, d.id)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(have, func(c storage.Checkpoint) bool { return c.Name == b.from }) {
				x.From = b.from
			}
		}
		spec.Disks = append(spec.Disks, x)
	}
	if quiesced {
		defer e.quiesce(b.vm)()
	}
	running, err := s.StartBackup(ctx, spec)
	if err == nil {
		err = e.tellBackup(ctx, b, running)
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b.running = running
	return nil
}

func (e *Engine) backupIsReady(b *backup) {
	b.phase = backupReady
	for _, d := range b.disks {
		b.mode[d.id] = "full"
		if b.running.Incremental(d.id) {
			b.mode[d.id] = "incremental"
		}
	}
	if _, there := b.vm.checkpoints.get(b.to); !there && b.to != "" {
		b.addCheckpoint(e.clock.Now())
	}
}

// addCheckpoint makes the backup's checkpoint, which is shown before the backup is ready, unless it is a hybrid one.
func (b *backup) addCheckpoint(now time.Time) {
	cp := &checkpoint{id: b.to, description: b.description, made: now, parent: b.vm.leaf()}
	for _, d := range b.disks {
		if d.active.format == "cow" {
			cp.disks = append(cp.disks, d)
		}
	}
	b.vm.checkpoints.add(cp.id, cp)
}

// lock gives the backup's disks a status. A live or cold backup has them locked from its start to its end, a hybrid one
// only while its snapshot is made.
func (b *backup) lock(status string) {
	b.locked = status == diskLocked
	for _, d := range b.disks {
		d.status = status
	}
}

// failBackup ends a backup that did not get ready, or that the engine has lost.
func (e *Engine) failBackup(b *backup) {
	if b.phase != backupReady {
		b.vm.checkpoints.remove(b.to)
	}
	b.phase = backupFailed
	e.audit(&event{code: 10791, severity: "error", text: "Failed to backup VM " + b.vm.name + ".", correlation: b.correlation, vm: b.vm.id})
	e.endJob(b.job, false)
	e.endStorageBackup(b, func(error) { e.purgeBackup(b, 30*time.Minute) })
}

// invalidate marks a checkpoint that the storage cannot use any more.
func (e *Engine) invalidate(b *backup) {
	if cp, found := b.vm.checkpoints.get(b.from); found {
		cp.invalid = true
	}
}

// endStorageBackup ends what the storage has of a backup, and merges the snapshot that was made for it.
func (e *Engine) endStorageBackup(b *backup, then func(error)) {
	running, auto := b.running, b.auto
	b.running, b.auto = nil, nil
	e.work(func(ctx context.Context) error {
		if running == nil {
			return nil
		}
		return running.Stop(context.WithoutCancel(ctx))
	}, func(err error) {
		if b.locked {
			b.lock(diskOK)
		}
		if auto == nil || err != nil {
			then(err)
			return
		}
		e.merge(b.vm, auto, b.disks, b.correlation, func(done bool) {
			if !done {
				err = errInjected
			}
			then(err)
		})
	})
}

// purgeBackup forgets a backup that has ended, after a while, and the modes of its disks at once.
func (e *Engine) purgeBackup(b *backup, keep time.Duration) {
	clear(b.mode)
	if e.strikes(BackupPurged, b.vm.id, b.vm.name) {
		b.vm.backups.remove(b.id)
		return
	}
	e.later(keep, func() { b.vm.backups.remove(b.id) })
}

// finalizeBackup is POST /vms/:vm/backups/:backup/finalize.
func finalizeBackup(c *call, b *backup) (*reply, error) {
	e := c.e
	if b.phase != backupReady {
		return nil, conflict("Cannot finalize backup. The backup is not in the phase ready: %s.", b.phase)
	}
	for _, t := range e.transfers.all() {
		if t.backup == b && !t.over() {
			e.happens(BackupBusy)
			return nil, conflict("Cannot finalize backup. Image transfer %s of it is in progress.", t.id)
		}
	}
	b.phase = backupFinalizing
	e.later(e.cfg.Pace, func() {
		e.endStorageBackup(b, func(err error) {
			if err != nil {
				b.phase = backupFailed
				e.endJob(b.job, false)
				e.purgeBackup(b, 30*time.Minute)
				return
			}
			b.phase = backupSucceeded
			e.audit(&event{code: 10793, severity: "normal", text: "Backup " + b.id + " for VM " + b.vm.name + " finalized.", correlation: b.correlation, vm: b.vm.id})
			e.endJob(b.job, true)
			e.purgeBackup(b, 15*time.Minute)
		})
	})
	return done()
}

// checkpoint is a mark in the change history of a VM's disks.
type checkpoint struct {
	id, description, parent string

	made    time.Time
	invalid bool
	disks   []*disk
}

// leaf is the id of the newest checkpoint, "" if there is none.
func (v *vm) leaf() (id string) {
	for id = range v.checkpoints.all() {
		continue
	}
	return id
}

func checkpointRoutes() []route {
	one := func(do func(c *call, v *vm, cp *checkpoint) (*reply, error)) handler {
		return withVM(func(c *call, v *vm) (*reply, error) {
			cp, found := v.checkpoints.get(c.vars["checkpoint"])
			if !found {
				return nil, notFound("VmCheckpoint", c.vars["checkpoint"])
			}
			return do(c, v, cp)
		})
	}
	return []route{
		get("/vms/:vm/checkpoints", withVM(func(c *call, v *vm) (*reply, error) {
			var out []*node
			for _, cp := range v.checkpoints.all() {
				out = append(out, cp.node(v))
			}
			return c.plain("checkpoints", out)
		})),
		get("/vms/:vm/checkpoints/:checkpoint", one(func(_ *call, v *vm, cp *checkpoint) (*reply, error) { return ok(cp.node(v)) })),
		get("/vms/:vm/checkpoints/:checkpoint/disks", one(func(c *call, _ *vm, cp *checkpoint) (*reply, error) {
			var out []*node
			for _, d := range cp.disks {
				out = append(out, d.node(c.e, false))
			}
			return c.plain("disks", out)
		})),
		del("/vms/:vm/checkpoints/:checkpoint", "backup_disk", one(removeCheckpoint)),
	}
}

func (cp *checkpoint) node(v *vm) *node {
	href := "/vms/" + v.id + "/checkpoints/" + cp.id
	state := "created"
	if cp.invalid {
		state = "invalid"
	}
	return el("checkpoint", self(href, cp.id), txt("description", cp.description), links(href, "disks"), when("creation_date", cp.made), some("parent_id", cp.parent), txt("state", state), ref("vm", "vms", v.id))
}

// removeCheckpoint removes a checkpoint. Engines before 4.5 remove the oldest one only.
func removeCheckpoint(c *call, v *vm, cp *checkpoint) (*reply, error) {
	e := c.e
	if v.activeBackup() != nil {
		return nil, conflict("Cannot remove checkpoint. The VM is during a backup operation.")
	}
	for id := range v.checkpoints.all() {
		if id != cp.id && !atLeast(e.cfg.Version, "4.5") {
			return nil, conflict("Cannot remove checkpoint. Only the root checkpoint of the chain, %s, can be removed.", id)
		}
		break
	}
	if err := v.free("remove checkpoint"); err != nil {
		return nil, err
	}
	j := e.startJob(c.correlation, "Removing a checkpoint of VM "+v.name)
	v.busy = "a checkpoint is being removed"
	e.later(e.cfg.Pace, func() {
		e.work(func(ctx context.Context) error { return e.dropBitmaps(ctx, cp) }, func(err error) {
			if v.busy = ""; err == nil {
				v.checkpoints.remove(cp.id)
				for _, other := range v.checkpoints.all() {
					if other.parent == cp.id {
						other.parent = cp.parent
					}
				}
			}
			e.endJob(j, err == nil)
		})
	})
	return gone()
}

func (e *Engine) dropBitmaps(ctx context.Context, cp *checkpoint) error {
	s, err := e.storage(ctx)
	if err != nil {
		return err
	}
	for _, d := range cp.disks {
		if err := s.DeleteCheckpoint(ctx, d.id, cp.id); err != nil && fault.KindOf(err) != fault.NotFound {
			return err
		}
	}
	return nil
}
