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
	"sd_mod", "sr_mod", "isofs", "vfat", "nls_cp437", "nls_ascii", "nls_utf8", "crc32c_generic", "button", "evdev", "qemu_fw_cfg", "scsi_dh_alua",
}

// onDemand are loaded by the mover itself when it needs them: its state. Repositories on file systems that must be mounted, and
// LUNs that must be logged in to, are for the Debian mover, which has the tools for it.
var onDemand = []string{"ext4"}

// Nothing here makes the kernel look at what disks contain: no md, no device mapper, no multipath.
