//go:build linux

// Package santransport reads frozen disks straight from the platform's LUNs, so that neither a hypervisor host nor the
// LAN carries their data: LUN -> LVM volume -> raw content or qcow2 chain, each by a reader of our own (packages
// blockdev, lvm2, qcow2).
//
// It is for reading only and attaches no LUN. It freezes nothing either: the driver has made a snapshot, and the layers
// that the export names are those below it.
//
// Its invariants:
//
//   - Nothing on a platform's LUN is written or activated, and no lock of the platform's is taken.
//   - What is opened is what the export names: LUNs by WWN, the group by UUID, its volumes by UUID or, where the platform
//     knows no UUIDs, by name and tags, layers by their order. A name found in metadata or in an image is compared, never
//     followed.
//   - A disk counts as read only after Confirm: the metadata is read again, and a change of a volume that was read fails
//     the transfer. The group's sequence number alone may change; other volumes are no concern of ours.
package santransport
