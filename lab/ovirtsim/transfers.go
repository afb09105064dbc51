package ovirtsim

import (
	"context"
	"slices"
	"time"
)

// The phases of transfers.
const (
	transferInitializing = "initializing"
	transferring         = "transferring"
	transferResuming     = "resuming"
	transferPausedUser   = "paused_user"
	transferPausedSystem = "paused_system"
	transferSucceeding   = "finalizing_success"
	transferFailing      = "finalizing_failure"
	transferCleaning     = "finalizing_cleanup"
	transferSucceeded    = "finished_success"
	transferFailed       = "finished_failure"
	transferCleaned      = "finished_cleanup"
)

// transfer is an image transfer.
type transfer struct {
	id, phase                 string
	direction, format, policy string

	disk     *disk
	volume   string // what is read or written; "" is what a backup shows
	snapshot bool   // a snapshot's volume, not the disk's own
	backup   *backup
	host     *host
	inactive int64 // seconds
	ticket   *ticket
	extended time.Time
	moved    int64
	job      *job
}

func (t *transfer) over() bool {
	return slices.Contains([]string{transferSucceeded, transferFailed, transferCleaned}, t.phase)
}

func (t *transfer) upload() bool { return t.direction == "upload" }

func transferRoutes() []route {
	one := func(do func(c *call, t *transfer) (*reply, error)) handler {
		return func(c *call) (*reply, error) {
			t, found := c.e.transfers.get(c.vars["transfer"])
			if !found {
				return nil, notFound("ImageTransfer", c.vars["transfer"])
			}
			return do(c, t)
		}
	}
	action := func(verb string, do func(c *call, t *transfer) error) route {
		return post("/imagetransfers/:transfer/"+verb, "access_image_storage", one(func(c *call, t *transfer) (*reply, error) {
			if err := do(c, t); err != nil {
				return nil, err
			}
			return done()
		}))
	}
	return []route{
		get("/imagetransfers", func(c *call) (*reply, error) {
			var out []*node
			for _, t := range c.e.transfers.all() {
				out = append(out, t.node(c.e))
			}
			return c.plain("image_transfers", out)
		}),
		get("/imagetransfers/:transfer", one(func(c *call, t *transfer) (*reply, error) { return ok(t.node(c.e)) })),
		post("/imagetransfers", "access_image_storage", addTransfer),
		action("finalize", finalizeTransfer), action("cancel", cancelTransfer), action("extend", extendTransfer),
		action("pause", pauseTransfer), action("resume", resumeTransfer),
	}
}

func (t *transfer) node(e *Engine) *node {
	href := "/imagetransfers/" + t.id
	n := el("image_transfer", self(href, t.id), actions(href, "cancel", "extend", "finalize", "pause", "resume"), flag("active", t.ticket != nil), txt("direction", t.direction),
		txt("format", t.format), num("inactivity_timeout", t.inactive), txt("phase", t.phase), flag("shallow", false), txt("timeout_policy", t.policy), num("transferred", t.moved),
		ref("disk", "disks", t.disk.id), sub("image", attr("id", t.disk.id)))
	if t.host != nil {
		n.add(ref("host", "hosts", t.host.id))
	}
	if t.backup != nil {
		n.add(sub("backup", self("/vms/"+t.backup.vm.id+"/backups/"+t.backup.id, t.backup.id)))
	}
	if t.snapshot {
		n.add(sub("snapshot", attr("id", t.volume)))
	}
	if t.ticket != nil && t.phase == transferring {
		n.add(txt("transfer_url", t.ticket.url), txt("proxy_url", t.ticket.proxy))
	}
	return n
}

// transferOf returns the transfer that is under way of a volume, or nil.
func (e *Engine) transferOf(volume string) *transfer {
	t, _ := e.transfers.find(func(t *transfer) bool { return t.volume == volume && volume != "" && !t.over() })
	return t
}

// addTransfer is POST /imagetransfers.
func addTransfer(c *call) (*reply, error) {
	e, b := c.e, c.body
	t := &transfer{id: e.newID(), phase: transferInitializing, direction: b.str("direction"), format: b.str("format"), policy: b.str("timeout_policy")}
	if t.direction == "" {
		t.direction = "upload"
	}
	if t.policy == "" {
		t.policy = "legacy"
	}
	if t.direction != "upload" && t.direction != "download" || !slices.Contains([]string{"legacy", "pause", "cancel"}, t.policy) {
		return nil, badRequest("Invalid value for direction or timeout_policy: %s, %s", t.direction, t.policy)
	}
	var err error
	if t.inactive, err = b.integer(60, "inactivity_timeout"); err != nil {
		return nil, err
	}
	if err := e.chooseImage(b, t); err != nil {
		return nil, err
	}
	if t.format == "" {
		t.format = t.disk.active.format // the engine chooses by the disk
	}
	if err := e.mayTransfer(b, t); err != nil {
		return nil, err
	}
	if err := e.chooseHost(b, t); err != nil {
		return nil, err
	}
	t.job = e.startJob(c.correlation, "Transferring disk "+t.disk.alias+" ("+t.direction+")")
	e.transfers.add(t.id, t)
	if t.locks() {
		t.disk.status = diskLocked
	}
	e.later(e.cfg.Pace, func() { e.beginTransfer(t) })
	return created(t.node(e))
}

// locks says whether a transfer locks the disk itself.
func (t *transfer) locks() bool { return t.backup == nil && !t.snapshot }

// chooseImage finds what is to be transferred: a disk, the volume of a disk's snapshot, or a disk of a backup.
func (e *Engine) chooseImage(b *node, t *transfer) (err error) {
	switch disk, image, volume := b.id("disk"), b.id("image"), b.id("snapshot"); {
	case volume != "":
		if t.disk = e.diskOfVolume(volume); t.disk == nil {
			return notFound("DiskSnapshot", volume)
		}
		t.volume, t.snapshot = volume, true
	case disk != "" || image != "":
		if t.disk, err = e.disk(disk + image); err != nil {
			return err
		}
		t.volume = t.disk.active.id
	default:
		return incomplete("ImageTransfer", "disk|snapshot|image id", "add")
	}
	id := b.id("backup")
	if id == "" {
		return nil
	}
	for _, v := range e.vms.all() {
		if found, ok := v.backups.get(id); ok {
			t.backup, t.volume, t.snapshot = found, "", false
			return nil
		}
	}
	return notFound("VmBackup", id)
}

// diskOfVolume returns the disk in one of whose snapshots a volume is, or nil.
func (e *Engine) diskOfVolume(id string) *disk {
	for _, v := range e.vms.all() {
		for _, s := range v.snapshots.all() {
			for d, layer := range s.disks {
				if layer.id == id && s.kind == snapshotRegular && s.status == snapshotOK {
					found, _ := e.disks.get(d)
					return found
				}
			}
		}
	}
	return nil
}

// mayTransfer says what the engine refuses.
func (e *Engine) mayTransfer(b *node, t *transfer) error {
	const cannot = "Cannot transfer Virtual Disk"
	d := t.disk
	shallow, err := b.boolean(false, "shallow")
	switch {
	case err != nil:
		return err
	case shallow:
		return conflict(cannot + ". This simulator makes no shallow transfers.")
	case d.lun:
		return conflict(cannot + ". Disk is a direct LUN.")
	case t.upload() && (t.snapshot || t.backup != nil):
		return conflict(cannot + ". A snapshot or a backup cannot be uploaded to.")
	}
	if t.backup != nil {
		switch {
		case t.backup.phase != backupReady:
			return conflict(cannot+". The backup is not ready: %s.", t.backup.phase)
		case !t.backup.has(d):
			return conflict(cannot + ". The disk is not in the backup.")
		case t.format != "raw":
			return conflict(cannot + ". The format of a transfer of a backup must be raw.")
		}
		for _, other := range e.transfers.all() {
			if other.backup == t.backup && other.disk == d && !other.over() {
				return conflict(cannot+". Disk %s is being transferred.", d.alias)
			}
		}
		return nil
	}
	if d.status != diskOK {
		return conflict(cannot+". Disk %s is %s. Please try again in a few minutes.", d.alias, d.status)
	}
	if e.transferOf(t.volume) != nil {
		return conflict(cannot+". Disk %s is being transferred.", d.alias)
	}
	for _, v := range e.owners(d) {
		if !t.snapshot && v.status != vmDown {
			return conflict(cannot+". VM %s is not down.", v.name)
		}
	}
	return nil
}

// chooseHost takes the host that was asked for, or one of the data center; a live backup is served where its VM runs.
func (e *Engine) chooseHost(b *node, t *transfer) error {
	id := b.id("host")
	if t.backup != nil && t.backup.vm.host != nil {
		t.host = t.backup.vm.host
		return nil
	}
	var up []*host
	for _, h := range e.hosts.all() {
		if h.status == "up" && h.cluster.dc == t.disk.domain.dc {
			up = append(up, h)
		}
	}
	if id != "" {
		up = slices.DeleteFunc(up, func(h *host) bool { return h.id != id })
	}
	if len(up) == 0 {
		return conflict("Cannot transfer Virtual Disk. There is no host that can do it.")
	}
	t.host = up[e.rand.IntN(len(up))]
	return nil
}

// beginTransfer opens the image and lets the client in. The caller holds mu.
func (e *Engine) beginTransfer(t *transfer) {
	if t.phase != transferInitializing && t.phase != transferResuming {
		return
	}
	switch {
	case e.strikes(TransferCancelled, t.disk.id, t.disk.alias):
		t.phase = "cancelled_system"
		e.later(e.cfg.Pace, func() { e.endTransfer(t, transferFailing, transferFailed) })
		return
	case e.strikes(TransferPaused, t.disk.id, t.disk.alias):
		t.phase = transferPausedSystem
		return
	}
	var opened *ticket
	e.work(func(ctx context.Context) (err error) {
		opened, err = e.openTicket(ctx, t)
		return err
	}, func(err error) {
		if t.ticket = opened; err != nil {
			e.audit(&event{code: 1031, severity: "error", text: "Image transfer of disk " + t.disk.alias + " could not be started."})
			e.endTransfer(t, transferFailing, transferFailed)
			return
		}
		if t.phase == transferInitializing || t.phase == transferResuming {
			t.phase = transferring
			e.watchTransfer(t, 0)
			return
		}
		t.ticket = nil // it was paused or ended meanwhile
		e.work(opened.close, func(error) {})
	})
}

// pollTransfers is how often the engine looks at its transfers.
const pollTransfers = 2 * time.Second

// watchTransfer ends downloads that are complete and idle for two looks, and transfers that nobody uses.
func (e *Engine) watchTransfer(t *transfer, idle int) {
	watched := t.ticket
	e.later(pollTransfers, func() {
		if t.phase != transferring || t.ticket != watched {
			return
		}
		now := watched.state()
		t.moved = now.transferred
		complete := !t.upload() && now.transferred >= t.disk.size && !now.busy
		switch {
		case complete && idle >= 1:
			e.happens(TransferEnds)
			e.endTransfer(t, transferSucceeding, transferSucceeded)
			return
		case complete:
			idle++
		case min(now.idle, e.clock.Now().Sub(t.extended)) > time.Duration(t.inactive)*time.Second && !now.busy:
			e.idleTransfer(t)
			return
		default:
			idle = 0
		}
		e.watchTransfer(t, idle)
	})
}

// idleTransfer does what the policy says when nobody uses a transfer.
func (e *Engine) idleTransfer(t *transfer) {
	if t.policy == "pause" || t.policy == "legacy" && t.upload() {
		e.suspendTransfer(t, transferPausedSystem)
		return
	}
	e.happens(TransferCancelled)
	t.phase = "cancelled_system"
	e.later(e.cfg.Pace, func() { e.endTransfer(t, transferFailing, transferFailed) })
}

// suspendTransfer shuts the client out.
func (e *Engine) suspendTransfer(t *transfer, phase string) {
	t.phase = phase
	if was := t.ticket; was != nil {
		t.ticket = nil
		e.work(was.close, func(error) {})
	}
}

// endTransfer shuts the client out, waits for its requests and unlocks the disk.
func (e *Engine) endTransfer(t *transfer, during, after string) {
	t.phase = during
	was := t.ticket
	t.ticket = nil
	e.later(e.cfg.Pace, func() {
		e.work(func(ctx context.Context) error {
			if was == nil {
				return nil
			}
			if after == transferSucceeded {
				return was.finish(context.WithoutCancel(ctx))
			}
			return was.close(context.WithoutCancel(ctx))
		}, func(err error) {
			if err != nil && after == transferSucceeded {
				after = transferFailed
			}
			e.transferEnded(t, after)
		})
	})
}

func (e *Engine) transferEnded(t *transfer, phase string) {
	t.phase = phase
	well := phase == transferSucceeded
	if t.locks() && t.disk.status == diskLocked {
		t.disk.status = diskOK
	}
	if t.upload() && !well {
		for _, a := range e.uses(t.disk) {
			a.vm.attached.remove(t.disk.id)
		}
		e.dropDisk(t.disk) // the engine keeps no disk that was written by half
	}
	if well {
		e.audit(&event{code: 1032, severity: "normal", text: "Image transfer of disk " + t.disk.alias + " succeeded."})
	}
	e.endJob(t.job, well)
	if e.strikes(TransferPurged, t.disk.id, t.disk.alias) || !atLeast(e.cfg.Version, "4.4.7") {
		e.transfers.remove(t.id)
		return
	}
	keep := 15 * time.Minute
	if !well {
		keep = 30 * time.Minute
	}
	e.later(keep, func() { e.transfers.remove(t.id) })
}

func finalizeTransfer(c *call, t *transfer) error {
	if c.e.strikes(TransferEnds, t.disk.id, t.disk.alias) {
		c.e.endTransfer(t, transferSucceeding, transferSucceeded)
		return conflict("Cannot finalize image transfer. The transfer is in phase %s.", t.phase)
	}
	if t.phase != transferring && t.phase != transferPausedUser && t.phase != transferPausedSystem {
		return conflict("Cannot finalize image transfer. The transfer is in phase %s.", t.phase)
	}
	c.e.endTransfer(t, transferSucceeding, transferSucceeded)
	return nil
}

func cancelTransfer(c *call, t *transfer) error {
	switch t.phase {
	case transferInitializing, transferring, transferResuming, transferPausedUser, transferPausedSystem:
	default:
		return conflict("Cannot cancel image transfer. The transfer is in phase %s.", t.phase)
	}
	t.phase = "cancelled_user"
	c.e.later(c.e.cfg.Pace, func() { c.e.endTransfer(t, transferCleaning, transferCleaned) })
	return nil
}

func extendTransfer(c *call, t *transfer) error {
	if t.phase != transferring {
		return conflict("Cannot extend image transfer. The transfer is in phase %s.", t.phase)
	}
	t.extended = c.e.clock.Now()
	t.ticket.extend()
	return nil
}

func pauseTransfer(c *call, t *transfer) error {
	if t.phase != transferring && t.phase != transferResuming && t.phase != transferInitializing {
		return conflict("Cannot pause image transfer. The transfer is in phase %s.", t.phase)
	}
	c.e.suspendTransfer(t, transferPausedUser)
	return nil
}

func resumeTransfer(c *call, t *transfer) error {
	if t.phase != transferPausedUser && t.phase != transferPausedSystem {
		return conflict("Cannot resume image transfer. The transfer is in phase %s.", t.phase)
	}
	t.phase = transferResuming
	c.e.later(c.e.cfg.Pace, func() { c.e.beginTransfer(t) })
	return nil
}
