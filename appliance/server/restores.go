package server

import (
	"cmp"
	"context"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/recover"
)

func manySpecOf(r httpapi.RestoresRequest) recover.ManySpec {
	return recover.ManySpec{
		Filter: r.Filter, Before: r.Before, RepositoryID: r.RepositoryID, Mode: r.Mode, NamePrefix: r.NamePrefix, NameSuffix: r.NameSuffix,
		ConnectionID: r.ConnectionID, Datastore: r.Datastore, Networks: r.Networks, KeepMACs: r.KeepMACs, Start: r.Start,
		Mover: r.Mover, Transport: r.Transport, Fallback: r.Fallback,
	}
}

// StartRestores implements httpapi.Core.
func (a *Appliance) StartRestores(ctx context.Context, s httpapi.Start, r httpapi.RestoresRequest) (httpapi.Started, error) {
	return a.startTasks(ctx, catalog.TriggerManual, s, catalog.KindRestore, func() ([]*catalog.Task, error) {
		if err := a.checkAsked(ctx, r.Mover, r.Transport); err != nil {
			return nil, err
		}
		return a.recoverer.RequestMany(ctx, manySpecOf(r), r.LeaveOut)
	})
}

// PlanRestores implements httpapi.Core.
func (a *Appliance) PlanRestores(ctx context.Context, r httpapi.RestoresRequest) (httpapi.RestoresPlan, error) {
	if err := a.checkAsked(ctx, r.Mover, r.Transport); err != nil {
		return httpapi.RestoresPlan{}, err
	}
	p, err := a.recoverer.PlanMany(ctx, manySpecOf(r))
	if err != nil {
		return httpapi.RestoresPlan{}, err
	}
	out := httpapi.RestoresPlan{Warnings: p.Warnings}
	for _, vm := range p.VMs {
		out.VMs = append(out.VMs, httpapi.RestoresPlanVM{
			ID: vm.VM.ID, Name: vm.VM.Name, ConnectionID: cmp.Or(r.ConnectionID, vm.VM.ConnectionID), As: vm.Name, Point: vm.Point,
			Disks: vm.Plan.Request.Disks, Warnings: vm.Plan.Warnings, Err: vm.Err,
		})
	}
	return out, nil
}
