// Package lvm2 reads LVM2 volume groups from the devices that hold them, without device-mapper and without lvm2.
//
// It is a reader only. It takes no locks, activates nothing, repairs nothing and has no way to write: devices come in as
// io.ReaderAt. The layout on disk is lvm2's own: a label in one of the first four sectors leads to the physical volume's
// header, that to metadata areas, each of which is a ring buffer holding the volume group as text, with checksums all
// along (lvm2: lib/format_text/layout.h, lib/label/label.h).
//
// Its invariants:
//
//   - The text with the highest sequence number among all devices is the truth. Two texts with one number that differ,
//     and one physical volume found on two devices, are refused, never chosen between.
//   - A logical volume is readable only if every byte of it lies on named places of physical volumes: linear and
//     striped segments. Everything else says why it is not (Volume.Unreadable): mirrors, RAID, thin, caches, parts of
//     other volumes, and the stores of snapshots, whose bytes are not the snapshot's content.
//   - Foreign numbers are checked before they are used, and what is read is bounded by the metadata area and maxText.
package lvm2
