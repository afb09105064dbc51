//go:build linux

// Package blockdev finds LUNs among this machine's block devices and reads them.
//
// It attaches nothing: that the kernel sees a LUN (iSCSI, Fibre Channel, NVMe/TCP) is the machine's own set-up. It needs
// no udev and no multipath daemon: several devices with one WWN are paths to one LUN, and an error on one is answered by
// the next.
//
// Its invariants:
//
//   - A LUN is found by its WWN alone, never by a device's name; all its paths must agree in size, serial number, model
//     and first bytes, and nothing that they hold may be mounted here or be swap space.
//   - Nothing is ever written: devices are opened O_RDONLY, past the page cache, and there is no function that writes.
//   - A device that does not answer cannot be given up by the kernel: Close makes calls return at once, the kernel's own
//     requests end when they end, and their buffers are never a caller's.
package blockdev
