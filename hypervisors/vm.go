package hypervisors

import (
	"strings"
	"time"
)

// Platform is a kind of hypervisor.
type Platform string

// The platforms Cairn knows by name. A platform without a driver in the table of hypervisors/all cannot be connected.
const (
	KVM   Platform = "kvm"
	OVirt Platform = "ovirt" // oVirt, RHV and OLVM
)

// Platforms are all of them.
var Platforms = []Platform{KVM, OVirt}

// Power is the power state of a VM.
type Power string

// The power states; PowerOther is anything a platform reports that is none of the first three.
const (
	PowerOn     Power = "on"
	PowerOff    Power = "off"
	PowerPaused Power = "paused"
	PowerOther  Power = "other"
)

// Powers are all of them.
var Powers = []Power{PowerOn, PowerOff, PowerPaused, PowerOther}

// Firmware of a VM.
type Firmware string

// The firmware kinds.
const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// VM is the platform-neutral description of a virtual machine; it is stored as JSON in every restore point, so
// fields are only ever added. Drivers leave out what they cannot know.
type VM struct {
	ID          string `json:"id"` // the platform's stable identity (KVM, oVirt: a UUID)
	Name        string `json:"name"`
	Title       string `json:"title,omitempty"`
	Description string `json:"description,omitempty"`
	Host        string `json:"host,omitempty"`
	// DataCenter, Cluster and Folder are names of where the VM stands in the platform's own order, "/" between nested
	// folders; "" where the platform has none of that kind (KVM: all three).
	DataCenter  string            `json:"data_center,omitempty"`
	Cluster     string            `json:"cluster,omitempty"`
	Folder      string            `json:"folder,omitempty"`
	Power       Power             `json:"power"`
	Arch        string            `json:"arch,omitempty"`    // "x86_64"
	Machine     string            `json:"machine,omitempty"` // "q35", "pc"
	Firmware    Firmware          `json:"firmware"`
	SecureBoot  bool              `json:"secure_boot,omitempty"`
	NVRAM       string            `json:"nvram,omitempty"` // where the platform keeps the UEFI variables
	TPM         string            `json:"tpm,omitempty"`   // "2.0"; its secrets are not part of a backup
	CPUs        int               `json:"cpus"`
	MemoryBytes int64             `json:"memory_bytes"`
	Disks       []Disk            `json:"disks"`
	NICs        []NIC             `json:"nics,omitempty"`
	Agent       bool              `json:"agent,omitempty"` // a guest agent channel is configured
	Tags        []string          `json:"tags,omitempty"`
	Labels      []string          `json:"labels,omitempty"` // affinity labels: which hosts and VMs it belongs with
	Metadata    map[string]string `json:"metadata,omitempty"`
	Notes       []string          `json:"notes,omitempty"` // what a person should know, in whole sentences
	// Unprotectable says why this VM cannot be backed up at all, whatever its disks; empty means it can. Freeze refuses
	// it as a Conflict with this reason.
	Unprotectable string `json:"unprotectable,omitempty"`
}

// DisksUnprotectable says of each disk that could hold data why it cannot be backed up, if that is so of all of them; "" also for a VM
// without disks.
func (v VM) DisksUnprotectable() string {
	var reasons []string
	for _, d := range v.Disks {
		switch {
		case d.Kind != KindDisk && d.Kind != KindLUN:
		case d.Unprotectable == "":
			return ""
		default:
			reasons = append(reasons, d.ID+": "+d.Unprotectable)
		}
	}
	return strings.Join(reasons, "; ")
}

// DiskKind tells disks from the other things that sit on a disk bus.
type DiskKind string

// The kinds of disk.
const (
	KindDisk   DiskKind = "disk"
	KindCDROM  DiskKind = "cdrom"
	KindFloppy DiskKind = "floppy"
	KindLUN    DiskKind = "lun" // a direct LUN: the platform passes it through and cannot freeze it
)

// DiskFormat is how a platform stores a disk.
type DiskFormat string

// The disk formats.
const (
	Raw   DiskFormat = "raw"
	QCOW2 DiskFormat = "qcow2"
)

// Disk is one disk of a VM. ID is stable within the VM (KVM: the target, "vda"; oVirt: the disk's UUID).
type Disk struct {
	ID        string     `json:"id"`
	Name      string     `json:"name,omitempty"` // what people call it, where that is not the ID (oVirt: the alias)
	Kind      DiskKind   `json:"kind"`
	Bus       string     `json:"bus,omitempty"`
	Format    DiskFormat `json:"format,omitempty"`
	SizeBytes int64      `json:"size_bytes"`
	UsedBytes int64      `json:"used_bytes,omitempty"` // allocated on the datastore
	Datastore string     `json:"datastore,omitempty"`
	Path      string     `json:"path,omitempty"` // where the platform keeps it
	Chain     []string   `json:"chain,omitempty"`
	Serial    string     `json:"serial,omitempty"`
	BootOrder int        `json:"boot_order,omitempty"` // 1 is first, 0 is none
	ReadOnly  bool       `json:"read_only,omitempty"`
	Shareable bool       `json:"shareable,omitempty"`
	// Unprotectable says why this disk cannot be backed up; empty means it can.
	Unprotectable string `json:"unprotectable,omitempty"`
}

// NIC is one network interface. ID is stable within the VM.
type NIC struct {
	ID        string `json:"id"`
	MAC       string `json:"mac"`
	Model     string `json:"model,omitempty"`
	Network   string `json:"network"` // the platform's network name; see Network.Name
	BootOrder int    `json:"boot_order,omitempty"`
}

// Network is something a NIC can be connected to. Name is unique within a connection; KVM writes
// "network:default", "bridge:br0", "user".
type Network struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"`
	Active bool   `json:"active"`
}

// Datastore is the platform's storage, never ours.
type Datastore struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	Kind          string `json:"kind"`           // "dir", "logical", "netfs", …
	Path          string `json:"path,omitempty"` // directory or volume group
	CapacityBytes int64  `json:"capacity_bytes"`
	FreeBytes     int64  `json:"free_bytes"`
	Active        bool   `json:"active"`
}

// Document is one of the platform's own configuration documents, byte for byte ("domain.xml", "nvram.fd").
type Document struct {
	Name      string `json:"name"`
	MediaType string `json:"media_type"`
	Data      []byte `json:"data"`
}

// Checkpoint is a mark in the change history of a VM's disks that this product made.
type Checkpoint struct {
	Name    string    `json:"name"`
	Parent  string    `json:"parent,omitempty"`
	Created time.Time `json:"created"`
	Disks   []string  `json:"disks"`
}
