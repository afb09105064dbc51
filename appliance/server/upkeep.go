package server

import (
	"cmp"
	"context"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/protect"
	"github.com/cairn-backup/cairn/internal/fault"
)

// StartCollect implements httpapi.Core.
func (a *Appliance) StartCollect(ctx context.Context, s httpapi.Start, repository string, r httpapi.CollectRequest) (httpapi.Started, error) {
	return a.start(ctx, s, catalog.KindCollect, func() (*catalog.Task, error) {
		return a.protector.RequestCollect(ctx, repository, protect.CollectSpec{DryRun: r.DryRun, Compact: r.Compact})
	})
}

// StartRepositoryVerify implements httpapi.Core.
func (a *Appliance) StartRepositoryVerify(ctx context.Context, s httpapi.Start, repository string, r httpapi.SweepRequest) (httpapi.Started, error) {
	return a.start(ctx, s, catalog.KindVerify, func() (*catalog.Task, error) {
		return a.protector.RequestSweep(ctx, repository, protect.SweepSpec{Budget: r.BudgetBytes, BytesPerSecond: r.BytesPerSecond})
	})
}

// StartHeal implements httpapi.Core.
func (a *Appliance) StartHeal(ctx context.Context, s httpapi.Start, repository string, r httpapi.HealRequest) (httpapi.Started, error) {
	return a.start(ctx, s, catalog.KindHeal, func() (*catalog.Task, error) {
		return a.protector.RequestHeal(ctx, repository, protect.HealSpec{From: r.From, DryRun: r.DryRun})
	})
}

// StartScrub implements httpapi.Core.
func (a *Appliance) StartScrub(ctx context.Context, s httpapi.Start, repository string, bytesPerSecond int64) (httpapi.Started, error) {
	return a.start(ctx, s, catalog.KindScrub, func() (*catalog.Task, error) {
		return a.protector.RequestScrub(ctx, repository, protect.ScrubSpec{BytesPerSecond: bytesPerSecond})
	})
}

// StartRebuild implements httpapi.Core.
func (a *Appliance) StartRebuild(ctx context.Context, s httpapi.Start, repository, member, path string) (httpapi.Started, error) {
	return a.start(ctx, s, catalog.KindRebuild, func() (*catalog.Task, error) {
		return a.protector.RequestRebuild(ctx, repository, protect.RebuildSpec{Member: member, Path: path})
	})
}

// UpdateRepository implements httpapi.Core. A compression holds at once where the repository is open.
func (a *Appliance) UpdateRepository(ctx context.Context, id string, change httpapi.RepositoryChange) (httpapi.RepositoryInfo, error) {
	entry, err := a.holdOwn(ctx, id) // who opens it meanwhile sees the change
	if err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	_, err = a.catalog.UpdateRepository(ctx, id, func(r *catalog.Repository) {
		r.Compression = cmp.Or(change.Compression, r.Compression)
		if v := change.Verification; v != nil {
			set := r.VerificationOf()
			set.EveryDays, set.BytesPerSecond = v.EveryDays, v.BytesPerSecond
			r.Verification = &set
		}
	})
	if err == nil && change.Compression != "" && entry.repo != nil {
		err = entry.repo.SetCompression(change.Compression)
	}
	entry.mu.Unlock()
	if err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	return a.GetRepository(ctx, id)
}

// RepositoryDamage implements httpapi.Core.
func (a *Appliance) RepositoryDamage(ctx context.Context, id string) (httpapi.DamageInfo, error) {
	repo, err := a.repository(ctx, id)
	if err != nil {
		return httpapi.DamageInfo{}, err
	}
	report, err := repo.KnownDamage(ctx)
	if err != nil {
		return httpapi.DamageInfo{}, fault.Context("look at damage of repository", id, err)
	}
	named, err := a.protector.NameTouched(ctx, id, report.Touched)
	out := httpapi.DamageInfo{Packs: report.Packs}
	for _, t := range named {
		out.Touched = append(out.Touched, httpapi.TouchedInfo(t))
	}
	return out, err
}

// RepositorySpace implements httpapi.Core.
func (a *Appliance) RepositorySpace(ctx context.Context, id string, without []string) (httpapi.SpaceInfo, error) {
	repo, err := a.repository(ctx, id)
	if err != nil {
		return httpapi.SpaceInfo{}, err
	}
	out := httpapi.SpaceInfo{VMs: map[string]catalog.RestorePoint{}}
	if out.Rows, err = a.catalog.PointsOfRepository(ctx, id); err != nil {
		return out, err
	}
	for _, row := range out.Rows {
		if row.Time.After(out.VMs[row.Series].Time) { // the newest knows its name
			out.VMs[row.Series] = row
		}
	}
	for _, point := range without {
		if _, ok := out.Rows[point]; !ok {
			return out, fault.New(fault.Invalid, "measure space without", point, "the repository has no such restore point").Explain(
				"What is to be left out is not one of this repository's restore points.", "List its restore points, and name some of these.")
		}
	}
	if out.SpaceReport, err = repo.Space(ctx); err != nil || len(without) == 0 {
		return out, err
	}
	free, err := repo.WouldFree(ctx, without...)
	out.WouldFree = &free
	return out, err
}
