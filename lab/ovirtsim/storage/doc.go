// Package storage is the storage of a simulated oVirt site: disks as chains of volumes in real raw and qcow2 files, held open by one
// real qemu-storage-daemon, so that snapshots, merges, dirty bitmaps and backups are QEMU's own.
//
// It knows nothing of VMs, snapshots' names, locks or HTTP: the engine half of the simulator says which ids to use and what is
// allowed when. It forgets its disks when it is closed; the files are of no use without it.
//
// Its invariant: a volume that has another one on top, and a disk in a backup, never change while they are read. What a guest has
// written and flushed is in the file, whatever happens to the daemon.
//
// A disk is made of volumes. One is active: the guest reads and writes it. A snapshot puts a new volume on top, which then is the
// active one; the one below is frozen and keeps its id. Merging a frozen volume moves the content of the one above into it and
// removes that one: the frozen volume's id survives, as on oVirt. A checkpoint is a persistent dirty bitmap of the same name in
// every volume from the one that was active when it was made, and only qcow2 volumes can have one.
package storage
