// Package ovirt is the driver for oVirt, Red Hat Virtualization and Oracle Linux Virtualization Manager: one connection
// is one engine.
//
// It freezes VMs by the engine's backup API, whose checkpoints make incremental backups possible, or by a snapshot, and
// offers the frozen disks as image transfers that movers read over imageio, or plugged into a mover's VM. It moves no
// disk data itself, except the image of a mover that it deploys.
//
// The SDK, go-ovirt, gives the API's types and their XML, and nothing else: its connection knows no context, opens a
// TLS connection for each request, keeps a token for ever, logs out with an empty one and takes a HTML page for a
// document. Requests are made by internal/engine, documents are read and written by internal/apixml, and no type or error of the
// SDK leaves the package.
//
// Its invariant: whatever it makes on an engine carries "cairn-"+tag (in the description of a snapshot, backup or
// checkpoint, in the alias of a disk, in the comment of a VM) and is owed (FreezeRequest.Owe) before it exists, and nothing
// without that mark is ever removed, except the replaced disks of an in-place restore. An image transfer carries no
// words, so it counts as ours by what it is a transfer of, and by its time-out, which is made from the tag.
//
// No real engine was at hand when it was written: it follows the engine's sources and API model, and is tested against
// lab/ovirtsim, which does too.
package ovirt
