package protect

import (
	"context"
	"fmt"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// Verify is the handler of verify tasks: everything is read back and compared with what was written.
func (p *Protector) Verify(ctx context.Context, t *jobs.Task) error {
	point, err := p.catalog.RestorePoint(ctx, t.RestorePointID)
	if err != nil {
		return err
	}
	repo, err := p.repositories(ctx, point.RepositoryID)
	if err != nil {
		return err
	}
	t.SetPhase(ctx, "reading back")
	report, err := repo.Verify(ctx, point.ID, func(done, total int64) {
		t.SetProgress(ctx, catalog.DiskProgress{Disk: "all", BytesTotal: total, BytesScanned: done, BytesRead: done})
	})
	if err == nil {
		err = damage(point.ID, report.Damage)
	}
	if err != nil && fault.KindOf(err) != fault.Corrupt {
		return fault.Context("verify restore point", point.ID, err) // it could not be read now; that proves nothing
	}
	after := context.WithoutCancel(ctx)
	if storeErr := p.catalog.SetVerified(after, point.ID, err); storeErr != nil {
		return storeErr
	}
	if err != nil {
		return err
	}
	t.Event(after, fmt.Sprintf("%d bytes were read back and are what was written.", report.Bytes))
	return t.SetResult(after, catalog.Result{RestorePointID: point.ID, BytesVerified: report.Bytes})
}

func damage(point string, found []store.Damage) error {
	if len(found) == 0 {
		return nil
	}
	d := found[0]
	return fault.New(fault.Corrupt, "verify restore point", point, "%d pieces are damaged, the first at byte %d of disk %q: %s",
		len(found), d.Offset, d.Image, d.Cause).Explain(
		"A part of this restore point is not what was written. Disks that are not named can still be restored.",
		"Make a full backup of the VM now, and look for the cause in the storage of the repository.")
}

// Collect is the handler of collect tasks: what no restore point needs is removed from the repository.
func (p *Protector) Collect(ctx context.Context, t *jobs.Task) error {
	var spec CollectSpec
	if err := t.ReadSpec(&spec); err != nil {
		return err
	}
	repo, err := p.repositories(ctx, t.RepositoryID)
	if err != nil {
		return err
	}
	t.SetPhase(ctx, "collecting")
	report, err := repo.Collect(ctx, store.CollectOptions{DryRun: spec.DryRun})
	if err != nil {
		return fault.Context("collect repository", t.RepositoryID, err)
	}
	word := "freed"
	if spec.DryRun {
		word = "would be freed"
	}
	t.Event(ctx, fmt.Sprintf("%d packs with %d bytes %s; %d packs stay, %d wait for running backups.",
		report.PacksFreed, report.BytesFreed, word, report.PacksKept, report.PacksWaiting))
	return t.SetResult(ctx, catalog.Result{BytesFreed: report.BytesFreed})
}
