// Package agent is the mover's side of the control protocol between manager and mover: tasks go in, progress and one
// result come out.
//
// Local does the work, in the appliance's own process or in that of a cairn-mover. The latter gets the same tasks over
// its control stream (datamover/control): BackupTask and RestoreTask are sent as they are (an Export names paths and
// addresses on the mover's host, a ticket names rights and not objects in memory), Progress are the stream's messages
// in between, and only the way from a ticket to an Access is different there.
//
// The package makes and removes nothing on a platform and publishes nothing: the manager freezes, publishes and cleans
// up. Its invariant: a task reaches nothing in a repository but what its ticket names, and when a method returns,
// cancelled or not, nothing of the task is running or open.
package agent

import (
	"context"

	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/store"
)

// Mover carries out transfers. Its methods may be called from several goroutines. Progress is called from one
// goroutine at a time and not after the method returned; it may be nil. A failed task may be started again.
type Mover interface {
	// Backup reads a frozen disk into an image of the session that the ticket names. On an error the session holds an
	// unfinished image, which costs nothing but space until the session ends.
	Backup(ctx context.Context, task BackupTask, progress func(transfer.Progress)) (BackupResult, error)
	// Restore writes an image of the repository that the ticket names to a new disk and flushes it. On an error the
	// disk's content is undefined.
	Restore(ctx context.Context, task RestoreTask, progress func(transfer.Progress)) (RestoreResult, error)
}

// BackupTask asks for one disk's backup.
type BackupTask struct {
	ID     string             `json:"id"`   // of the transfer, for the logs
	Disk   string             `json:"disk"` // the disk's id, for the logs
	Ticket string             `json:"ticket"`
	Export hypervisors.Export `json:"export"`
	// Parent is the image that ranges which the export calls unchanged are taken from. Without it the whole disk is
	// read, even if the export tracks changes.
	Parent *store.ImageRef `json:"parent,omitempty"`
	Limit  int64           `json:"limit,omitempty"` // bytes read per second; 0 means no limit
}

// BackupResult is what came of a BackupTask.
type BackupResult struct {
	Image store.ImageRef   `json:"image"`
	Stats store.ImageStats `json:"stats"`
	transfer.Result
}

// RestoreTask asks for one disk's restore.
type RestoreTask struct {
	ID     string             `json:"id"`
	Disk   string             `json:"disk"`
	Ticket string             `json:"ticket"`
	Image  store.ImageRef     `json:"image"`
	Export hypervisors.Export `json:"export"`
	Limit  int64              `json:"limit,omitempty"`
	// Verify reads the disk back and compares it with the image; the export must allow a second client.
	Verify bool `json:"verify,omitempty"`
	// SeedZero writes zeros, too: for a disk that did not read as zeros at first.
	SeedZero bool `json:"seed_zero,omitempty"`
}

// RestoreResult is what came of a RestoreTask.
type RestoreResult struct {
	transfer.Result
}
