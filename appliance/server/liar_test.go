package server

import (
	"context"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/store"
)

// liar is a mover that answers with an image of another restore point.
type liar struct {
	agent.Mover
	image store.ImageRef
}

func (l liar) Backup(context.Context, agent.BackupTask, func(transfer.Progress)) (agent.BackupResult, error) {
	return agent.BackupResult{Image: l.image}, nil
}

// TestMoverNamesAnotherImage has a mover put what is in the repository already into a restore point, unread.
func TestMoverNamesAnotherImage(t *testing.T) {
	b := newBench(t)
	point := b.backup()
	repo, err := b.repository(t.Context(), point.RepositoryID)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := repo.RestorePoints(t.Context())
	if err != nil || len(stored) != 1 {
		t.Fatal(stored, err)
	}
	b.mover.local = liar{b.mover.local, stored[0].Images[0].Ref}
	task := b.ended(b.startBackup())
	if task.State != catalog.Failed || task.Error == nil || task.Error.Kind != "denied" {
		t.Errorf("task = %s, %+v", task.State, task.Error)
	}
}
