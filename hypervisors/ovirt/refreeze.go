package ovirt

import (
	"context"
	"slices"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Refreeze takes up a freeze that stands: the engine keeps snapshots and backups whatever becomes of who made them, and
// transfers for minutes. All carry the tag, so that the transfers are those of this freeze and not of a later one.
func (d *Driver) Refreeze(ctx context.Context, s hypervisors.Standing) (hypervisors.Frozen, error) {
	vm := s.Info.VM.ID
	if err := checkTag(s.Tag); err != nil {
		return nil, err
	}
	if err := checkID("VM", vm); err != nil {
		return nil, err
	}
	f := &frozen{d: d, tag: s.Tag, vm: vm, keeper: newKeeper(d), info: s.Info, owed: slices.Clone(s.Owed)}
	if len(s.Info.Disks) == 0 {
		return f, nil
	}
	stands, err := d.stands(ctx, vm, s)
	if err != nil {
		return nil, err
	}
	if !stands {
		return nil, ended(s.Info.VM.Name)
	}
	ca, err := d.conn.ImageioAuthority(ctx)
	if err != nil {
		return nil, err
	}
	f.info.Disks = slices.Clone(s.Info.Disks)
	if err := f.lookAgain(ctx); err != nil {
		return nil, err
	}
	for i := range f.info.Disks {
		disk := &f.info.Disks[i]
		disk.Export.SAN = f.luns[disk.Disk.ID]
		ours, err := d.ourTransfers(ctx, s.Tag, disk.Disk.ID)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(ours, func(t *sdk.ImageTransfer) bool { return val(t.Phase()) == sdk.IMAGETRANSFERPHASE_TRANSFERRING })
		if at < 0 {
			return nil, ended(s.Info.VM.Name)
		}
		if disk.Export, err = d.offer(ours[at], ca, disk.Export, idleOf(s.Tag)); err != nil {
			return nil, err
		}
		f.keeper.add(val(ours[at].Id()))
	}
	f.keep()
	return f, nil
}

// lookAgain learns the volumes of a snapshot that another process has made, and where they lie now.
func (f *frozen) lookAgain(ctx context.Context) error {
	s, err := f.d.findSnapshot(ctx, f.vm, marker+f.tag)
	if s == nil || err != nil {
		return err // a backup has none
	}
	disks, err := engine.All[*sdk.Disk](ctx, f.d.conn, engine.Request{
		Op: "list disks of snapshot of VM", Subject: f.vm, Path: snapshotPath(f.vm, val(s.Id())) + "/disks",
	}, "disks", sdk.XMLDiskReadMany)
	if err != nil {
		return err
	}
	f.images = map[string]string{}
	for _, disk := range disks {
		f.images[val(disk.Id())] = val(disk.ImageId())
	}
	f.luns = f.d.onLUNs(ctx, disks)
	return nil
}

func ended(vm string) error {
	return fault.New(fault.Conflict, "take up freeze of VM", vm, "it does not stand any more").Explain(
		"The engine or somebody ended the backup, the snapshot or a transfer meanwhile, so the disks cannot be read as they were.", "Run the backup again.")
}

// stands reports whether the snapshot, or the backup, of a freeze is there and can be read.
func (d *Driver) stands(ctx context.Context, vm string, s hypervisors.Standing) (bool, error) {
	if slices.ContainsFunc(s.Owed, func(o hypervisors.Owed) bool { return o.Kind == kindBackup }) {
		b, err := d.standingBackup(ctx, vm, marker+s.Tag)
		return b != nil && val(b.Phase()) == sdk.BACKUPPHASE_READY, err
	}
	snapshot, err := d.findSnapshot(ctx, vm, marker+s.Tag)
	if engine.Gone(err) {
		return false, nil
	}
	return snapshot != nil && val(snapshot.SnapshotStatus()) == sdk.SNAPSHOTSTATUS_OK, err
}
