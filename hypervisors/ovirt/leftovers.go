package ovirt

import (
	"context"
	"slices"
	"strings"

	sdk "github.com/ovirt/go-ovirt"
	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
)

// looksAtOnce is how many VMs are looked at beside each other.
const looksAtOnce = 4

// Leftovers returns everything on the engine that carries our mark and belongs to no VM of a user's.
func (d *Driver) Leftovers(ctx context.Context) ([]hypervisors.Owed, error) {
	vms, err := engine.Pages[*sdk.Vm](ctx, d.conn, engine.Request{Op: "list VMs", Path: "/vms", Query: engine.Query("follow", "disk_attachments.disk,snapshots")}, "vms", "name", sdk.XMLVmReadMany)
	if err != nil {
		return nil, err
	}
	transfers, err := d.transfers(ctx)
	if err != nil {
		return nil, err
	}
	version, err := d.about(ctx)
	if err != nil {
		return nil, err
	}
	parts := make([][]hypervisors.Owed, len(vms))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(looksAtOnce)
	for i, vm := range vms {
		g.Go(func() (err error) {
			parts[i], err = d.leftOf(gctx, vm, transfers, version.version.atLeast(4, 5))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	freezes := map[string]string{} // names of our snapshots, by VM
	for _, vm := range vms {
		for _, s := range items(vm.Snapshots()) {
			if name := val(s.Description()); isFreeze(name) {
				freezes[val(vm.Id())] = name
			}
		}
	}
	out, owners := slices.Concat(append([][]hypervisors.Owed{{}}, parts...)...), plugged(vms)
	for _, vm := range vms {
		switch {
		case strings.HasSuffix(val(vm.Comment()), unready):
			tag := strings.TrimSuffix(strings.TrimPrefix(val(vm.Comment()), moverComment+" "), unready)
			out = append(out, hypervisors.Owed{Kind: kindMover, Name: marker + tag, Args: map[string]string{argTag: tag}})
		case isMover(vm):
			out = append(out, leftInMover(vm, owners, freezes)...)
		case isUnfinished(vm):
			tag := strings.TrimPrefix(val(vm.Comment()), restoreComment)
			out = append(out, hypervisors.Owed{Kind: kindVM, Name: marker + tag, Args: map[string]string{argTag: tag}})
			for _, a := range items(vm.DiskAttachments()) {
				delete(owners, val(a.Id())) // it is nobody's yet
			}
		}
	}
	disks, err := d.leftDisks(ctx, owners, transfers)
	return append(out, disks...), err
}

// leftDisks returns the disks of restores that no VM of a user's has, and the uploads to them.
func (d *Driver) leftDisks(ctx context.Context, owners map[string]string, transfers []*sdk.ImageTransfer) (out []hypervisors.Owed, err error) {
	all, err := engine.All[*sdk.Disk](ctx, d.conn, engine.Request{Op: "look for disks", Path: "/disks", Query: engine.Query("search", "alias="+marker+"*")}, "disks", sdk.XMLDiskReadMany)
	for _, disk := range all {
		id, tag := val(disk.Id()), aliasTag(val(disk.Alias()))
		if tag == "" || owners[id] != "" {
			continue
		}
		out = append(out, hypervisors.Owed{Kind: kindDisk, Name: marker + tag + "/" + id, Args: map[string]string{argTag: tag, argAlias: val(disk.Alias())}})
		for _, t := range transfers {
			if diskOf(t) == id && val(t.InactivityTimeout()) == idleOf(tag) && !over(val(t.Phase())) {
				out = append(out, hypervisors.Owed{
					Kind: kindTransfer, Name: marker + tag + "/" + id, Args: map[string]string{argTag: tag, argDisk: id, argUpload: "true"},
				})
			}
		}
	}
	return out, err
}

// leftOf returns what a VM has of ours.
func (d *Driver) leftOf(ctx context.Context, vm *sdk.Vm, transfers []*sdk.ImageTransfer, marks bool) (out []hypervisors.Owed, err error) {
	id := val(vm.Id())
	disks, incremental := map[string]bool{}, false
	for _, a := range items(vm.DiskAttachments()) {
		if disk, ok := a.Disk(); ok && !isMover(vm) {
			disks[val(disk.Id())] = true
			incremental = incremental || val(disk.Backup()) == sdk.DISKBACKUP_INCREMENTAL
		}
	}
	var tags []string
	for _, s := range items(vm.Snapshots()) {
		if name := val(s.Description()); isFreeze(name) && val(s.SnapshotType()) != sdk.SNAPSHOTTYPE_ACTIVE {
			out = append(out, hypervisors.Owed{Kind: kindSnapshot, VM: id, Name: name})
			tags = append(tags, strings.TrimPrefix(name, marker))
		}
	}
	// Only disks whose changes are recorded have checkpoints; asking every VM of a large site would take minutes.
	if marks && incremental {
		more, err := d.leftBackups(ctx, id)
		if err != nil {
			return nil, err
		}
		for _, o := range more {
			tags = append(tags, strings.TrimPrefix(o.Name, marker))
		}
		out = append(out, more...)
	}
	for _, t := range transfers {
		i := slices.IndexFunc(tags, func(tag string) bool { return checkTag(tag) == nil && idleOf(tag) == val(t.InactivityTimeout()) })
		if i < 0 || !disks[diskOf(t)] || over(val(t.Phase())) {
			continue
		}
		out = append(out, hypervisors.Owed{
			Kind: kindTransfer, VM: id, Name: marker + tags[i] + "/" + diskOf(t), Args: map[string]string{argTag: tags[i], argDisk: diskOf(t)},
		})
	}
	return out, nil
}

// leftBackups returns the backups and checkpoints of ours that a VM has.
func (d *Driver) leftBackups(ctx context.Context, vm string) (out []hypervisors.Owed, err error) {
	marks, err := d.marks(ctx, vm)
	if err != nil && !engine.Gone(err) {
		return nil, err
	}
	for _, m := range marks {
		if m.ours() {
			out = append(out, hypervisors.Owed{Kind: hypervisors.OwedCheckpoint, VM: vm, Name: m.description})
		}
	}
	backups, err := d.backups(ctx, vm)
	if err != nil && !engine.Gone(err) {
		return nil, err
	}
	for _, b := range backups {
		if name := val(b.Description()); isFreeze(name) && !backupOver(val(b.Phase())) {
			out = append(out, hypervisors.Owed{Kind: kindBackup, VM: vm, Name: name})
		}
	}
	return out, nil
}
