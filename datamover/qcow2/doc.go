// Package qcow2 reads the content of qcow2 images, versions 2 and 3, with their backing chains, without QEMU.
//
// It is a reader only, of images that nobody writes to meanwhile: it takes no locks, repairs nothing, replays nothing,
// and ignores internal snapshots. (The writer of exported images is cmd/cairn/internal/qcow2: one fixed geometry, of the
// command line alone. The two share no code but the header's magic number.) What it knows of the format it has from
// QEMU's docs/interop/qcow2.txt.
//
// Its invariants:
//
//   - A name inside an image is never opened. Backing layers come from the caller, with a format the caller knows; the
//     image's own words are only compared with it. Nothing is probed: a guest can write any header into a raw disk.
//   - What is not understood is refused in words and never read as something else: unknown incompatible features,
//     external data files, encryption, a corrupt mark.
//   - Foreign numbers are checked before they are used; memory is bounded by CacheBytes, one cluster for each reader of
//     compressed data, and the part of the L1 table that the virtual size needs (at most 32 MiB).
package qcow2
