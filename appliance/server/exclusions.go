package server

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
)

// ListExclusions implements httpapi.Core.
func (a *Appliance) ListExclusions(ctx context.Context) ([]httpapi.ExclusionInfo, error) {
	rows, err := a.catalog.Exclusions(ctx)
	if err != nil {
		return nil, err
	}
	e, err := a.estate(ctx, time.Now())
	if err != nil {
		return nil, err
	}
	vms := map[string]int{}
	for _, vm := range e.VMs {
		vms[e.covers.Of(vm).ExclusionID]++
	}
	out := make([]httpapi.ExclusionInfo, len(rows))
	for i, row := range rows {
		out[i] = httpapi.ExclusionInfo{Exclusion: row, Holds: row.Until == nil || e.Now.Before(*row.Until), VMs: vms[row.ID]}
	}
	return out, nil
}

// AddExclusion implements httpapi.Core.
func (a *Appliance) AddExclusion(ctx context.Context, who fleet.Who, e catalog.Exclusion) (httpapi.ExclusionInfo, error) {
	if _, err := policy.ParseFilter(e.Filter); err != nil {
		return httpapi.ExclusionInfo{}, err
	}
	if err := checkUntil(e.Until); err != nil {
		return httpapi.ExclusionInfo{}, err
	}
	e.CreatedBy = who.User
	if err := a.catalog.AddExclusion(ctx, &e); err != nil {
		return httpapi.ExclusionInfo{}, err
	}
	a.note(ctx, who, "exclusion.add", e.Filter, e.Reason)
	all, err := a.ListExclusions(ctx)
	for _, x := range all {
		if x.ID == e.ID {
			return x, err
		}
	}
	return httpapi.ExclusionInfo{Exclusion: e}, err
}

// checkUntil refuses an end that is over.
func checkUntil(until *time.Time) error {
	if until != nil && until.Before(time.Now()) {
		return fault.New(fault.Invalid, "read date", until.UTC().Format(time.RFC3339), "it is over").Explain(
			"What ends in the past would never hold.", "Name a later date, or none.")
	}
	return nil
}

// RemoveExclusion implements httpapi.Core.
func (a *Appliance) RemoveExclusion(ctx context.Context, who fleet.Who, id string) error {
	if err := a.catalog.RemoveExclusion(ctx, id); err != nil {
		return err
	}
	a.note(ctx, who, "exclusion.remove", id, "")
	return nil
}

// HoldRestorePoint implements httpapi.Core.
func (a *Appliance) HoldRestorePoint(ctx context.Context, who fleet.Who, h catalog.Hold) error {
	if err := checkUntil(h.Until); err != nil {
		return err
	}
	h.CreatedBy = who.User
	if err := a.catalog.SetHold(ctx, h); err != nil {
		return err
	}
	a.note(ctx, who, "point.hold", h.RestorePointID, h.Reason)
	return nil
}

// ReleaseRestorePoint implements httpapi.Core.
func (a *Appliance) ReleaseRestorePoint(ctx context.Context, who fleet.Who, id string) error {
	if err := a.catalog.ReleaseHold(ctx, id); err != nil {
		return err
	}
	a.note(ctx, who, "point.release", id, "")
	return nil
}
