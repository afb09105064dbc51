// Package blockdomain says where a disk lies on an oVirt storage domain of LUNs, for a mover that reads it from there.
//
// It asks nobody: the driver has the ids from the engine. What it makes holds for frozen volumes only; the mover compares
// it with what vdsm has written into the domain's LVM metadata, and reads nothing if one of the two is wrong.
//
// Its invariant: the active volume of a disk, which its VM writes, is never a layer of what it makes.
//
// The facts are vdsm's: a block domain is an LVM group whose name is the domain's id; each volume of an image is an LV whose
// name is the volume's id, with the tags IU_<image id>, PU_<id of the volume below, or zeros> and, until it is complete,
// OVIRT_VOL_INITIALIZING. A volume that is to be deleted has another name. A qcow2 volume calls the one below it by its id.
package blockdomain

import (
	"strings"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Domain is a storage domain of iSCSI or Fibre Channel LUNs.
type Domain struct {
	ID string // the storage domain's
	// GroupUUID is the LVM group's own UUID, which the engine calls the id of the domain's volume group; "" is not known.
	GroupUUID string
	LUNs      []hypervisors.LUN // all of the group, by the ids of its logical units
}

// Volume is one volume of a disk.
type Volume struct {
	ID string // the engine calls it image_id, and the id of a disk snapshot
	// Disk is the id of the disk that it is of: for the volumes below a disk made from a template the template's.
	Disk   string
	Format hypervisors.DiskFormat
}

const (
	noParent     = "00000000-0000-0000-0000-000000000000"
	initializing = "OVIRT_VOL_INITIALIZING"
)

// SAN makes an export's SAN of a disk's frozen volumes, the one to be read first and then each below it down to the last. active is the
// id of the disk's active volume.
func SAN(d Domain, chain []Volume, active string) (*hypervisors.SAN, error) {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "describe disk on storage domain", d.ID, format, args...)
	}
	if !goodID(d.ID) || len(d.LUNs) == 0 || len(chain) == 0 || !goodID(active) {
		return nil, bad("no id, no LUNs, no volumes, or no active volume")
	}
	out := &hypervisors.SAN{LUNs: d.LUNs, GroupUUID: d.GroupUUID, Group: d.ID}
	seen := map[string]bool{active: true}
	for i, v := range chain {
		below, last := noParent, i == len(chain)-1
		if !last {
			below = chain[i+1].ID
		}
		switch {
		case !goodID(v.ID) || !goodID(v.Disk):
			return nil, bad("volume %q of disk %q", v.ID, v.Disk)
		case v.ID == active:
			return nil, fault.New(fault.Conflict, "describe disk on storage domain", d.ID, "volume %s is the active one", v.ID).Explain(
				"The volume is written by the VM, so that it cannot be read from the storage.", "Back up a snapshot of the disk, or use another transport.")
		case seen[v.ID]:
			return nil, bad("volume %s twice", v.ID)
		case v.Format == hypervisors.Raw && !last, v.Format != hypervisors.Raw && v.Format != hypervisors.QCOW2:
			return nil, bad("volume %s is of format %q", v.ID, v.Format)
		}
		seen[v.ID] = true
		l := hypervisors.SANLayer{
			VolumeName: v.ID, Format: v.Format, Tags: []string{"IU_" + v.Disk, "PU_" + below}, NotTags: []string{initializing}, FrozenBy: "PU_" + v.ID,
		}
		if i > 0 {
			l.Name = v.ID
		}
		out.Layers = append(out.Layers, l)
	}
	return out, nil
}

// goodID holds an id to the form of oVirt's.
func goodID(s string) bool {
	return len(s) == len(noParent) && strings.IndexFunc(s, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'f')
	}) < 0
}
