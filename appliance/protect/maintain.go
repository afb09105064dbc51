package protect

import (
	"context"
	"fmt"
	"slices"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// Verify is the handler of verify tasks: a restore point, or a repository, is read back and compared with what was
// written.
func (p *Protector) Verify(ctx context.Context, t *jobs.Task) error {
	if t.RestorePointID == "" {
		return p.sweep(ctx, t)
	}
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
	if len(report.Damage) > 0 {
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
		return p.alsoTouched(after, t, report.Touched, err)
	}
	t.Event(after, fmt.Sprintf("%d bytes were read back and are what was written.", report.Bytes))
	return t.SetResult(after, catalog.Result{RestorePointID: point.ID, BytesVerified: report.Bytes})
}

// alsoTouched names the other restore points that the damage of one touches.
func (p *Protector) alsoTouched(ctx context.Context, t *jobs.Task, touched []store.TouchedPoint, cause error) error {
	touched = slices.DeleteFunc(touched, func(other store.TouchedPoint) bool { return other.RestorePoint == t.RestorePointID })
	if err := p.noteTouched(ctx, touched); err != nil {
		return err
	}
	named, err := p.NameTouched(ctx, t.RepositoryID, touched)
	if err != nil {
		return err
	}
	for i, points := range byVM(named) {
		if i < maxNamed {
			tellVM(ctx, t, points)
		}
	}
	return cause
}

// damage is the error of a restore point in which some was found.
func damage(point string, found []store.Damage) error {
	d := found[0]
	return fault.New(fault.Corrupt, "verify restore point", point, "%d pieces are damaged, the first at byte %d of disk %q: %s",
		len(found), d.Offset, d.Image, d.Cause).Explain(
		"A part of this restore point is not what was written. Disks that are not named can still be restored.",
		"Make a full backup of the VM now, and look for the cause in the storage of the repository.")
}

// Collect is the handler of collect tasks: what no restore point needs is removed from the repository.
func (p *Protector) Collect(ctx context.Context, t *jobs.Task) error {
	var spec CollectSpec
	repo, err := begin(ctx, t, &spec, p.repositories)
	if err != nil {
		return err
	}
	t.SetPhase(ctx, "collecting")
	report, err := repo.Collect(ctx, store.CollectOptions{DryRun: spec.DryRun, Compact: spec.Compact, Budget: spec.Budget})
	if err != nil {
		return fault.Context("collect repository", t.RepositoryID, err)
	}
	word := "freed"
	if spec.DryRun {
		word = "would be freed"
	}
	freed := report.BytesFreed + report.BytesCompacted - report.BytesRewritten
	t.Event(ctx, fmt.Sprintf("%d bytes %s: %d packs that nothing needs, and the needless part of %d packs; %d packs stay, %d wait for running backups.",
		freed, word, report.PacksFreed, report.PacksCompacted, report.PacksKept, report.PacksWaiting))
	if report.PacksLater > 0 {
		t.Event(ctx, fmt.Sprintf("%d packs are left for the next collect, as the budget was used up.", report.PacksLater))
	}
	if report.NoRoom {
		t.Warn(ctx, "The repository is too full to rewrite all packs that should be.")
	}
	return t.SetResult(ctx, catalog.Result{BytesFreed: freed, Collected: &catalog.Collected{
		PacksFreed: report.PacksFreed, PacksCompacted: report.PacksCompacted, BytesCompacted: report.BytesCompacted,
		BytesRewritten: report.BytesRewritten, BytesLive: report.LiveBytes, BytesDead: report.DeadBytes, NoRoom: report.NoRoom, PacksLater: report.PacksLater,
	}})
}
