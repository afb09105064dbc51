package httpapi

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/policy"
)

// This file is the part of fakeCore about policies.

var (
	someSpec = policy.Spec{
		Filter: "all", Priority: 1, Schedule: "22:00", TimeZone: "UTC", Windows: []string{"20:00-06:00"}, RPO: 3600, RepositoryID: "repo_1",
		Retention: policy.Retention{Last: 1, Daily: 7}, Quiesce: "try", ExcludeDisks: []string{"vdb"}, Mover: "m1", Transport: "network", Fallback: true,
		Retries: 2, Limits: policy.Limits{Connection: 1, Host: 2, Datastore: 3},
	}
	somePolicyRow = catalog.Policy{ID: "pol_1", Name: "gold", Version: 3, Paused: true, Spec: someSpec, CreatedAt: someTime, UpdatedAt: someTime, UpdatedBy: "admin"}
	someVerdict   = PointVerdict{Verdict: policy.Verdict{Point: policy.Point{ID: "rp_1", Time: someTime}, Reasons: []string{"last 1 of 1"}}, VMID: "vm_1", VMName: "web", SizeBytes: 7}
	someCoverage  = CoverageInfo{
		VM: policy.VM{ID: "vm_1", Name: "web", ConnectionID: "conn_1"}, Cover: policy.Cover{PolicyID: "pol_1", Policy: "gold", ExclusionID: "excl_1", Why: "w"},
		Standing: policy.Standing{Protection: policy.Late, Age: time.Hour, Target: time.Minute}, Newest: catalog.NewestPoint{ID: "rp_1", Time: someTime}, Waits: "x",
	}
	someExclusion = ExclusionInfo{
		Exclusion: catalog.Exclusion{ID: "excl_1", Filter: "all", Reason: "r", Until: &someTime, CreatedAt: someTime, CreatedBy: "admin"}, Holds: true, VMs: 2,
	}
)

func somePolicy() PolicyInfo {
	rules, err := policy.Understand(someSpec)
	if err != nil {
		panic(err)
	}
	return PolicyInfo{
		Policy: somePolicyRow, Rules: rules, RPO: time.Hour, VMs: 4, Waiting: 2, Running: 1, NextDue: []time.Time{someTime},
		LastMissed: &catalog.Occurrence{Due: someTime, Missed: "off", VMs: 3},
	}
}

func (f *fakeCore) plan() PolicyPlan {
	return PolicyPlan{Policy: somePolicy(), Changed: []PlannedVM{{ID: "vm_1", Name: "web", Before: "silver"}}, Pruned: []PointVerdict{someVerdict}}
}

func (f *fakeCore) ListPolicies(context.Context) ([]PolicyInfo, error) {
	return one(f, "", "", []PolicyInfo{somePolicy()})
}

func (f *fakeCore) GetPolicy(_ context.Context, id string) (PolicyInfo, error) {
	return one(f, id, "pol_1", somePolicy())
}

func (f *fakeCore) CreatePolicy(_ context.Context, _ fleet.Who, c PolicyChange) (PolicyInfo, error) {
	f.note(c)
	return one(f, "", "", somePolicy())
}

func (f *fakeCore) ReplacePolicy(_ context.Context, _ fleet.Who, id string, c PolicyChange) (PolicyPlan, error) {
	f.note(c)
	return one(f, id, "pol_1", f.plan())
}

func (f *fakeCore) PlanPolicy(_ context.Context, id string, c PolicyChange) (PolicyPlan, error) {
	f.note(id + "/" + c.Name)
	if id == "" {
		return one(f, "", "", PolicyPlan{})
	}
	return one(f, id, "pol_1", f.plan())
}

func (f *fakeCore) RemovePolicy(_ context.Context, _ fleet.Who, id string) error {
	_, err := one(f, id, "pol_1", 0)
	return err
}

func (f *fakeCore) RunPolicy(_ context.Context, _ fleet.Who, id string) (int, error) {
	return one(f, id, "pol_1", 3)
}

func (f *fakeCore) PreviewPolicy(_ context.Context, id string, r PreviewRequest) (Preview, error) {
	f.note(r)
	return one(f, id, "pol_1", Preview{VMs: 1, Kept: 2, Pruned: 1, Items: []PointVerdict{someVerdict}, More: true})
}

func (f *fakeCore) ListTurns(_ context.Context, filter catalog.TurnFilter, p catalog.Page) (catalog.List[TurnInfo], error) {
	f.note(filter)
	if _, err := one(f, filter.PolicyID, "pol_1", 0); err != nil {
		return catalog.List[TurnInfo]{}, err
	}
	return list(f, p, TurnInfo{Turn: catalog.Turn{
		ID: "turn_1", PolicyID: filter.PolicyID, VMID: "vm_1", Due: someTime, State: catalog.TurnFailed, Attempt: 2, RunID: "run_1", Reason: "r", EndedAt: &someTime,
	}, VMName: "web"})
}

func (f *fakeCore) ListExclusions(context.Context) ([]ExclusionInfo, error) {
	return one(f, "", "", []ExclusionInfo{someExclusion})
}

func (f *fakeCore) AddExclusion(_ context.Context, _ fleet.Who, e catalog.Exclusion) (ExclusionInfo, error) {
	f.note(e)
	return one(f, "", "", someExclusion)
}

func (f *fakeCore) RemoveExclusion(_ context.Context, _ fleet.Who, id string) error {
	_, err := one(f, id, "excl_1", 0)
	return err
}

func (f *fakeCore) ListCoverage(_ context.Context, filter CoverageFilter, p catalog.Page) (CoverageList, error) {
	f.note(filter)
	l, err := list(f, p, someCoverage)
	return CoverageList{Items: l.Items, Next: l.Next, Counts: map[policy.Protection]int{policy.Late: 1}}, err
}

func (f *fakeCore) CoverageHistory(_ context.Context, filter HistoryFilter) ([]HistoryDay, error) {
	f.note(filter)
	return one(f, "", "", []HistoryDay{HistoryDay{}.Add(policy.Day{Date: someTime.Truncate(24 * time.Hour), Covered: time.Hour, Late: time.Minute, Worst: 2 * time.Hour, Target: time.Hour, Points: 3})})
}

func (f *fakeCore) HoldRestorePoint(_ context.Context, _ fleet.Who, h catalog.Hold) error {
	f.note(h)
	_, err := one(f, h.RestorePointID, "rp_1", 0)
	return err
}

func (f *fakeCore) ReleaseRestorePoint(_ context.Context, _ fleet.Who, id string) error {
	_, err := one(f, id, "rp_1", 0)
	return err
}

func (f *fakeCore) ListMaintenance(context.Context) ([]MaintenanceInfo, error) {
	return one(f, "", "", []MaintenanceInfo{{Maintenance: catalog.Maintenance{
		Kind: catalog.MaintainVerify, Schedule: "*:00", TimeZone: "UTC", Windows: []string{"20:00-06:00"}, Paused: true, BudgetBytes: 7, UpdatedBy: "admin",
		LastStarted: &someTime, LastEnded: &someTime, LastResult: "r", LastError: someFailure,
		LastParts: []catalog.MaintenancePart{{ID: "repo_1", Name: "main", At: someTime, RunID: "run_1", Result: "r", Error: someFailure}},
	}, Busy: true, Next: someTime, Runs: map[string]RunInfo{"run_1": {Run: catalog.Run{ID: "run_1", State: catalog.Failed, Error: someFailure}, Tasks: []catalog.Task{{
		Result: &catalog.Result{Pruned: &catalog.Pruned{Points: 1, Left: 2}},
	}}}}}})
}

func (f *fakeCore) ReplaceMaintenance(_ context.Context, _ fleet.Who, m catalog.Maintenance) error {
	f.note(m)
	_, err := one(f, string(m.Kind), "verify", 0)
	return err
}

func (f *fakeCore) RunMaintenance(_ context.Context, _ fleet.Who, kind catalog.MaintenanceKind) error {
	_, err := one(f, string(kind), "verify", 0)
	return err
}
