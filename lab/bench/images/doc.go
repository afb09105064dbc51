// Package images makes disk images of machines that live for some days: real Debian file systems, changed day after
// day on a mounted ext4 as such machines change, with the changed extents that a hypervisor's change tracking would
// have named.
//
// It boots nothing: packages are what mmdebstrap installs, everything else is made up from a seed. Its invariants: a
// day's extents cover every byte in which an image differs from the day before; nothing is written outside the
// mounted file system; whatever was mounted is unmounted, on failure too.
package images
