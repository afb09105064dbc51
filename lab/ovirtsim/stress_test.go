package ovirtsim_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// TestManyAtOnce lets clients do at random what they may, on an engine whose time passes. Whatever is refused is refused
// by a conflict or because something is gone, and in the end nothing hangs.
func TestManyAtOnce(t *testing.T) {
	lab(t)
	seed := seeded.Seed(t)
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite(), Clock: ovirtsim.RealClock(), Pace: time.Millisecond, Seed: seed})
	var all sync.WaitGroup
	for i, name := range []string{"web", "db", "web", "archive"} {
		s := admin(t, e)
		v := service(t, s, name)
		disks := disksOf(t, v)
		id := vmNamed(t, s, name).MustId()
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		all.Go(func() {
			for range 40 {
				if err := step(t.Context(), e, s, v, id, disks, r.IntN(6)); err != nil && !refused(err) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	all.Wait()
}

func refused(err error) bool {
	var c *sdk.ConflictError
	var n *sdk.NotFoundError
	return errors.As(err, &c) || errors.As(err, &n)
}

// step does one thing of those that take their time.
func step(ctx context.Context, e *ovirtsim.Engine, s *sdk.SystemService, v *sdk.VmService, id string, disks []string, what int) error {
	switch what {
	case 0:
		_, err := v.SnapshotsService().Add().Snapshot(sdk.NewSnapshotBuilder().Description("random").PersistMemorystate(false).MustBuild()).Send()
		return err
	case 1:
		list, err := v.SnapshotsService().List().Send()
		if err != nil {
			return err
		}
		_, err = v.SnapshotsService().SnapshotService(list.MustSnapshots().Slice()[0].MustId()).Remove().Send()
		return err
	case 2:
		b := sdk.NewBackupBuilder().Description("random").DisksOfAny(sdk.NewDiskBuilder().Id(disks[0]).MustBuild()).MustBuild()
		_, err := v.BackupsService().Add().Backup(b).Send()
		return err
	case 3:
		list, err := v.BackupsService().List().Send()
		if err != nil {
			return err
		}
		for _, b := range list.MustBackups().Slice() {
			if _, err := v.BackupsService().BackupService(b.MustId()).Finalize().Send(); b.MustPhase() == sdk.BACKUPPHASE_READY && err != nil {
				return nil // an action's error has no type; another client was faster
			}
		}
		return nil
	case 4:
		if _, err := s.VmsService().List().Follow("disk_attachments.disk,nics,tags,snapshots").Send(); err != nil {
			return fmt.Errorf("list: %w", err)
		}
		return nil
	}
	if err := e.Write(ctx, id, 1); err != nil && !errors.Is(err, ovirtsim.ErrNoGuest) {
		return err
	}
	return nil
}
