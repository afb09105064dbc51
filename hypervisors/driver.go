// Package hypervisors is the vocabulary between Cairn and the platforms: what a VM is, what a frozen disk is, and
// what a driver must be able to do.
//
// It is no driver and imports none. Its invariant: no type and no error of a platform's SDK appears here; drivers
// translate at their edge, and every error they return carries a kind (internal/fault).
package hypervisors

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Driver speaks to one connection, a hypervisor or its manager. Its methods may be called from several goroutines.
// A driver embeds Unsupported and overrides what it can do.
type Driver interface {
	Inventory
	Watcher
	Freezer
	Restorer
	Attacher
	Deployer
	PowerSwitch
	Cleaner
	// Capabilities is cheap and constant for a connection. What it promises works, what it denies answers
	// errors.ErrUnsupported.
	Capabilities() Capabilities
	// Check looks whether the connection can do its work: reachable, versions, permissions. It changes nothing.
	Check(ctx context.Context) (Health, error)
	Close() error
}

// Inventory lists what a connection has.
type Inventory interface {
	// VMs returns all VMs with their disks and NICs, sorted by name. Objects of our own making are left out.
	VMs(ctx context.Context) ([]VM, error)
	// VM returns one VM by its stable id, or a NotFound error.
	VM(ctx context.Context, id string) (VM, error)
	Datastores(ctx context.Context) ([]Datastore, error)
	Networks(ctx context.Context) ([]Network, error)
}

// Watcher tells of changes as they happen.
type Watcher interface {
	// Watch calls tell with the id of each VM that may have changed, come or gone, and with "" when it may be any. The first call says
	// "" and that Watch listens from now on. tell must not wait, and is called by one goroutine at a time. Watch works until ctx
	// ends, which is no error; one that has lost the platform is Transient, and what changes after that is not told.
	Watch(ctx context.Context, tell func(vm string)) error
}

// Freezer freezes VMs.
type Freezer interface {
	// Freeze makes the disks of a VM readable as they are at one instant. On an error nothing of it is left, except
	// what was owed and could not be removed.
	Freeze(ctx context.Context, req FreezeRequest) (Frozen, error)
	// Refreeze takes up a freeze that an earlier process made, if it stands as it was made; its exports may be reached
	// otherwise than before. One that does not stand any more is a Conflict. It makes nothing on the platform. Of what was said of
	// the freeze it gets what FrozenInfo.Kept returns.
	Refreeze(ctx context.Context, standing Standing) (Frozen, error)
	// Checkpoints returns the checkpoints of ours on a VM, oldest first.
	Checkpoints(ctx context.Context, vm string) ([]Checkpoint, error)
	// KeepCheckpoint removes every checkpoint of ours on a VM except keep; "" removes them all. Checkpoints of other
	// tools are not touched. May be repeated.
	KeepCheckpoint(ctx context.Context, vm, keep string) error
}

// Quiesce says whether the guest is asked to flush its file systems before the freeze.
type Quiesce string

// The ways to quiesce.
const (
	QuiesceTry     Quiesce = "try"     // use the agent when it answers, go on without
	QuiesceRequire Quiesce = "require" // no agent, no backup
	QuiesceNever   Quiesce = "never"
)

// Consistency of a restore point.
type Consistency string

// The consistencies.
const (
	CrashConsistent      Consistency = "crash"
	FilesystemConsistent Consistency = "filesystem"
)

// FreezeRequest asks for a freeze.
type FreezeRequest struct {
	VM string // stable id
	// Tag is unique for this freeze (letters, digits, "-", "_"). Everything made on the platform carries "cairn-"+Tag
	// in its name, and nothing without that marker is ever removed.
	Tag string
	// Exclude holds ids of disks that are not wanted.
	Exclude []string
	Quiesce Quiesce
	// Since is the checkpoint of the last durable restore point; disks that have it are exported with a
	// DirtyContext. Empty asks for full reads.
	Since string
	// Track asks for a new checkpoint, so that the next backup can be incremental.
	Track bool
	// Owe is called before each thing made on the platform, and must have made its record durable when it returns.
	// An error of Owe stops the freeze.
	Owe func(ctx context.Context, owed Owed) error
}

// Divide says which of a VM's disks a freeze is of, which not and why, and warns of excluded disks that the VM does not have.
func (r FreezeRequest) Divide(vm VM) (disks []Disk, skipped []SkippedDisk, warnings []string) {
	for _, id := range r.Exclude {
		if !slices.ContainsFunc(vm.Disks, func(d Disk) bool { return d.ID == id }) {
			warnings = append(warnings, fmt.Sprintf("The disk %s is excluded, but the VM has no such disk.", id))
		}
	}
	for _, d := range vm.Disks {
		switch {
		case d.Unprotectable != "":
			skipped = append(skipped, SkippedDisk{Disk: d, Reason: d.Unprotectable})
		case slices.Contains(r.Exclude, d.ID):
			skipped = append(skipped, SkippedDisk{Disk: d, Reason: "it is excluded"})
		default:
			disks = append(disks, d)
		}
	}
	return disks, skipped, warnings
}

// Standing is a freeze as the process that made it has recorded it.
type Standing struct {
	Tag  string     // of the request
	Info FrozenInfo // what was said of it, as Kept returns it
	Owed []Owed     // what was owed for it and not removed yet, in the order of making
}

// Frozen is a frozen VM. Release must be called, also after errors and cancellation.
type Frozen interface {
	Info() FrozenInfo
	// Release ends the exports and removes what Freeze made, except the new checkpoint. May be repeated. The caller
	// passes a context of its own: cancelling a job never cancels its clean-up.
	Release(ctx context.Context) error
}

// FrozenInfo describes a frozen VM.
type FrozenInfo struct {
	VM              VM
	Documents       []Document
	Consistency     Consistency
	ConsistencyNote string // why it is no better, in words; empty when it is what was asked for
	Time            time.Time
	// Checkpoint is the mark from which the next incremental can start, once this restore point is durable.
	Checkpoint string
	Disks      []FrozenDiskInfo
	Skipped    []SkippedDisk
	Warnings   []string
}

// Kept returns what of it may be stored while the freeze stands: all but tickets, which open disks for whoever reads them. Refreeze
// asks the platform for those anew.
func (i FrozenInfo) Kept() FrozenInfo {
	i.Disks = slices.Clone(i.Disks)
	for n := range i.Disks {
		i.Disks[n].Export.Imageio = nil
	}
	return i
}

// FrozenDiskInfo is one disk of a frozen VM.
type FrozenDiskInfo struct {
	Disk   Disk
	Export Export
	// FullReason says why the whole disk has to be read although Since was given; empty for an incremental and for a
	// full that was asked for.
	FullReason string
}

// SkippedDisk is a disk that is not in the freeze, and why.
type SkippedDisk struct {
	Disk   Disk
	Reason string
}

// Restorer makes VMs and disks.
type Restorer interface {
	// CheckRestore says whether the request could be carried out now, and changes nothing.
	CheckRestore(ctx context.Context, req RestoreRequest) error
	// BeginRestore makes the disks and opens them for writing. On an error nothing of it is left, except what was
	// owed and could not be removed.
	BeginRestore(ctx context.Context, req RestoreRequest) (Restoring, error)
}

// RestoreMode says what a restore makes.
type RestoreMode string

// The restore modes.
const (
	RestoreNew     RestoreMode = "new"      // a VM with a new name, new identity, new MACs
	RestoreInPlace RestoreMode = "in-place" // the original VM gets its disks back; it must be off
	RestoreDisks   RestoreMode = "disks"    // disks alone, which no VM has
	RestoreInto    RestoreMode = "into"     // a VM that is there gets the disks beside its own, plugged in if it runs; none of them boots
)

// DisksOnly reports whether a restore in the mode makes no VM and changes none but for the disks that it is given.
func (m RestoreMode) DisksOnly() bool { return m == RestoreDisks || m == RestoreInto }

// RestoreRequest asks for a restore.
type RestoreRequest struct {
	Tag       string // as in FreezeRequest
	Mode      RestoreMode
	Name      string // the new VM's name; in place: ignored
	VM        VM     // as stored in the restore point; its ID is the original for an in-place restore
	Into      string // RestoreInto: the stable id of the VM that gets the disks; it may be the original
	Documents []Document
	Disks     []RestoreDisk
	// Chosen says that Disks are not all disks of the restore point: in place nothing else of the VM is given back then, and a new VM
	// has only these.
	Chosen bool
	// Networks maps names of the source's networks to those of this connection; "" disconnects the NIC. Networks that
	// are not named keep their name.
	Networks map[string]string
	// KeepMACs keeps the source's MAC addresses for a new VM.
	KeepMACs bool
	Owe      func(ctx context.Context, owed Owed) error
}

// Document returns the data of the document with a name, nil if there is none.
func (r RestoreRequest) Document(name string) []byte {
	for _, doc := range r.Documents {
		if doc.Name == name {
			return doc.Data
		}
	}
	return nil
}

// RestoreDisk is one disk to make. Empty fields mean: as in the source.
type RestoreDisk struct {
	ID        string // the source disk's id
	SizeBytes int64
	Datastore string
	Format    DiskFormat
	// Name is what the disk is called on the platform when it is complete, for disks that are restored alone or into a VM. A platform
	// whose disks have no names of their own makes it part of what it calls the volume.
	Name string
}

// Restoring is a restore under way. Exactly one of Finish and Abandon ends it.
type Restoring interface {
	// Disks returns an export to write to for each requested disk, in the order of the request.
	Disks() []TargetInfo
	// Finish closes the disks and makes the VM, switches the original to its new disks, or gives the disks to the VM that was named. For
	// disks alone it returns a VM without an id that has them. When it fails, Abandon is still to be called.
	Finish(ctx context.Context) (VM, error)
	// Abandon removes all that BeginRestore made and leaves an original as it was. May be repeated.
	Abandon(ctx context.Context) error
}

// TargetInfo is one disk open for writing.
type TargetInfo struct {
	DiskID string
	Export Export
}

// PowerSwitch starts and stops VMs.
type PowerSwitch interface {
	Start(ctx context.Context, vm string) error
	// Stop switches a VM off; without force the guest is asked to shut down and may refuse.
	Stop(ctx context.Context, vm string, force bool) error
}

// OwedKind says what sort of thing is owed.
type OwedKind string

// OwedCheckpoint is a kind with a fixed meaning: a checkpoint, Name being that of FrozenInfo.Checkpoint. It is
// not removed once a durable restore point has recorded it.
const OwedCheckpoint OwedKind = "checkpoint"

// OwedReplaced is a disk of the original that an in-place restore has replaced. It is removed after the restore has
// finished, when all else that was owed for it belongs to the VM; CleanUp leaves it alone while the VM still uses it.
const OwedReplaced OwedKind = "replaced-disk"

// OwedAttached is a disk that was plugged into a mover, which is the VM of the Owed. It goes before all else that the task
// owes, and nothing but its unplugging ends it.
const OwedAttached OwedKind = "attached-disk"

// Owed is a clean-up we owe: a thing made on a platform that must be removed. It is durable before the thing exists.
type Owed struct {
	Kind OwedKind          `json:"kind"` // the driver's own word: "checkpoint", "backup-job", "volume", …
	VM   string            `json:"vm,omitempty"`
	Name string            `json:"name"`
	Args map[string]string `json:"args,omitempty"`
}

// Cleaner removes leftovers.
type Cleaner interface {
	// CleanUp removes what an Owed describes. It succeeds when that is gone or was never made, and it may be repeated.
	// It must not need anything remembered in this process.
	CleanUp(ctx context.Context, owed Owed) error
	// Leftovers returns everything on the platform that carries our marker and is not a VM a user restored: the
	// manager compares it with what is running and recorded.
	Leftovers(ctx context.Context) ([]Owed, error)
}

// Capabilities says what a driver can do with its connection.
type Capabilities struct {
	Platform       Platform     `json:"platform"`
	Backup         bool         `json:"backup"`
	ChangeTracking bool         `json:"change_tracking"`
	Quiesce        bool         `json:"quiesce"`
	StoppedBackup  bool         `json:"stopped_backup"`
	Restore        bool         `json:"restore"`
	RestoreInPlace bool         `json:"restore_in_place"`
	RestoreDisks   bool         `json:"restore_disks"`
	RestoreInto    bool         `json:"restore_into"`
	Power          bool         `json:"power"`
	DeployMover    bool         `json:"deploy_mover"`
	Watch          bool         `json:"watch"` // tells of changes as they happen
	Transports     []Transport  `json:"transports"`
	Formats        []DiskFormat `json:"formats"`
}

// Health is what Check found.
type Health struct {
	Product string `json:"product"` // "libvirt 9.0.0, QEMU 7.2.22"
	Host    string `json:"host"`
	// HostID is the identity that the host or manager keeps under every address and name; "" when it has none.
	HostID   string   `json:"host_id,omitempty"`
	VMs      int      `json:"vms"`                // without movers and what restores and deployments are at
	Movers   int      `json:"movers,omitempty"`   // ours
	Problems []string `json:"problems,omitempty"` // what will not work and why, in whole sentences
}
