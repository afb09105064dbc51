package httpapi

import (
	"context"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

func (h *handlers) ListMaintenance(ctx context.Context, _ server.ListMaintenanceRequestObject) (server.ListMaintenanceResponseObject, error) {
	list, err := h.s.core.ListMaintenance(ctx)
	if err != nil {
		return nil, err
	}
	return server.ListMaintenance200JSONResponse{Items: each(list, maintenanceOf)}, nil
}

// maintenance looks a kind up.
func (h *handlers) maintenance(ctx context.Context, kind string) (server.Maintenance, error) {
	list, err := h.s.core.ListMaintenance(ctx)
	if err != nil {
		return server.Maintenance{}, err
	}
	for _, m := range list {
		if string(m.Kind) == kind {
			return maintenanceOf(m), nil
		}
	}
	return server.Maintenance{}, fault.New(fault.NotFound, "look up maintenance", kind, "there is no such kind").Explain(
		"The appliance does nothing of that name by itself.", "List what there is, and name one of those.")
}

func (h *handlers) GetMaintenance(ctx context.Context, r server.GetMaintenanceRequestObject) (server.GetMaintenanceResponseObject, error) {
	m, err := h.maintenance(ctx, r.Kind)
	if err != nil {
		return nil, err
	}
	return server.GetMaintenance200JSONResponse(m), nil
}

func (h *handlers) ReplaceMaintenance(ctx context.Context, r server.ReplaceMaintenanceRequestObject) (server.ReplaceMaintenanceResponseObject, error) {
	err := h.s.core.ReplaceMaintenance(ctx, whoAsks(ctx), catalog.Maintenance{
		Kind: catalog.MaintenanceKind(r.Kind), Schedule: r.Body.Schedule, TimeZone: r.Body.TimeZone, Windows: r.Body.Windows, Paused: r.Body.Paused,
		BudgetBytes: r.Body.BudgetBytes,
	})
	if err != nil {
		return nil, err
	}
	m, err := h.maintenance(ctx, r.Kind)
	if err != nil {
		return nil, err
	}
	return server.ReplaceMaintenance200JSONResponse(m), nil
}

func (h *handlers) RunMaintenance(ctx context.Context, r server.RunMaintenanceRequestObject) (server.RunMaintenanceResponseObject, error) {
	if err := h.s.core.RunMaintenance(ctx, whoAsks(ctx), catalog.MaintenanceKind(r.Kind)); err != nil {
		return nil, err
	}
	m, err := h.maintenance(ctx, r.Kind)
	if err != nil {
		return nil, err
	}
	return server.RunMaintenance200JSONResponse(m), nil
}

func maintenanceOf(m MaintenanceInfo) server.Maintenance {
	return server.Maintenance{
		Kind: string(m.Kind), Schedule: m.Schedule, TimeZone: m.TimeZone, Windows: m.Windows, Paused: m.Paused, BudgetBytes: m.BudgetBytes, UpdatedBy: m.UpdatedBy,
		Busy: m.Busy, NextAt: at(&m.Next), LastStartedAt: at(m.LastStarted), LastEndedAt: at(m.LastEnded), LastResult: m.LastResult, LastError: failureOf(m.LastError),
	}
}
