package kvm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/hypervisors"
	"libvirt.org/go/libvirtxml"
)

// describeXML turns a domain's XML into the neutral description. Sizes and power are not in it.
func describeXML(x *libvirtxml.Domain) hypervisors.VM {
	vm := hypervisors.VM{
		ID: x.UUID, Name: x.Name, Title: x.Title, Description: x.Description,
		Power: hypervisors.PowerOther, Firmware: hypervisors.BIOS, Disks: []hypervisors.Disk{},
	}
	if x.OS.Type != nil {
		vm.Arch, vm.Machine = x.OS.Type.Arch, machineName(x.OS.Type.Machine)
	}
	describeFirmware(x, &vm)
	if x.VCPU != nil {
		vm.CPUs = int(x.VCPU.Value)
	}
	if x.Memory != nil {
		vm.MemoryBytes = bytesOf(uint64(x.Memory.Value), x.Memory.Unit)
	}
	if x.Metadata != nil {
		m := readMetadata(x.Metadata.XML)
		vm.Tags = m.Tags
		if m.OS != "" {
			vm.Metadata = map[string]string{"os": m.OS}
		}
	}
	// What is plugged into a mover for a while is not part of it.
	x.Devices.Disks = slices.DeleteFunc(x.Devices.Disks, func(disk libvirtxml.DomainDisk) bool { return attachedName(&disk) != "" })
	for i := range x.Devices.Disks {
		vm.Disks = append(vm.Disks, describeDisk(&x.Devices.Disks[i]))
	}
	bootOrder(x, vm.Disks)
	vm.NICs = describeNICs(x)
	for _, ch := range x.Devices.Channels {
		if ch.Target != nil && ch.Target.VirtIO != nil && ch.Target.VirtIO.Name == agentChannel {
			vm.Agent = true
		}
	}
	describeOthers(x, &vm)
	return vm
}

const agentChannel = "org.qemu.guest_agent.0"

// machineName shortens "pc-q35-7.2" to "q35" and "pc-i440fx-7.2" to "pc".
func machineName(m string) string {
	switch {
	case strings.HasPrefix(m, "pc-q35"):
		return "q35"
	case strings.HasPrefix(m, "pc-i440fx"):
		return "pc"
	}
	return m
}

func bytesOf(n uint64, unit string) int64 {
	switch strings.ToLower(unit) {
	case "b", "byte", "bytes":
		return int64(n)
	case "m", "mib":
		return int64(n << 20)
	case "g", "gib":
		return int64(n << 30)
	case "t", "tib":
		return int64(n << 40)
	}
	return int64(n << 10) // libvirt's default is KiB
}

func describeFirmware(x *libvirtxml.Domain, vm *hypervisors.VM) {
	if x.OS.Firmware == "efi" {
		vm.Firmware = hypervisors.UEFI
	}
	if l := x.OS.Loader; l != nil {
		if l.Type == "pflash" {
			vm.Firmware = hypervisors.UEFI
		}
		vm.SecureBoot = l.Secure == "yes"
	}
	vm.NVRAM = nvramPath(x)
}

// nvramPath is where the domain keeps its UEFI variables; empty when it has none or keeps them on the network.
func nvramPath(x *libvirtxml.Domain) string {
	n := x.OS.NVRam
	if n == nil {
		return ""
	}
	if n.Source != nil && n.Source.File != nil {
		return n.Source.File.File
	}
	return strings.TrimSpace(n.NVRam)
}

func describeDisk(x *libvirtxml.DomainDisk) hypervisors.Disk {
	disk := hypervisors.Disk{Kind: hypervisors.KindDisk, Serial: x.Serial, ReadOnly: x.ReadOnly != nil, Shareable: x.Shareable != nil}
	if x.Target != nil {
		disk.ID, disk.Bus = x.Target.Dev, x.Target.Bus
	}
	if x.Driver != nil {
		disk.Format = hypervisors.DiskFormat(x.Driver.Type)
	}
	switch x.Device {
	case "cdrom":
		disk.Kind = hypervisors.KindCDROM
	case "floppy":
		disk.Kind = hypervisors.KindFloppy
	case "lun":
		disk.Kind = hypervisors.KindLUN
	}
	source := "none"
	if s := x.Source; s != nil {
		switch {
		case s.File != nil:
			source, disk.Path = "file", s.File.File
		case s.Block != nil:
			source, disk.Path = "block", s.Block.Dev
		case s.Volume != nil:
			source, disk.Datastore, disk.Chain = "volume", s.Volume.Pool, []string{s.Volume.Volume}
		case s.Network != nil:
			source, disk.Path = "network", s.Network.Protocol+":"+s.Network.Name
		case s.NVME != nil:
			source = "nvme"
		default:
			source = "other"
		}
	}
	for b := x.BackingStore; b != nil && b.Source != nil; b = b.BackingStore {
		switch {
		case b.Source.File != nil:
			disk.Chain = append(disk.Chain, b.Source.File.File)
		case b.Source.Block != nil:
			disk.Chain = append(disk.Chain, b.Source.Block.Dev)
		}
	}
	disk.Unprotectable = unprotectable(x, disk, source)
	return disk
}

// unprotectable says in words why a disk is not backed up.
func unprotectable(x *libvirtxml.DomainDisk, disk hypervisors.Disk, source string) string {
	encrypted := x.Encryption != nil || (x.Source != nil && x.Source.Encryption != nil)
	switch {
	case disk.Kind == hypervisors.KindCDROM:
		return "a CD-ROM holds no data of the VM"
	case disk.Kind == hypervisors.KindFloppy:
		return "floppy disks are not backed up"
	case disk.Kind == hypervisors.KindLUN:
		return "a direct LUN is passed through to the guest, and the host can neither freeze nor read it"
	case disk.ReadOnly:
		return "it is read-only for the VM, so the VM's data is not on it"
	case disk.Shareable:
		return "it is shared between VMs, and freezing one of them does not freeze the disk"
	case x.Transient != nil:
		return "it is transient: its content is thrown away when the VM stops"
	case source == "network":
		return "it lies on network storage (" + disk.Path + "), which this driver cannot restore to"
	case source == "nvme" || source == "other":
		return "it is a device of the host, not an image"
	case source == "none":
		return "it has no image"
	case encrypted:
		return "its image is encrypted by the host, and the key is not known here"
	case disk.Format != hypervisors.Raw && disk.Format != hypervisors.QCOW2:
		return fmt.Sprintf("its image format %q is neither raw nor qcow2", disk.Format)
	}
	return ""
}

// bootOrder numbers the disks that can be booted from: per-device orders, or else the first disk of <os><boot>.
func bootOrder(x *libvirtxml.Domain, disks []hypervisors.Disk) {
	perDevice := false
	for i := range x.Devices.Disks {
		if b := x.Devices.Disks[i].Boot; b != nil {
			disks[i].BootOrder, perDevice = int(b.Order), true
		}
	}
	if perDevice {
		return
	}
	for order, b := range x.OS.BootDevices {
		kind := map[string]hypervisors.DiskKind{"hd": hypervisors.KindDisk, "cdrom": hypervisors.KindCDROM, "fd": hypervisors.KindFloppy}[b.Dev]
		for i := range disks {
			if kind != "" && disks[i].Kind == kind {
				disks[i].BootOrder = order + 1
				break
			}
		}
	}
}

func describeNICs(x *libvirtxml.Domain) []hypervisors.NIC {
	var out []hypervisors.NIC
	for i, n := range x.Devices.Interfaces {
		nic := hypervisors.NIC{ID: fmt.Sprintf("net%d", i), Network: networkName(n.Source)}
		if n.MAC != nil {
			nic.MAC = n.MAC.Address
		}
		if n.Model != nil {
			nic.Model = n.Model.Type
		}
		if n.Boot != nil {
			nic.BootOrder = int(n.Boot.Order)
		}
		if n.Link != nil && n.Link.State == "down" && nic.Network == "null" {
			nic.Network = ""
		}
		out = append(out, nic)
	}
	return out
}

func networkName(s *libvirtxml.DomainInterfaceSource) string {
	switch {
	case s == nil:
		return ""
	case s.Network != nil:
		return "network:" + s.Network.Network
	case s.Bridge != nil:
		return "bridge:" + s.Bridge.Bridge
	case s.Direct != nil:
		return "direct:" + s.Direct.Dev
	case s.User != nil:
		return "user"
	case s.Hostdev != nil:
		return "hostdev"
	case s.Ethernet != nil:
		return "ethernet"
	case s.Null != nil:
		return "null"
	}
	return "other"
}

// describeOthers notes what is part of the VM and not part of a backup.
func describeOthers(x *libvirtxml.Domain, vm *hypervisors.VM) {
	for _, t := range x.Devices.TPMs {
		vm.TPM = "passthrough"
		if t.Backend != nil && t.Backend.Emulator != nil {
			vm.TPM = t.Backend.Emulator.Version
			if vm.TPM == "" {
				vm.TPM = "2.0"
			}
		}
		vm.Notes = append(vm.Notes, "The VM has a TPM; what it keeps there is not backed up, and a restored VM gets an empty one.")
	}
	for i := range x.Devices.Hostdevs {
		vm.Notes = append(vm.Notes, "The VM uses "+hostdevName(&x.Devices.Hostdevs[i])+" of its host directly; its data is not backed up.")
	}
	for range x.Devices.Filesystems {
		vm.Notes = append(vm.Notes, "The VM shares a directory of its host; its content is not backed up.")
	}
	if x.OS.Kernel != "" {
		vm.Notes = append(vm.Notes, "The VM boots a kernel file of its host ("+x.OS.Kernel+"), which is not backed up.")
	}
}

func hostdevName(h *libvirtxml.DomainHostdev) string {
	switch {
	case h.SubsysSCSI != nil, h.SubsysSCSIHost != nil:
		return "a SCSI device (direct LUN)"
	case h.SubsysPCI != nil:
		return "a PCI device"
	case h.SubsysUSB != nil:
		return "a USB device"
	case h.SubsysMDev != nil:
		return "a mediated device"
	}
	return "a device"
}
