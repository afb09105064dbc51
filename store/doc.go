// Package store is the repository engine: deduplicated, encrypted images of disks and the restore points made of them.
//
// It knows chunks, images and restore points, and nothing of virtual machines. Its invariant: a restore point is
// visible only when everything it needs is durable, and every byte is proven before it is handed out.
package store
