package httpapi

import (
	"context"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
)

func (h *handlers) PlanCoverage(ctx context.Context, r server.PlanCoverageRequestObject) (server.PlanCoverageResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	proposal := CoverageProposal{WithoutConnections: r.Body.WithoutConnections, WithoutRepositories: r.Body.WithoutRepositories}
	for _, p := range r.Body.Policies {
		proposal.Policies = append(proposal.Policies, ProposedPolicy{ID: p.ID, PolicyChange: policyChangeOf(p.Policy)})
	}
	for _, e := range r.Body.Exclusions {
		row := catalog.Exclusion{Filter: e.Filter, Reason: e.Reason}
		if !e.EndsAt.IsZero() {
			row.Until = &e.EndsAt
		}
		proposal.Exclusions = append(proposal.Exclusions, row)
	}
	plan, err := h.s.core.PlanCoverage(ctx, proposal)
	if err != nil {
		return nil, err
	}
	return server.PlanCoverage200JSONResponse{
		Policies: each(plan.Policies, func(d PolicyDiff) server.PolicyDiff {
			return server.PolicyDiff{Name: d.Name, Action: server.PolicyDiffAction(d.Action), Fields: d.Fields}
		}),
		Changed: each(plan.Changed, plannedVMOf), Pruned: each(plan.Pruned, verdictOf), More: plan.More, PrunedAnyway: plan.Anyway,
	}, nil
}

func plannedVMOf(v PlannedVM) server.PlannedVM {
	return server.PlannedVM{VMID: v.ID, Name: v.Name, Before: v.Before, After: v.After}
}

func (h *handlers) ReplaceConnection(ctx context.Context, r server.ReplaceConnectionRequestObject) (server.ReplaceConnectionResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	wanted := NewConnection{
		Address: r.Body.Address, User: r.Body.User, Password: catalog.Secret(r.Body.Password), Options: r.Body.Options, AcceptHost: r.Body.AcceptHost,
	}
	fields, err := h.s.core.ReplaceConnection(ctx, whoAsks(ctx), r.ConnectionID, wanted, value(r.Params.DryRun))
	if err != nil {
		return nil, err
	}
	c, err := h.s.core.GetConnection(ctx, r.ConnectionID)
	if err != nil {
		return nil, err
	}
	return server.ReplaceConnection200JSONResponse{Fields: each(fields, func(s string) string { return s }), Connection: connectionOf(c)}, nil
}
