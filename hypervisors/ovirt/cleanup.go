package ovirt

import (
	"context"
	"strings"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// CleanUp removes what an Owed describes. It looks at the engine, never at what this process remembers.
func (d *Driver) CleanUp(ctx context.Context, o hypervisors.Owed) error {
	tag, err := tagOf(o)
	if err != nil {
		return err
	}
	if err := d.waitMade(ctx, tag); err != nil {
		return err
	}
	switch o.Kind {
	case kindTransfer:
		verb := verbFinalize
		if o.Args[argUpload] != "" {
			verb = verbCancel
		}
		return d.endTransfers(ctx, tag, o.Args[argDisk], verb)
	case kindDisk:
		return d.cleanDisk(ctx, tag, o)
	case kindMover:
		return d.cleanMover(ctx, tag)
	case kindVM:
		return d.cleanVM(ctx, tag)
	case kindHanded:
		return d.cleanHanded(ctx, o, tag)
	case hypervisors.OwedReplaced:
		return d.cleanReplaced(ctx, o)
	case hypervisors.OwedAttached:
		return d.cleanAttached(ctx, o, tag)
	case kindSnapshot:
		return d.cleanSnapshot(ctx, o.VM, tag)
	case kindBackup:
		return d.endBackup(ctx, o.VM, o.Name)
	case hypervisors.OwedCheckpoint:
		if err := d.endBackup(ctx, o.VM, o.Name); err != nil {
			return err
		}
		return d.cleanMark(ctx, o.VM, o.Name)
	}
	return fault.New(fault.Invalid, "clean up", string(o.Kind)+" "+o.Name, "this driver does not know the kind")
}

// tagOf is the tag in the name of what is owed. What has none is not ours.
func tagOf(o hypervisors.Owed) (string, error) {
	rest, found := strings.CutPrefix(o.Name, marker)
	tag, _, _ := strings.Cut(rest, "/")
	if !found || checkTag(tag) != nil {
		return "", fault.New(fault.Invalid, "clean up", string(o.Kind)+" "+o.Name, "it does not carry the mark %q", marker)
	}
	if o.VM != "" && !goodID.MatchString(o.VM) {
		return "", fault.New(fault.Invalid, "clean up", string(o.Kind)+" "+o.Name, "%q is no id of a VM", o.VM)
	}
	return tag, nil
}

// cleanSnapshot removes the snapshot of a freeze, after what would be in the way.
func (d *Driver) cleanSnapshot(ctx context.Context, vm, tag string) error {
	s, err := d.settledSnapshot(ctx, vm, marker+tag)
	if s == nil || err != nil {
		return err
	}
	if err := d.detachFromMovers(ctx, vm); err != nil {
		return err
	}
	all, err := d.transfers(ctx)
	if err != nil {
		return err
	}
	disks, err := engine.All[*sdk.Disk](ctx, d.conn, engine.Request{
		Op: "list disks of snapshot of VM", Subject: vm, Path: snapshotPath(vm, val(s.Id())) + "/disks",
	}, "disks", sdk.XMLDiskReadMany)
	if err != nil && !engine.Gone(err) {
		return err
	}
	of := map[string]bool{}
	for _, disk := range disks {
		of[val(disk.Id())] = true
	}
	for _, t := range all {
		if !of[diskOf(t)] || val(t.InactivityTimeout()) != idleOf(tag) || over(val(t.Phase())) {
			continue
		}
		if _, err := d.endTransfer(ctx, val(t.Id()), diskOf(t), verbFinalize); err != nil {
			return err
		}
	}
	return d.removeSnapshot(ctx, vm, marker+tag)
}

// detachFromMovers unplugs what is plugged into movers of a VM that has a snapshot of ours: the engine does not remove it
// before, and no other freeze of ours can be beside it.
func (d *Driver) detachFromMovers(ctx context.Context, vm string) error {
	all, err := d.list(ctx)
	if err != nil {
		return err
	}
	owners := plugged(all)
	for _, x := range all {
		for _, a := range items(x.DiskAttachments()) {
			if !isMover(x) || owners[val(a.Id())] != vm {
				continue
			}
			if err := d.detach(ctx, val(x.Id()), val(a.Id())); err != nil {
				return err
			}
		}
	}
	return nil
}
