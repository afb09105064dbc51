package httpapi

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
)

func (h *handlers) ListPolicies(ctx context.Context, _ server.ListPoliciesRequestObject) (server.ListPoliciesResponseObject, error) {
	list, err := h.s.core.ListPolicies(ctx)
	if err != nil {
		return nil, err
	}
	return server.ListPolicies200JSONResponse{Items: each(list, policyOf)}, nil
}

func (h *handlers) GetPolicy(ctx context.Context, r server.GetPolicyRequestObject) (server.GetPolicyResponseObject, error) {
	p, err := h.s.core.GetPolicy(ctx, r.PolicyID)
	if err != nil {
		return nil, err
	}
	return server.GetPolicy200JSONResponse(policyOf(p)), nil
}

func (h *handlers) CreatePolicy(ctx context.Context, r server.CreatePolicyRequestObject) (server.CreatePolicyResponseObject, error) {
	change := policyChangeOf(*r.Body)
	if value(r.Params.DryRun) {
		plan, err := h.s.core.PlanPolicy(ctx, "", change)
		if err != nil {
			return nil, err
		}
		return server.CreatePolicy200JSONResponse(policyPlanOf(plan)), nil
	}
	made, err := h.s.core.CreatePolicy(ctx, whoAsks(ctx), change)
	if err != nil {
		return nil, err
	}
	return server.CreatePolicy201JSONResponse(policyOf(made)), nil
}

func (h *handlers) ReplacePolicy(ctx context.Context, r server.ReplacePolicyRequestObject) (server.ReplacePolicyResponseObject, error) {
	var plan PolicyPlan
	var err error
	if change := policyChangeOf(*r.Body); value(r.Params.DryRun) {
		plan, err = h.s.core.PlanPolicy(ctx, r.PolicyID, change)
	} else {
		plan, err = h.s.core.ReplacePolicy(ctx, whoAsks(ctx), r.PolicyID, change)
	}
	if err != nil {
		return nil, err
	}
	return server.ReplacePolicy200JSONResponse(policyPlanOf(plan)), nil
}

func (h *handlers) RemovePolicy(ctx context.Context, r server.RemovePolicyRequestObject) (server.RemovePolicyResponseObject, error) {
	if err := h.s.core.RemovePolicy(ctx, whoAsks(ctx), r.PolicyID); err != nil {
		return nil, err
	}
	return server.RemovePolicy204Response{}, nil
}

func (h *handlers) RunPolicy(ctx context.Context, r server.RunPolicyRequestObject) (server.RunPolicyResponseObject, error) {
	n, err := h.s.core.RunPolicy(ctx, whoAsks(ctx), r.PolicyID)
	if err != nil {
		return nil, err
	}
	return server.RunPolicy200JSONResponse{VMs: n}, nil
}

func (h *handlers) PreviewPolicy(ctx context.Context, r server.PreviewPolicyRequestObject) (server.PreviewPolicyResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	request := PreviewRequest{VMID: r.Body.VM, All: r.Body.All}
	if retention := retentionOf(r.Body.Retention); !retention.KeepsAll() {
		request.Retention = &retention
	}
	p, err := h.s.core.PreviewPolicy(ctx, r.PolicyID, request)
	if err != nil {
		return nil, err
	}
	return server.PreviewPolicy200JSONResponse{
		VMs: p.VMs, Kept: p.Kept, Pruned: p.Pruned, Items: each(p.Items, verdictOf), More: p.More,
	}, nil
}

func (h *handlers) ListTurns(ctx context.Context, r server.ListTurnsRequestObject) (server.ListTurnsResponseObject, error) {
	f := catalog.TurnFilter{PolicyID: r.PolicyID, VMID: value(r.Params.VM)}
	if s := value(r.Params.State); s != "" {
		f.States = []catalog.TurnState{catalog.TurnState(s)}
	}
	list, err := h.s.core.ListTurns(ctx, f, paged(r.Params.Limit, r.Params.PageToken, nil, nil))
	if err != nil {
		return nil, err
	}
	return server.ListTurns200JSONResponse{Items: each(list.Items, turnOf), Next: list.Next}, nil
}

func (h *handlers) ListExclusions(ctx context.Context, _ server.ListExclusionsRequestObject) (server.ListExclusionsResponseObject, error) {
	list, err := h.s.core.ListExclusions(ctx)
	if err != nil {
		return nil, err
	}
	return server.ListExclusions200JSONResponse{Items: each(list, exclusionOf)}, nil
}

func (h *handlers) GetExclusion(ctx context.Context, r server.GetExclusionRequestObject) (server.GetExclusionResponseObject, error) {
	list, err := h.s.core.ListExclusions(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if e.ID == r.ExclusionID {
			return server.GetExclusion200JSONResponse(exclusionOf(e)), nil
		}
	}
	return nil, fault.New(fault.NotFound, "look up exclusion", r.ExclusionID, "not in the catalog").Explain(
		"The appliance does not know it, or not any more.", "List what there is, and name one of those.")
}

func (h *handlers) AddExclusion(ctx context.Context, r server.AddExclusionRequestObject) (server.AddExclusionResponseObject, error) {
	made, err := h.s.core.AddExclusion(ctx, whoAsks(ctx), catalog.Exclusion{
		Filter: r.Body.Filter, Reason: r.Body.Reason, Until: instantOf(r.Body.EndsAt),
	})
	if err != nil {
		return nil, err
	}
	return server.AddExclusion201JSONResponse(exclusionOf(made)), nil
}

func (h *handlers) RemoveExclusion(ctx context.Context, r server.RemoveExclusionRequestObject) (server.RemoveExclusionResponseObject, error) {
	if err := h.s.core.RemoveExclusion(ctx, whoAsks(ctx), r.ExclusionID); err != nil {
		return nil, err
	}
	return server.RemoveExclusion204Response{}, nil
}

func (h *handlers) ListCoverage(ctx context.Context, r server.ListCoverageRequestObject) (server.ListCoverageResponseObject, error) {
	list, err := h.s.core.ListCoverage(ctx, CoverageFilter{
		Filter: value(r.Params.Filter), State: policy.Protection(value(r.Params.State)), PolicyID: value(r.Params.Policy),
	}, paged(r.Params.Limit, r.Params.PageToken, nil, nil))
	if err != nil {
		return nil, err
	}
	c := list.Counts
	return server.ListCoverage200JSONResponse{
		Items: each(list.Items, coverageOf), Next: list.Next,
		Counts: server.CoverageCounts{
			Protected: c[policy.Protected], Late: c[policy.Late], NeverRan: c[policy.NeverRan], Unprotected: c[policy.Unprotected],
			Excluded: c[policy.Excluded], Unprotectable: c[policy.Unprotectable],
		},
	}, nil
}

const historyDays = 30

func (h *handlers) CoverageHistory(ctx context.Context, r server.CoverageHistoryRequestObject) (server.CoverageHistoryResponseObject, error) {
	f := HistoryFilter{VMID: value(r.Params.VMID), Filter: value(r.Params.Filter), To: time.Now().UTC().Truncate(24 * time.Hour)}
	var err error
	if r.Params.Until != nil {
		if f.To, err = dayNamed(*r.Params.Until); err != nil {
			return nil, err
		}
	}
	f.From = f.To.AddDate(0, 0, 1-historyDays)
	if r.Params.Since != nil {
		if f.From, err = dayNamed(*r.Params.Since); err != nil {
			return nil, err
		}
	}
	days, err := h.s.core.CoverageHistory(ctx, f)
	if err != nil {
		return nil, err
	}
	return server.CoverageHistory200JSONResponse{Items: each(days, func(d HistoryDay) server.CoverageDay { return historyDayOf(d, f.VMID != "") })}, nil
}

func dayNamed(text string) (time.Time, error) {
	day, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return day, fault.New(fault.Invalid, "read day", text, "there is no such day").Explain(
			"A day is written as 2026-11-22.", "Correct it.")
	}
	return day, nil
}

// historyDayOf leaves out what was promised where that is not of one VM.
func historyDayOf(d HistoryDay, one bool) server.CoverageDay {
	out := server.CoverageDay{
		Attained: d.Attained(), Date: d.Date.Format(time.DateOnly), VMs: d.VMs, VMsLate: d.VMsLate, CoveredSeconds: seconds(d.Covered), LateSeconds: seconds(d.Late),
		RPOWorstSeconds: seconds(d.Worst), RestorePoints: d.Points,
	}
	if one {
		out.RPOTargetSeconds = seconds(d.Target)
	}
	return out
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

func (h *handlers) HoldRestorePoint(ctx context.Context, r server.HoldRestorePointRequestObject) (server.HoldRestorePointResponseObject, error) {
	err := h.s.core.HoldRestorePoint(ctx, whoAsks(ctx), catalog.Hold{
		RestorePointID: r.RestorePointID, Reason: r.Body.Reason, Until: instantOf(r.Body.EndsAt),
	})
	if err != nil {
		return nil, err
	}
	p, err := h.s.core.GetRestorePoint(ctx, r.RestorePointID)
	if err != nil {
		return nil, err
	}
	return server.HoldRestorePoint200JSONResponse(pointInfoOf(p)), nil
}

func (h *handlers) ReleaseRestorePoint(ctx context.Context, r server.ReleaseRestorePointRequestObject) (server.ReleaseRestorePointResponseObject, error) {
	if err := h.s.core.ReleaseRestorePoint(ctx, whoAsks(ctx), r.RestorePointID); err != nil {
		return nil, err
	}
	p, err := h.s.core.GetRestorePoint(ctx, r.RestorePointID)
	if err != nil {
		return nil, err
	}
	return server.ReleaseRestorePoint200JSONResponse(pointInfoOf(p)), nil
}

// instantOf is nil for no instant.
func instantOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
