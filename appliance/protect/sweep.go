package protect

import (
	"context"
	"fmt"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// SweepSpec is what is wanted of the verification of a repository.
type SweepSpec struct {
	Budget         int64 `json:"budget,omitempty"`
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
}

// RequestSweep makes the task that reads a repository back.
func (p *Protector) RequestSweep(ctx context.Context, repositoryID string, spec SweepSpec) (*catalog.Task, error) {
	if _, err := p.repositories(ctx, repositoryID); err != nil {
		return nil, err
	}
	return &catalog.Task{Subject: "verify/" + repositoryID, RepositoryID: repositoryID, Spec: encode(spec)}, nil
}

// sweep reads a repository back, or a part of it, and notes what that says of its restore points.
func (p *Protector) sweep(ctx context.Context, t *jobs.Task) error {
	var spec SweepSpec
	repo, err := begin(ctx, t, &spec, p.repositories)
	if err != nil {
		return err
	}
	t.SetPhase(ctx, "reading back")
	var last store.SweepProgress
	report, err := repo.Sweep(ctx, store.SweepOptions{
		BytesPerSecond: spec.BytesPerSecond, Budget: spec.Budget,
		Progress: func(at store.SweepProgress) {
			last = at
			t.SetProgress(ctx, catalog.DiskProgress{Disk: "all", BytesTotal: at.BytesTotal, BytesScanned: at.Bytes, BytesRead: at.Bytes})
		},
	})
	found := len(report.Damage)+len(report.Problems)+len(report.Touched) > 0
	if err != nil && (fault.KindOf(err) != fault.Corrupt || !found) {
		return fault.Context("verify repository", t.RepositoryID, err)
	}
	after := context.WithoutCancel(ctx)
	if err := p.noteSweep(after, t.RepositoryID, repo, report, last.BytesTotal); err != nil {
		return err
	}
	result := catalog.Result{BytesVerified: report.Bytes, Swept: &catalog.Swept{
		Packs: report.Packs, PacksDamaged: len(report.Damage), BytesLeft: report.BytesLeft, Complete: report.Complete,
		PointsProven: report.Proven, PointsDamaged: len(report.Touched),
	}}
	if err := t.SetResult(after, result); err != nil {
		return err
	}
	t.Event(after, sweepWords(report))
	if found {
		return p.blast(after, t, "verify repository", report.Damage, report.Problems, report.Touched)
	}
	return nil
}

func sweepWords(r store.SweepReport) string {
	text := fmt.Sprintf("%d packs with %d bytes were read back, %d of them are damaged", r.Packs, r.Bytes, len(r.Damage))
	if !r.Complete {
		return fmt.Sprintf("%s; %d packs with %d bytes are left, and the next verification goes on there.", text, r.PacksLeft, r.BytesLeft)
	}
	return fmt.Sprintf("%s; the cycle is complete: %d restore points are proven whole, %d wait for the next cycle.", text, r.Proven, r.Waiting)
}

// noteSweep keeps how far the cycle is, and what is known of restore points now.
func (p *Protector) noteSweep(ctx context.Context, id string, repo *store.Repository, report store.SweepReport, total int64) error {
	_, err := p.catalog.UpdateRepository(ctx, id, func(r *catalog.Repository) {
		v := r.VerificationOf()
		if report.Complete {
			now := time.Now().UTC()
			v.CycleStarted, v.DoneBytes, v.TotalBytes, v.LastCompleted = nil, 0, 0, &now
		} else {
			started := report.Started.UTC()
			v.CycleStarted, v.DoneBytes, v.TotalBytes = &started, max(0, total-report.BytesLeft), total
		}
		r.Verification = &v
	})
	if err != nil {
		return err
	}
	if err := p.noteTouched(ctx, report.Touched); err != nil || !report.Complete {
		return err
	}
	proven, err := repo.LastVerified(ctx)
	if err != nil {
		return err
	}
	rows, err := p.catalog.PointsOfRepository(ctx, id)
	if err != nil {
		return err
	}
	for point, since := range proven {
		row, known := rows[point]
		if !known || (row.VerifyResult == catalog.VerifyGood && row.Verified != nil && !row.Verified.Before(since)) {
			continue
		}
		if err := p.catalog.SetProven(ctx, point, since); err != nil {
			return err
		}
	}
	return nil
}

// noteTouched marks restore points that are not whole.
func (p *Protector) noteTouched(ctx context.Context, touched []store.TouchedPoint) error {
	for _, point := range touched {
		if err := p.catalog.SetVerified(ctx, point.RestorePoint, notWhole(point)); err != nil {
			return err
		}
	}
	return nil
}

func notWhole(point store.TouchedPoint) error {
	return fault.New(fault.Corrupt, "verify restore point", point.RestorePoint, "it is not whole: %s", piecesOf(point)).Explain(
		"A part of this restore point is not what was written, or is missing. Disks that are not named can still be restored.",
		"Heal the repository from another one, or make a full backup of the VM now.")
}
