//go:build linux

// Package hotadd opens disks that the platform has hot-plugged into the VM this mover runs in: frozen disks for
// reading, new disks for writing.
//
// It finds a disk by the serial number that the manager chose for it and by nothing else. It plugs nothing in, which is
// the driver's work, knows no platform, and needs no udev.
//
// Its invariant: it opens a disk only if exactly one of the guest's has the serial, its size is the one that was
// announced, and nothing in the guest uses it; what it reads and writes passes by the page cache. Partitions on the
// disk are left alone.
//
// A disk whose host does not answer cannot be given up by the kernel: Close makes calls return at once, and waits itself
// for the kernel's own requests, which end when the disk answers or is unplugged: a late write must not reach a disk that
// is plugged in next, or one that goes to somebody else. Their buffers are never a caller's.
package hotadd
