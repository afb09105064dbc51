package protect

import (
	"context"
	"encoding/json"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// base is what an incremental backup builds on: a checkpoint and the durable restore point that shows the disks at it.
// That is not always the newest one: a backup of a VM that is off may keep the checkpoint of an earlier one. What was
// written between the two is in the newest, but an image that was put back meanwhile may not know of it any more.
type base struct {
	since  string                    // checkpoint; "" asks for full reads
	point  string                    // the restore point that shows the disks at the checkpoint
	images map[string]store.ImageRef // by disk
	reason string                    // why there is no base, in words; "" when none was wanted
	full   map[string]string         // by disk: why its image cannot be built on, in words
}

// findBase looks for a base. The newest restore point of the VM in any repository decides, because the platform keeps
// the checkpoint of that one only.
func (b *backup) findBase(ctx context.Context) (base, error) {
	if b.spec.Full {
		return base{}, nil
	}
	newest, err := b.catalog.NewestRestorePoint(ctx, b.vm.ID, "")
	switch {
	case err != nil && fault.KindOf(err) == fault.NotFound:
		return base{reason: "the first backup of this VM"}, nil
	case err != nil:
		return base{}, err
	case newest.RepositoryID != b.spec.RepositoryID:
		return base{reason: "the last backup of this VM went to another repository"}, nil
	case newest.Checkpoint == "":
		return base{reason: "there is no checkpoint to start from: the last backup left none, or the disks were restored since"}, nil
	case newest.VerifyResult == catalog.VerifyDamaged:
		return base{reason: "the last restore point is damaged"}, nil
	}
	point, err := b.repo.RestorePoint(ctx, newest.ID)
	if err == nil {
		point, err = b.atCheckpoint(ctx, point)
	}
	if err != nil {
		return base{reason: "the restore point to build on cannot be read: " + err.Error()}, nil
	}
	if row, err := b.catalog.RestorePoint(ctx, point.ID); err == nil && row.VerifyResult == catalog.VerifyDamaged {
		return base{reason: "the restore point to build on is damaged"}, nil
	}
	out := base{since: newest.Checkpoint, point: point.ID, images: make(map[string]store.ImageRef, len(point.Images)), full: map[string]string{}}
	for _, img := range point.Images {
		out.images[img.Name] = img.Ref
		// What an incremental takes over is not read again: it must not be taken from where damage is known.
		needed, reason, err := b.repo.NeedsFullRead(ctx, img.Ref)
		if err != nil {
			return base{}, fault.Context("look for damage in the base of disk", img.Name, err)
		}
		if needed {
			out.full[img.Name] = reason
		}
	}
	return out, nil
}

// atCheckpoint returns the restore point that was made together with the checkpoint of a restore point.
func (b *backup) atCheckpoint(ctx context.Context, point store.RestorePoint) (store.RestorePoint, error) {
	var meta pointMeta
	if err := json.Unmarshal(point.Meta, &meta); err != nil {
		return point, fault.Wrap(fault.Unsupported, "read restore point", point.ID, err)
	}
	if meta.CheckpointOf == "" {
		return point, nil
	}
	return b.repo.RestorePoint(ctx, meta.CheckpointOf)
}

// checkpointOf names the restore point that a freeze's checkpoint was made with; "" is the one that is being made.
func (b base) checkpointOf(checkpoint string) string {
	if checkpoint == "" || checkpoint != b.since {
		return ""
	}
	return b.point
}

// diskPlan says how one disk is read.
type diskPlan struct {
	mode   string
	reason string
	export hypervisors.Export
	parent *store.ImageRef
}

// plan decides how a disk is read. Only a disk that the driver tracks since the base's checkpoint, that is in the base
// and that has kept its size is read incrementally.
func (b base) plan(d hypervisors.FrozenDiskInfo) diskPlan {
	p := diskPlan{mode: catalog.Full, export: d.Export}
	parent, known := b.images[d.Disk.ID]
	switch {
	case b.since == "":
		p.reason = b.reason
	case d.FullReason != "":
		p.reason = d.FullReason
	case d.Export.DirtyContext == "":
		p.reason = "the platform does not track changes of this disk"
	case !known:
		p.reason = "the last restore point does not have this disk"
	case b.full[d.Disk.ID] != "":
		p.reason = b.full[d.Disk.ID]
	case parent.SizeBytes != d.Export.SizeBytes:
		p.reason = "the size of the disk has changed"
	default:
		p.mode, p.parent = catalog.Incremental, &parent
		return p
	}
	p.export.DirtyContext = ""
	return p
}
