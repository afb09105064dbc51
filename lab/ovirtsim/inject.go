package ovirtsim

import (
	"path"
	"slices"
	"strings"
)

// Behaviour is something that goes wrong on a real engine now and then. It happens only where it is injected, unless its
// comment says that the engine does it by itself as well; Engine.Count tells how often it happened either way.
type Behaviour string

// The behaviours of requests. Fault.On is "METHOD /path" below the API's root, each part of which may have "*".
const (
	// SessionExpires ends the session of the request, which is answered 401 with HTML.
	SessionExpires Behaviour = "session expires"
	// Unavailable answers 503 with HTML, as the proxy before an engine that starts does.
	Unavailable Behaviour = "unavailable"
	// InternalError answers 500 with a fault.
	InternalError Behaviour = "internal error"
	// ReplyLost carries a request out and breaks the connection instead of replying.
	ReplyLost Behaviour = "reply lost"
	// EngineRestarts breaks all connections, forgets all sessions, fails the backups that are being started and leaves
	// the request undone.
	EngineRestarts Behaviour = "engine restarts"
)

// The behaviours of operations. Fault.On is the id or name of the VM or disk.
const (
	// SnapshotFails undoes a snapshot that was being made: its id is that of the active one again, with status ok.
	SnapshotFails Behaviour = "snapshot fails"
	// SnapshotHangs leaves a snapshot that is being made locked, until Heal.
	SnapshotHangs Behaviour = "snapshot hangs"
	// FreezeFails keeps the guest's file systems from being frozen: the snapshot is made without, and an event says so.
	// Explicit freezing is refused. The engine does the first by itself for a guest without agent.
	FreezeFails Behaviour = "freeze fails"
	// SnapshotRemoveFails ends a removal with the snapshot there and ok.
	SnapshotRemoveFails Behaviour = "snapshot removal fails"
	// SnapshotRemoveBusy refuses a removal as if another one were running. The engine does it by itself when one is.
	SnapshotRemoveBusy Behaviour = "snapshot removal refused"
	// AttachLocked refuses to attach a disk because it is locked. The engine does it by itself when it is.
	AttachLocked Behaviour = "attach refused"
	// DetachSlow leaves a detached disk in the mover for ten times Config.Pace.
	DetachSlow Behaviour = "detach slow"
	// JobsLate shows the jobs of a request only after three times Config.Pace.
	JobsLate Behaviour = "jobs late"
	// JobsPurged forgets jobs when they end.
	JobsPurged Behaviour = "jobs purged"
)

// The behaviours of backups and transfers. Fault.On is the id or name of the VM or disk.
const (
	// CheckpointLost lets an incremental backup find no bitmap: the disk's mode is full, and nothing else tells.
	CheckpointLost Behaviour = "checkpoint lost"
	// CheckpointInvalid makes the checkpoint that a backup starts from invalid and refuses the backup.
	CheckpointInvalid Behaviour = "checkpoint invalid"
	// BackupFails ends a backup that is being started in phase failed.
	BackupFails Behaviour = "backup fails"
	// BackupBusy refuses to finalize a backup while a transfer of it is active. It is never injected: the engine does it
	// by itself.
	BackupBusy Behaviour = "backup busy"
	// BackupPurged forgets a backup when it ends.
	BackupPurged Behaviour = "backup purged"
	// TransferPaused pauses a transfer by the system when it is about to begin.
	TransferPaused Behaviour = "transfer paused"
	// TransferCancelled cancels a transfer by the system when it is about to begin. The engine does it by itself when a
	// download is idle for too long.
	TransferCancelled Behaviour = "transfer cancelled"
	// TransferEnds finalizes a download by itself once it is about to be finalized; the caller's request is refused.
	TransferEnds Behaviour = "transfer ends by itself"
	// TransferPurged forgets a transfer when it ends.
	TransferPurged Behaviour = "transfer purged"
)

// The behaviours of disks in movers.
const (
	// DeviceMissing keeps an attached disk out of the mover.
	DeviceMissing Behaviour = "device missing"
	// DeviceShortSerial shows a disk by the first 20 characters of its id, as old engines do; else it is all 36.
	DeviceShortSerial Behaviour = "device short serial"
	// DeviceTwice shows another disk with the same serial.
	DeviceTwice Behaviour = "device twice"
	// DeviceWrongSize shows the disk with a sector more than it has.
	DeviceWrongSize Behaviour = "device wrong size"
)

// Behaviours returns all of them.
func Behaviours() []Behaviour {
	return []Behaviour{
		SessionExpires, Unavailable, InternalError, ReplyLost, EngineRestarts,
		SnapshotFails, SnapshotHangs, FreezeFails, SnapshotRemoveFails, SnapshotRemoveBusy, AttachLocked, DetachSlow, JobsLate, JobsPurged,
		CheckpointLost, CheckpointInvalid, BackupFails, BackupBusy, BackupPurged, TransferPaused, TransferCancelled, TransferEnds, TransferPurged,
		DeviceMissing, DeviceShortSerial, DeviceTwice, DeviceWrongSize,
	}
}

// Fault says where and how often a behaviour strikes.
type Fault struct {
	On    string // see the behaviours; "" is everywhere
	Skip  int    // how many occasions go well first
	Times int    // how many go wrong then; 0 is all
}

// Injected is a fault in an engine.
type Injected struct {
	e *Engine
	b Behaviour
	Fault
	occasions, fired int
}

// Fired returns how often it struck.
func (i *Injected) Fired() int {
	i.e.mu.Lock()
	defer i.e.mu.Unlock()
	return i.fired
}

// Inject makes a behaviour happen from now on.
func (e *Engine) Inject(b Behaviour, f Fault) *Injected {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := &Injected{e: e, b: b, Fault: f}
	e.injected = append(e.injected, i)
	return i
}

// Heal takes all faults away and lets go on what hangs.
func (e *Engine) Heal() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.injected = nil
	hanging := e.hanging
	e.hanging = nil
	for _, goOn := range hanging {
		goOn()
	}
}

// Count returns how often a behaviour happened, injected or not.
func (e *Engine) Count(b Behaviour) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.counts[b]
}

// happens records that the engine behaved so by itself. The caller holds mu.
func (e *Engine) happens(b Behaviour) { e.counts[b]++ }

// strikes says whether a behaviour is to happen to something that has these names, and counts it. The caller holds mu.
func (e *Engine) strikes(b Behaviour, names ...string) bool {
	for _, i := range e.injected {
		if i.b != b || i.On != "" && !slices.ContainsFunc(names, func(n string) bool { return matches(i.On, n) }) {
			continue
		}
		i.occasions++
		if i.occasions <= i.Skip || i.Times > 0 && i.occasions > i.Skip+i.Times {
			continue
		}
		i.fired++
		e.counts[b]++
		return true
	}
	return false
}

// matches compares a name, or a request with a pattern.
func matches(pattern, name string) bool {
	if pattern == name {
		return true
	}
	if !strings.Contains(pattern, "*") {
		return false
	}
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}
