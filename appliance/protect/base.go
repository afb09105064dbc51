package protect

import (
	"context"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// base is what an incremental backup builds on: the last durable restore point and its checkpoint.
type base struct {
	since  string                    // checkpoint; "" asks for full reads
	images map[string]store.ImageRef // by disk
	reason string                    // why there is no base, in words; "" when none was wanted
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
		return base{reason: "the last backup left no checkpoint"}, nil
	case newest.VerifyResult == catalog.VerifyDamaged:
		return base{reason: "the last restore point is damaged"}, nil
	}
	point, err := b.repo.RestorePoint(ctx, newest.ID)
	if err != nil {
		return base{reason: "the last restore point cannot be read: " + err.Error()}, nil
	}
	out := base{since: newest.Checkpoint, images: make(map[string]store.ImageRef, len(point.Images))}
	for _, img := range point.Images {
		out.images[img.Name] = img.Ref
	}
	return out, nil
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
	case parent.SizeBytes != d.Export.SizeBytes:
		p.reason = "the size of the disk has changed"
	default:
		p.mode, p.parent = catalog.Incremental, &parent
		return p
	}
	p.export.DirtyContext = ""
	return p
}
