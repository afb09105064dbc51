package httpapi

import (
	"context"
	"fmt"

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
		LastParts: each(m.LastParts, func(p catalog.MaintenancePart) server.MaintenancePart { return partOf(p, m.Runs) }),
	}
}

// partOf says how maintenance of one repository or connection went, by its run where there is one.
func partOf(p catalog.MaintenancePart, runs map[string]RunInfo) server.MaintenancePart {
	out := server.MaintenancePart{ID: p.ID, Name: p.Name, At: p.At.UTC(), RunID: p.RunID, Result: p.Result, Error: failureOf(p.Error)}
	run, ok := runs[p.RunID]
	if !ok {
		return out
	}
	out.State = server.State(run.State)
	if run.Error != nil {
		out.Error = failureOf(run.Error)
	}
	for _, t := range run.Tasks {
		if t.Result != nil {
			out.Result = resultWords(*t.Result)
		}
	}
	return out
}

// resultWords is what a task of maintenance did, in a few words.
func resultWords(r catalog.Result) string {
	switch {
	case r.Pruned != nil && r.Pruned.Left > 0:
		return fmt.Sprintf("%d restore points pruned, %d stay, %d wait", r.Pruned.Points, r.Pruned.Kept, r.Pruned.Left)
	case r.Pruned != nil:
		return fmt.Sprintf("%d restore points pruned, %d stay", r.Pruned.Points, r.Pruned.Kept)
	case r.Reread != nil:
		text := fmt.Sprintf("%d restore points, %d found, %d forgotten", r.Reread.Points, r.Reread.Added, r.Reread.Removed)
		if r.Reread.Left > 0 {
			text += fmt.Sprintf(", %d wait", r.Reread.Left)
		}
		return text
	case r.Collected != nil:
		return fmt.Sprintf("%d bytes freed", r.BytesFreed)
	case r.Swept != nil:
		return fmt.Sprintf("%d packs read, %d damaged", r.Swept.Packs, r.Swept.PacksDamaged)
	}
	return ""
}
