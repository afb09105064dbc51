package httpapi

import (
	"time"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
)

// policyChangeOf reads what a policy shall be, with what holds when it is not said.
func policyChangeOf(b server.PolicyRequest) PolicyChange {
	retries := policy.DefaultRetries
	if b.Retries != nil {
		retries = *b.Retries
	}
	return PolicyChange{
		Name: b.Name, Paused: b.Paused,
		Spec: policy.Spec{
			Filter: b.Filter, Priority: b.Priority, Schedule: b.Schedule, TimeZone: b.TimeZone, Windows: b.Windows, Missed: policy.Missed(b.Missed),
			RPO: policy.Seconds(b.RPOSeconds), Within: policy.Seconds(b.WithinSeconds), RepositoryID: b.Repository, Retention: retentionOf(b.Retention),
			Quiesce: string(b.Quiesce), ExcludeDisks: b.ExcludeDisks, Mover: b.Mover, Transport: b.Transport, Fallback: b.Fallback,
			Retries: retries, Backoff: policy.Seconds(b.BackoffSeconds), Limits: policy.Limits{Connection: b.Limits.Connection, Host: b.Limits.Host, Datastore: b.Limits.Datastore},
		},
	}
}

func retentionOf(r server.Retention) policy.Retention {
	return policy.Retention{Last: r.Last, Hourly: r.Hourly, Daily: r.Daily, Weekly: r.Weekly, Monthly: r.Monthly, Yearly: r.Yearly}
}

func keptOf(r policy.Retention) server.Retention {
	return server.Retention{Last: r.Last, Hourly: r.Hourly, Daily: r.Daily, Weekly: r.Weekly, Monthly: r.Monthly, Yearly: r.Yearly}
}

func policyOf(p PolicyInfo) server.Policy {
	s := p.Rules.Spec
	out := server.Policy{
		ID: p.ID, Name: p.Name, Version: p.Version, Paused: p.Paused, Filter: s.Filter, Priority: s.Priority, Schedule: s.Schedule,
		TimeZone: p.Rules.Zone.String(), Windows: s.Windows, Missed: server.Missed(s.Missed), WithinSeconds: int64(s.Within),
		RPOSeconds: int64(p.RPO / time.Second), RPODerived: s.RPO == 0, RepositoryID: s.RepositoryID, Retention: keptOf(s.Retention),
		Quiesce: server.Quiesce(s.Quiesce), ExcludeDisks: s.ExcludeDisks, Mover: s.Mover, Transport: s.Transport, Fallback: s.Fallback,
		Retries: s.Retries, BackoffSeconds: int64(s.Backoff), Limits: server.PolicyLimits{Connection: s.Limits.Connection, Host: s.Limits.Host, Datastore: s.Limits.Datastore},
		CreatedAt: p.CreatedAt.UTC(), UpdatedAt: p.UpdatedAt.UTC(), UpdatedBy: p.UpdatedBy, VMs: p.VMs, Waiting: p.Waiting, Running: p.Running,
	}
	for _, t := range p.NextDue {
		out.NextDue = append(out.NextDue, t.UTC())
	}
	if m := p.LastMissed; m != nil {
		out.LastMissed = server.MissedDue{Due: m.Due.UTC(), Reason: m.Missed, VMs: m.VMs}
	}
	return out
}

func policyPlanOf(p PolicyPlan) server.PolicyPlan {
	out := server.PolicyPlan{
		Changed: each(p.Changed, plannedVMOf),
		Pruned:  each(p.Pruned, verdictOf),
	}
	if p.Policy.ID != "" {
		out.Policy = policyOf(p.Policy)
	}
	return out
}

func verdictOf(v PointVerdict) server.PointVerdict {
	return server.PointVerdict{
		RestorePointID: v.ID, VMID: v.VMID, VMName: v.VMName, Time: v.Time.UTC(), SizeBytes: v.SizeBytes,
		Reasons: each(v.Reasons, func(s string) string { return s }),
	}
}

func turnOf(t TurnInfo) server.Turn {
	return server.Turn{
		ID: t.ID, PolicyID: t.PolicyID, VMID: t.VMID, VMName: t.VMName, Due: t.Due.UTC(), State: server.TurnState(t.State),
		Attempt: t.Attempt, Reason: t.Reason, RunID: t.RunID, EndedAt: at(t.EndedAt),
	}
}

func exclusionOf(e ExclusionInfo) server.Exclusion {
	return server.Exclusion{
		ID: e.ID, Filter: e.Filter, Reason: e.Reason, EndsAt: at(e.Until), Holds: e.Holds, VMs: e.VMs, CreatedAt: e.CreatedAt.UTC(), CreatedBy: e.CreatedBy,
	}
}

func coverageOf(c CoverageInfo) server.Coverage {
	return server.Coverage{
		VMID: c.VM.ID, Name: c.VM.Name, ConnectionID: c.VM.ConnectionID, State: server.Protection(c.Protection), PolicyID: c.PolicyID, Policy: c.Policy,
		ExclusionID: c.ExclusionID, Why: c.Why, RestorePointID: c.Newest.ID, RestorePointAt: at(&c.Newest.Time),
		RPOAchievedSeconds: int64(c.Age / time.Second), RPOTargetSeconds: int64(c.Target / time.Second), Waits: c.Waits,
	}
}

func holdOf(h *catalog.Hold) server.Hold {
	if h == nil {
		return server.Hold{}
	}
	return server.Hold{Reason: h.Reason, EndsAt: at(h.Until), CreatedAt: h.CreatedAt.UTC(), CreatedBy: h.CreatedBy}
}
