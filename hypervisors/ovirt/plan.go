package ovirt

import (
	"cmp"
	"fmt"
	"slices"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// survey is what Freeze finds before it makes anything.
type survey struct {
	x         *sdk.Vm
	vm        hypervisors.VM
	cluster   cluster
	version   level // of the engine
	snapshots []*sdk.Snapshot
	backups   []*sdk.Backup
	marks     []mark
}

// plan says how a VM is frozen.
type plan struct {
	disks    []hypervisors.Disk
	skipped  []hypervisors.SkippedDisk
	warnings []string
	// backup says that the engine's backup is used; otherwise a snapshot is made.
	backup bool
	from   string            // the id of the checkpoint to start from; "" is a full one
	full   map[string]string // why a disk is read as a whole, by disk, though changes were asked for
}

// choose decides how a VM is frozen, and why not otherwise. It depends on nothing but its arguments.
func choose(req hypervisors.FreezeRequest, s survey) plan {
	p := plan{full: map[string]string{}, warnings: slices.Clone(s.vm.Notes)}
	var warnings []string
	p.disks, p.skipped, warnings = req.Divide(s.vm)
	p.warnings = append(p.warnings, warnings...)
	p.leaveOutDeactivated(s)
	if !req.Track && req.Since == "" {
		return p
	}
	if why := noBackup(s, p.disks); why != "" {
		for _, d := range p.disks {
			p.full[d.ID] = why
		}
		return p
	}
	p.backup = true
	for _, d := range p.disks {
		if attached := attachment(s.x, d.ID); attached == nil || !tracked(attached) {
			p.full[d.ID] = "incremental backup is not enabled for this disk in the engine"
		}
	}
	if req.Since != "" {
		p.start(req.Since, s.marks)
	}
	return p
}

// leaveOutDeactivated takes out the disks that are deactivated in a VM that is not off. The engine would put them into a snapshot,
// and merge none of it as long as they are; and it takes none into a backup.
func (p *plan) leaveOutDeactivated(s survey) {
	if val(s.x.Status()) == sdk.VMSTATUS_DOWN {
		return
	}
	p.disks = slices.DeleteFunc(p.disks, func(d hypervisors.Disk) bool {
		a := attachment(s.x, d.ID)
		if a == nil {
			return false
		}
		active, said := a.Active()
		if said && !active {
			p.skipped = append(p.skipped, hypervisors.SkippedDisk{Disk: d, Reason: "it is deactivated while the VM runs, and the engine could not merge its snapshot"})
		}
		return said && !active
	})
}

// start looks for the checkpoint to start from.
func (p *plan) start(since string, marks []mark) {
	i := slices.IndexFunc(marks, func(m mark) bool { return m.description == since && m.ours() })
	why := ""
	switch {
	case i < 0:
		why = "the engine has not the checkpoint of the last restore point any more"
	case !marks[i].valid:
		why = "the engine says that the checkpoint of the last restore point is invalid: the host lost it, or the VM was reverted"
	}
	for _, d := range p.disks {
		if p.full[d.ID] != "" {
			continue
		}
		if why != "" {
			p.full[d.ID] = why
		} else if !slices.Contains(marks[i].checkpoint.Disks, d.ID) {
			p.full[d.ID] = "the checkpoint of the last restore point does not have this disk"
		}
	}
	if why == "" {
		p.from = marks[i].id
	}
}

// noBackup says why the engine's backup, with its record of changes, cannot be used for these disks of a VM; "" if it can.
func noBackup(s survey, disks []hypervisors.Disk) string {
	switch {
	case !s.version.atLeast(4, 5):
		return fmt.Sprintf("the engine (%d.%d) is older than 4.5, which is the first that names checkpoints", s.version.major, s.version.minor)
	case !s.cluster.level.atLeast(4, 5):
		return fmt.Sprintf("the cluster %s has the compatibility level %d.%d; incremental backup needs 4.5", s.cluster.name, s.cluster.level.major, s.cluster.level.minor)
	case val(s.x.Status()) != sdk.VMSTATUS_UP && val(s.x.Status()) != sdk.VMSTATUS_DOWN:
		return fmt.Sprintf("the engine backs up incrementally only VMs that are up or down, and this one is %q", val(s.x.Status()))
	}
	any := false
	for _, d := range disks {
		a := attachment(s.x, d.ID)
		if a == nil {
			continue
		}
		if active, ok := a.Active(); ok && !active {
			return fmt.Sprintf("the disk %s is deactivated, and the engine's incremental backup takes only active disks", cmp.Or(d.Name, d.ID))
		}
		any = any || tracked(a)
	}
	if !any {
		return "incremental backup is not enabled for any disk of this VM in the engine"
	}
	return ""
}

// attachment returns how a disk is attached to a VM, or nil.
func attachment(x *sdk.Vm, disk string) *sdk.DiskAttachment {
	for _, a := range items(x.DiskAttachments()) {
		if val(a.Id()) == disk || idOf(a.Disk()) == disk {
			return a
		}
	}
	return nil
}

// tracked says whether the engine keeps a record of a disk's changes. Only qcow2 images keep one.
func tracked(a *sdk.DiskAttachment) bool {
	d, ok := a.Disk()
	return ok && val(d.Backup()) == sdk.DISKBACKUP_INCREMENTAL && val(d.Format()) != sdk.DISKFORMAT_RAW
}

// busy refuses a VM on which something else is under way, or that cannot be frozen at all.
func busy(s survey) error {
	no := func(what, meaning, advice string) error {
		return fault.New(fault.Conflict, "freeze VM", s.vm.Name, "%s", what).Explain(meaning, advice)
	}
	if s.vm.Unprotectable != "" {
		return no(s.vm.Unprotectable, "This VM cannot be backed up by the engine's own means.", "Take it out of the policy, or exclude it with this reason.")
	}
	for _, b := range s.backups {
		if backupOver(val(b.Phase())) {
			continue
		}
		return no(fmt.Sprintf("the engine has a backup of it (%s) in the phase %q", cmp.Or(val(b.Description()), val(b.Id())), val(b.Phase())),
			"The engine allows one backup of a VM at a time; it is this product's own from before, or another one's.",
			"Let it end. One that nobody works with any more is ended in the engine.")
	}
	for _, snap := range s.snapshots {
		name, status := val(snap.Description()), val(snap.SnapshotStatus())
		switch {
		case val(snap.SnapshotType()) == sdk.SNAPSHOTTYPE_PREVIEW || status == sdk.SNAPSHOTSTATUS_IN_PREVIEW:
			return no("a snapshot of it is in preview", "No snapshot of a VM can be made while one is looked at.", "Commit the preview in the engine, or undo it.")
		case status == sdk.SNAPSHOTSTATUS_LOCKED:
			return no(fmt.Sprintf("its snapshot %q is being made or removed", engine.Clip(name)), "The engine does one thing with a VM's snapshots at a time; a merge may take hours.", "Try again when it has ended.")
		case isFreeze(name):
			return no(fmt.Sprintf("it has the snapshot %q of an earlier backup of this product", name),
				"An earlier backup has not been cleaned up yet, or another appliance backs the VM up right now.", "Let the clean-up of the earlier run end.")
		}
	}
	switch status := val(s.x.Status()); status {
	case sdk.VMSTATUS_UP, sdk.VMSTATUS_DOWN, sdk.VMSTATUS_PAUSED:
	default:
		return no(fmt.Sprintf("its status is %q", status), "The engine freezes only VMs that are up, paused or down.", "Try again when the VM has come to rest.")
	}
	return nil
}
