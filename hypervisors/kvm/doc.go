// Package kvm is the driver for KVM hosts run by libvirt.
//
// It reads disks of running VMs by libvirt's pull backups (no snapshot, nothing to merge), and those of stopped VMs
// and of restores through a helper: a transient domain of ours that never runs a guest and only serves NBD. It moves
// no disk data itself; movers do, over the exports it opens.
//
// Its invariant: whatever it makes on a host has "cairn-"+tag in its name and is owed (FreezeRequest.Owe) before it
// exists, and nothing without that mark is ever removed, except the replaced disks of an in-place restore.
//
// Who writes what: conn owns the one libvirt connection and is the only place that dials; every libvirt call runs in
// a goroutine of conn.do, which waits for it at Close; the maps of forwards belong to frozen and restoring.
package kvm
