package kvm

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirtxml"
)

// newDomain returns the XML of the new VM: the stored one, with an identity of its own, the new disks, and nothing
// that two VMs cannot share. It also returns notes on what is different.
func (p *restorePlan) newDomain(req hypervisors.RestoreRequest) (string, []string, error) {
	x := p.domain
	notes := append([]string{}, p.notes...)
	x.ID, x.Name, x.UUID, x.GenID = nil, req.Name, p.uuid, nil
	inner := ""
	if x.Metadata != nil {
		inner = withoutRestored(x.Metadata.XML)
	}
	x.Metadata = &libvirtxml.DomainMetadata{XML: inner + restoredMetadata(req.Tag)}
	for i := range x.SysInfo {
		if s := x.SysInfo[i].SMBIOS; s != nil && s.System != nil {
			for j := range s.System.Entry {
				if s.System.Entry[j].Name == "uuid" {
					s.System.Entry[j].Value = p.uuid
				}
			}
		}
	}
	notes = append(notes, p.putDisks(x)...)
	notes = append(notes, p.putNetworks(x, req)...)
	notes = append(notes, p.dropShared(x, req.Name)...)
	setNVRAM(x, p.nvram)
	if x.OS.NVRam != nil && p.nvram == "" {
		x.OS.NVRam = &libvirtxml.DomainNVRam{Template: x.OS.NVRam.Template}
		notes = append(notes, "The restore point has no UEFI variables; the VM starts with fresh ones.")
	}
	doc, err := x.Marshal()
	if err != nil {
		return "", nil, fault.Wrap(fault.Internal, "write domain XML of", req.Name, err)
	}
	return doc, notes, nil
}

func setNVRAM(x *libvirtxml.Domain, path string) {
	if path == "" {
		return
	}
	n := &libvirtxml.DomainNVRam{NVRam: path}
	if x.OS.NVRam != nil {
		n.Template = x.OS.NVRam.Template
	}
	x.OS.NVRam = n
}

// putDisks puts the new volumes in the place of the old ones and drops what cannot come along.
func (p *restorePlan) putDisks(x *libvirtxml.Domain) []string {
	var notes []string
	var keep []libvirtxml.DomainDisk
	for i := range x.Devices.Disks {
		disk := x.Devices.Disks[i]
		desc := describeDisk(&disk)
		switch planned := p.disk(desc.ID); {
		case planned != nil:
			planned.replace(&disk)
			keep = append(keep, disk)
		case desc.Kind == hypervisors.KindCDROM || desc.Kind == hypervisors.KindFloppy:
			if desc.Path != "" && !exists(desc.Path) {
				disk.Source, disk.BackingStore = nil, nil
				notes = append(notes, fmt.Sprintf("The medium of %s (%s) is not on this host; the drive is empty.", desc.ID, desc.Path))
			}
			keep = append(keep, disk)
		case desc.Unprotectable != "":
			notes = append(notes, fmt.Sprintf("The disk %s is not part of the restored VM: %s.", desc.ID, desc.Unprotectable))
		default:
			notes = append(notes, fmt.Sprintf("The disk %s is not part of the restored VM: it was not restored.", desc.ID))
		}
	}
	x.Devices.Disks = keep
	return notes
}

// exists looks for a medium; on another host it cannot be seen here, and the drive becomes empty.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (p *restorePlan) disk(id string) *plannedDisk {
	for i := range p.disks {
		if p.disks[i].id == id {
			return &p.disks[i]
		}
	}
	return nil
}

// replace points a disk at its new volume.
func (disk *plannedDisk) replace(x *libvirtxml.DomainDisk) {
	x.Source, x.BackingStore, x.Mirror, x.Encryption = disk.source(), nil, nil, nil
	if x.Driver == nil {
		x.Driver = &libvirtxml.DomainDiskDriver{Name: "qemu"}
	}
	x.Driver.Type = string(disk.format)
}

// putNetworks connects the NICs as asked. Addresses of the hardware are new unless they are to be kept.
func (p *restorePlan) putNetworks(x *libvirtxml.Domain, req hypervisors.RestoreRequest) []string {
	var notes []string
	var keep []libvirtxml.DomainInterface
	for i := range x.Devices.Interfaces {
		nic := x.Devices.Interfaces[i]
		from := networkName(nic.Source)
		to := mapped(req, from)
		if !req.KeepMACs {
			nic.MAC = nil
		}
		nic.Target = nil
		switch {
		case from == "hostdev":
			notes = append(notes, "A NIC that is a device of the original host is not part of the restored VM.")
			continue
		case to == "":
			// A NIC that is connected to nothing: user networking with its link down.
			nic.Source, nic.VirtualPort, nic.Backend, nic.FilterRef = &libvirtxml.DomainInterfaceSource{User: &libvirtxml.DomainInterfaceSourceUser{}}, nil, nil, nil
			nic.Link = &libvirtxml.DomainInterfaceLink{State: "down"}
			notes = append(notes, fmt.Sprintf("The NIC that was on %s is disconnected.", from))
		case to != from:
			if source, err := parseNetwork(to); err == nil {
				nic.Source, nic.VirtualPort = source, nil
			}
		}
		keep = append(keep, nic)
	}
	x.Devices.Interfaces = keep
	return notes
}

// dropShared takes away what two VMs cannot have at once, for the original may be running beside the new one.
func (p *restorePlan) dropShared(x *libvirtxml.Domain, name string) []string {
	var notes []string
	for i := range x.Devices.Hostdevs {
		notes = append(notes, "The restored VM does not get "+hostdevName(&x.Devices.Hostdevs[i])+" of the original's host.")
	}
	x.Devices.Hostdevs = nil
	for i := range x.Devices.Channels {
		if s := x.Devices.Channels[i].Source; s != nil && s.UNIX != nil && s.UNIX.Mode != "connect" {
			s.UNIX.Path = "" // libvirt chooses one
		}
	}
	for i := range x.Devices.Serials {
		renameOutput(x.Devices.Serials[i].Source, name)
	}
	for i := range x.Devices.Consoles {
		renameOutput(x.Devices.Consoles[i].Source, name)
	}
	for i := range x.Devices.Graphics {
		if v := x.Devices.Graphics[i].VNC; v != nil && v.AutoPort != "yes" && v.Port > 0 {
			v.Port, v.WebSocket, v.AutoPort = -1, 0, "yes"
		}
		if s := x.Devices.Graphics[i].Spice; s != nil && s.AutoPort != "yes" && (s.Port > 0 || s.TLSPort > 0) {
			s.Port, s.TLSPort, s.AutoPort = -1, 0, "yes"
		}
	}
	return notes
}

// renameOutput gives the file a serial port is written to the new VM's name: "<dir>/<new name>-<file>".
func renameOutput(s *libvirtxml.DomainChardevSource, name string) {
	if s != nil && s.File != nil && s.File.Path != "" {
		s.File.Path = filepath.Join(filepath.Dir(s.File.Path), name+"-"+filepath.Base(s.File.Path))
	}
}

// replacesAll says whether a VM keeps none of the disks that it could be backed up with.
func (p *restorePlan) replacesAll() bool {
	return !slices.ContainsFunc(p.domain.Devices.Disks, func(x libvirtxml.DomainDisk) bool {
		disk := describeDisk(&x)
		return disk.Unprotectable == "" && p.disk(disk.ID) == nil
	})
}

// switched returns the original's XML with its new disks, and the owed removal of the old ones.
func (p *restorePlan) switched(req hypervisors.RestoreRequest) ([]hypervisors.Owed, string, error) {
	x := p.domain
	var old []hypervisors.Owed
	for i := range x.Devices.Disks {
		disk := &x.Devices.Disks[i]
		desc := describeDisk(disk)
		planned := p.disk(desc.ID)
		if planned == nil {
			continue
		}
		o := hypervisors.Owed{
			Kind: kindReplaced, VM: p.uuid, Name: desc.Path,
			Args: map[string]string{"disk": desc.ID, "new": planned.path},
		}
		if desc.Path == "" && len(desc.Chain) == 1 {
			o.Name = desc.Chain[0]
			o.Args["pool"] = desc.Datastore
		}
		old = append(old, o)
		planned.replace(disk)
	}
	if p.nvram != "" {
		if was := nvramPath(x); was != "" && strings.HasPrefix(filepath.Base(was), marker) {
			old = append(old, hypervisors.Owed{Kind: kindNVRAM, VM: p.uuid, Name: was})
		}
		setNVRAM(x, p.nvram)
	}
	x.ID = nil
	doc, err := x.Marshal()
	if err != nil {
		return nil, "", fault.Wrap(fault.Internal, "write domain XML of", req.VM.Name, err)
	}
	return old, doc, nil
}
