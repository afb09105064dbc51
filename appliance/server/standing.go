package server

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
)

// still reports whether nothing is to begin by itself: the appliance was recovered and nobody has said that it may, or it was
// recovered elsewhere. When that cannot be told, nothing begins either.
func (a *Appliance) still(ctx context.Context) bool {
	who, err := a.catalog.Standing(ctx)
	if err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "policies were not looked at; it will be tried again", "err", err)
	}
	return err != nil || who.Idle()
}

// mayBegin refuses to let a policy begin anything while the appliance is idle.
func (a *Appliance) mayBegin(ctx context.Context, subject string) error {
	who, err := a.catalog.Standing(ctx)
	switch {
	case err != nil:
		return err
	case who.SupersededAt != nil:
		return superseded(who.By)
	case who.Held:
		return fault.New(fault.Conflict, "run policy", subject, "the appliance was recovered, and nothing begins by itself yet").Explain(
			"After a recovery policies wait, so that an appliance that still lives elsewhere does not do the same at the same time.",
			"Make sure that the old one does not run any more, then let this one begin: cairn appliance resume. VMs can be backed up one by one before that.")
	}
	return nil
}

// GetAppliance implements httpapi.Core.
func (a *Appliance) GetAppliance(ctx context.Context) (httpapi.ApplianceInfo, error) {
	who, err := a.catalog.Standing(ctx)
	if err != nil {
		return httpapi.ApplianceInfo{}, err
	}
	list, err := a.catalog.AllRepositories(ctx)
	return httpapi.ApplianceInfo{Standing: who, Repositories: list}, err
}

// ResumeAppliance implements httpapi.Core.
func (a *Appliance) ResumeAppliance(ctx context.Context, who fleet.Who) error {
	s, err := a.catalog.Standing(ctx)
	if err != nil {
		return err
	}
	if s.SupersededAt != nil {
		return superseded(s.By)
	}
	if !s.Held {
		return nil
	}
	if err := a.catalog.Resume(ctx, time.Now()); err != nil {
		return err
	}
	a.note(ctx, who, "appliance.resume", s.Appliance, s.From)
	return nil
}
