package ovirt

import (
	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/internal/fault"
)

// The documents that are sent. Text goes through text, ids and numbers need not: see there.

// built ends a chain of the SDK's builders; they fail only on nil.
func built[T any](v T, err error) (T, error) {
	if err != nil {
		return v, fault.Wrap(fault.Internal, "write request", "", err)
	}
	return v, nil
}

// snapshotDocument asks for a snapshot of disks without the memory: with it, the VM would stand still while the memory
// is written.
func snapshotDocument(description string, disks []string) ([]byte, error) {
	b := sdk.NewSnapshotBuilder().Description(text(description)).PersistMemorystate(false)
	var attachments []*sdk.DiskAttachment
	for _, id := range disks {
		a, err := built(sdk.NewDiskAttachmentBuilder().DiskBuilder(sdk.NewDiskBuilder().Id(id)).Build())
		if err != nil {
			return nil, err
		}
		attachments = append(attachments, a)
	}
	s, err := built(b.DiskAttachmentsOfAny(attachments...).Build())
	if err != nil {
		return nil, err
	}
	return encode(s, sdk.XMLSnapshotWriteOne)
}

// backupDocument asks for a backup since a checkpoint; "" is a full one.
func backupDocument(description string, disks []string, from string) ([]byte, error) {
	b := sdk.NewBackupBuilder().Description(text(description))
	if from != "" {
		b = b.FromCheckpointId(from)
	}
	var all []*sdk.Disk
	for _, id := range disks {
		disk, err := built(sdk.NewDiskBuilder().Id(id).Build())
		if err != nil {
			return nil, err
		}
		all = append(all, disk)
	}
	x, err := built(b.DisksOfAny(all...).Build())
	if err != nil {
		return nil, err
	}
	return encode(x, sdk.XMLBackupWriteOne)
}

// transferSpec says what an image transfer is of.
type transferSpec struct {
	disk   string
	image  string // download of a snapshot's disk: the id of its volume
	backup string // download in a backup
	upload bool
}

// transferDocument asks for an image transfer of what the disk holds, not of its file: "raw" lets the engine put a server
// before the image that knows its format.
func transferDocument(t transferSpec, idle int64) ([]byte, error) {
	b := sdk.NewImageTransferBuilder().Format(sdk.DISKFORMAT_RAW).InactivityTimeout(idle).Direction(sdk.IMAGETRANSFERDIRECTION_DOWNLOAD).
		TimeoutPolicy(sdk.IMAGETRANSFERTIMEOUTPOLICY_CANCEL)
	switch {
	case t.upload:
		// A paused upload keeps its disk; one that is cancelled has none any more.
		b = b.Direction(sdk.IMAGETRANSFERDIRECTION_UPLOAD).TimeoutPolicy(sdk.IMAGETRANSFERTIMEOUTPOLICY_PAUSE).DiskBuilder(sdk.NewDiskBuilder().Id(t.disk))
	case t.backup != "":
		b = b.DiskBuilder(sdk.NewDiskBuilder().Id(t.disk)).BackupBuilder(sdk.NewBackupBuilder().Id(t.backup))
	default:
		b = b.SnapshotBuilder(sdk.NewDiskSnapshotBuilder().Id(t.image))
	}
	x, err := built(b.Build())
	if err != nil {
		return nil, err
	}
	return encode(x, sdk.XMLImageTransferWriteOne)
}

// attachmentSpec is how a disk is attached to a VM.
type attachmentSpec struct {
	disk, snapshot         string // snapshot: the disk as it was then; "" is the disk itself
	bus                    sdk.DiskInterface
	readOnly, boot, active bool
	passDiscard            bool
}

// attachmentDocument asks for a disk to be attached. What it says of active is always said: the default differs between
// engines.
func attachmentDocument(a attachmentSpec) ([]byte, error) {
	disk := sdk.NewDiskBuilder().Id(a.disk)
	if a.snapshot != "" {
		disk = disk.SnapshotBuilder(sdk.NewSnapshotBuilder().Id(a.snapshot))
	}
	b := sdk.NewDiskAttachmentBuilder().Active(a.active).Bootable(a.boot).Interface(a.bus).DiskBuilder(disk)
	if a.readOnly {
		b = b.ReadOnly(true)
	}
	if a.passDiscard {
		b = b.PassDiscard(true)
	}
	x, err := built(b.Build())
	if err != nil {
		return nil, err
	}
	return encode(x, sdk.XMLDiskAttachmentWriteOne)
}
