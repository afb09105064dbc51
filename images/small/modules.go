package small

// devices are the drivers that a device's own name (its modalias) makes load, on every platform that Cairn knows.
var devices = []string{
	"virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "virtio_console", "virtio_rng", // KVM, oVirt
	"ahci", "ata_piix", "nvme", "e1000", "e1000e", // what any platform may emulate; CD drives of seeds
	"vmw_pvscsi", "vmxnet3", "mptspi", "mptsas", // VMware
	"hv_storvsc", "hv_netvsc", "hv_utils", "hyperv_keyboard", "hid_hyperv", // Hyper-V
	"crc32c_intel", "crc32_pclmul",
}

// always are loaded at every boot: what no device asks for, and what a seed is read with.
var always = []string{
	"sd_mod", "sr_mod", "isofs", "vfat", "nls_cp437", "nls_ascii", "nls_utf8", "crc32c_generic", "button", "evdev", "qemu_fw_cfg",
}

// onDemand are loaded when a task needs them: a repository on a LUN or on NFS, and LUNs of the platform.
var onDemand = []string{"ext4", "xfs", "nfsv4", "iscsi_tcp", "nvme_tcp", "scsi_dh_alua"}

// Nothing here makes the kernel look at what disks contain: no md, no device mapper, no multipath.
