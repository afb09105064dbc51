package ovirt

import (
	"cmp"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
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
	b := sdk.NewSnapshotBuilder().Description(apixml.Text(description)).PersistMemorystate(false)
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
	return apixml.Encode(s, sdk.XMLSnapshotWriteOne)
}

// backupDocument asks for a backup since a checkpoint; "" is a full one.
func backupDocument(description string, disks []string, from string) ([]byte, error) {
	b := sdk.NewBackupBuilder().Description(apixml.Text(description))
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
	return apixml.Encode(x, sdk.XMLBackupWriteOne)
}

// transferSpec says what an image transfer is of.
type transferSpec struct {
	disk   string
	image  string // download of a snapshot's disk: the id of its volume
	backup string // download in a backup
	upload bool
	file   sdk.DiskFormat // of the file that is uploaded; "" is what the disk holds
}

// transferDocument asks for an image transfer of what the disk holds, not of its file: "raw" lets the engine put a server
// before the image that knows its format.
func transferDocument(t transferSpec, idle int64) ([]byte, error) {
	b := sdk.NewImageTransferBuilder().Format(sdk.DISKFORMAT_RAW).InactivityTimeout(idle).Direction(sdk.IMAGETRANSFERDIRECTION_DOWNLOAD).
		TimeoutPolicy(sdk.IMAGETRANSFERTIMEOUTPOLICY_CANCEL)
	switch {
	case t.upload && t.file != "":
		b = b.Format(t.file).Direction(sdk.IMAGETRANSFERDIRECTION_UPLOAD).DiskBuilder(sdk.NewDiskBuilder().Id(t.disk))
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
	return apixml.Encode(x, sdk.XMLImageTransferWriteOne)
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
	return apixml.Encode(x, sdk.XMLDiskAttachmentWriteOne)
}

// diskDocument asks for an empty disk.
func diskDocument(p plannedDisk) ([]byte, error) {
	b := sdk.NewDiskBuilder().Alias(apixml.Text(p.alias)).Format(p.format).Sparse(p.sparse).ProvisionedSize(p.size).ContentType(sdk.DISKCONTENTTYPE_DATA)
	if p.initial > 0 {
		b = b.InitialSize(p.initial)
	}
	if p.tracked {
		b = b.Backup(sdk.DISKBACKUP_INCREMENTAL)
	}
	s, err := built(sdk.NewStorageDomainBuilder().Id(p.store.ID).Build())
	if err != nil {
		return nil, err
	}
	x, err := built(b.StorageDomainsOfAny(s).Build())
	if err != nil {
		return nil, err
	}
	return apixml.Encode(x, sdk.XMLDiskWriteOne)
}

// nicDocument asks for a NIC. Without an address the engine's pool gives one.
func nicDocument(p plannedNIC) ([]byte, error) {
	b := sdk.NewNicBuilder().Name(apixml.Text(p.name)).Linked(p.linked).Plugged(p.plugged).Interface(sdk.NICINTERFACE_VIRTIO)
	switch model := sdk.NicInterface(p.model); model {
	case sdk.NICINTERFACE_E1000, sdk.NICINTERFACE_RTL8139, sdk.NICINTERFACE_SPAPR_VLAN:
		b = b.Interface(model)
	}
	if p.mac != "" {
		b = b.MacBuilder(sdk.NewMacBuilder().Address(apixml.Text(p.mac)))
	}
	if p.profile != "" {
		b = b.VnicProfileBuilder(sdk.NewVnicProfileBuilder().Id(p.profile))
	}
	x, err := built(b.Build())
	if err != nil {
		return nil, err
	}
	return apixml.Encode(x, sdk.XMLNicWriteOne)
}

// importDocument asks for a VM of an OVF.
func importDocument(name, cluster, ovf string) ([]byte, error) {
	c := sdk.NewConfigurationBuilder().Type(sdk.CONFIGURATIONTYPE_OVF).Data(apixml.Text(ovf))
	x, err := built(sdk.NewVmBuilder().Name(apixml.Text(name)).ClusterBuilder(sdk.NewClusterBuilder().Id(cluster)).
		InitializationBuilder(sdk.NewInitializationBuilder().RegenerateIds(true).ConfigurationBuilder(c)).Build())
	if err != nil {
		return nil, err
	}
	return apixml.Encode(x, sdk.XMLVmWriteOne)
}

// vmDocument asks for a VM by what is known of it without an OVF, also of another platform's.
func vmDocument(req hypervisors.RestoreRequest, p *restorePlan) ([]byte, error) {
	vm := req.VM
	topology := sdk.NewCpuTopologyBuilder().Sockets(int64(max(1, vm.CPUs))).Cores(1).Threads(1)
	b := sdk.NewVmBuilder().Name(apixml.Text(req.Name)).Comment(apixml.Text(restoreComment + req.Tag)).Description(apixml.Text(vm.Description)).
		ClusterBuilder(sdk.NewClusterBuilder().Id(p.cluster.id)).TemplateBuilder(sdk.NewTemplateBuilder().Id(blankTemplate)).
		Memory(max(vm.MemoryBytes, 1<<20)).BiosBuilder(sdk.NewBiosBuilder().Type(biosOf(vm)))
	os := sdk.NewOperatingSystemBuilder().Type(apixml.Text(cmp.Or(vm.Metadata["os"], "other")))
	if x := p.source; x != nil {
		if cpu, ok := x.Cpu(); ok {
			if t, ok := cpu.Topology(); ok && val(t.Sockets()) > 0 && val(t.Cores()) > 0 {
				topology = sdk.NewCpuTopologyBuilder().Sockets(val(t.Sockets())).Cores(val(t.Cores())).Threads(max(1, val(t.Threads())))
			}
		}
		if ha, ok := x.HighAvailability(); ok {
			b = b.HighAvailabilityBuilder(sdk.NewHighAvailabilityBuilder().Enabled(val(ha.Enabled())).Priority(val(ha.Priority())))
		}
		if zone, ok := x.TimeZone(); ok && val(zone.Name()) != "" {
			b = b.TimeZoneBuilder(sdk.NewTimeZoneBuilder().Name(apixml.Text(val(zone.Name()))))
		}
	} else {
		os = sdk.NewOperatingSystemBuilder().Type("other") // other platforms have other names for systems
	}
	x, err := built(b.OsBuilder(os).CpuBuilder(sdk.NewCpuBuilder().TopologyBuilder(topology)).Build())
	if err != nil {
		return nil, err
	}
	return apixml.Encode(x, sdk.XMLVmWriteOne)
}

func biosOf(vm hypervisors.VM) sdk.BiosType {
	switch {
	case vm.SecureBoot:
		return sdk.BIOSTYPE_Q35_SECURE_BOOT
	case vm.Firmware == hypervisors.UEFI:
		return sdk.BIOSTYPE_Q35_OVMF
	case vm.Machine == "pc":
		return sdk.BIOSTYPE_I440FX_SEA_BIOS
	}
	return sdk.BIOSTYPE_Q35_SEA_BIOS
}

// moverDocument asks for a mover's VM, which is pinned to no host but keeps its disks: it needs a VirtIO-SCSI controller.
func moverDocument(p moverPlan, comment string) ([]byte, error) {
	x, err := built(sdk.NewVmBuilder().Name(apixml.Text(p.name)).Comment(apixml.Text(comment)).Description("DataMover of Cairn").
		ClusterBuilder(sdk.NewClusterBuilder().Id(p.cluster.id)).TemplateBuilder(sdk.NewTemplateBuilder().Id(blankTemplate)).
		Memory(p.memory).BiosBuilder(sdk.NewBiosBuilder().Type(sdk.BIOSTYPE_Q35_SEA_BIOS)).VirtioScsiBuilder(sdk.NewVirtioScsiBuilder().Enabled(true)).
		OsBuilder(sdk.NewOperatingSystemBuilder().Type("other_linux").BootBuilder(sdk.NewBootBuilder().DevicesOfAny(sdk.BOOTDEVICE_HD))).
		CpuBuilder(sdk.NewCpuBuilder().TopologyBuilder(sdk.NewCpuTopologyBuilder().Sockets(int64(p.cpus)).Cores(1).Threads(1))).Build())
	if err != nil {
		return nil, err
	}
	return apixml.Encode(x, sdk.XMLVmWriteOne)
}
