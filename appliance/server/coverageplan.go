package server

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/appliance/schedule"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// PlanCoverage implements httpapi.Core.
func (a *Appliance) PlanCoverage(ctx context.Context, p httpapi.CoverageProposal) (plan httpapi.CoveragePlan, err error) {
	e, err := a.estate(ctx, time.Now())
	if err != nil {
		return plan, err
	}
	after, err := propose(&plan, e, p)
	if err != nil {
		return plan, err
	}
	byID := map[string]policy.Candidate{}
	for _, c := range after {
		byID[c.ID] = c
	}
	exclusions, err := proposedExclusions(e, p.Exclusions)
	if err != nil {
		return plan, err
	}
	covers := policy.NewCovers(after, exclusions, e.Now)
	for _, vm := range e.VMs {
		before, now := e.covers.Of(vm), policy.Cover{}
		if !slices.Contains(p.WithoutConnections, vm.ConnectionID) {
			now = covers.Of(vm)
		}
		if before.PolicyID != now.PolicyID {
			plan.Changed = append(plan.Changed, httpapi.PlannedVM{ID: vm.ID, Name: vm.Name, Before: before.Policy, After: now.Policy})
		}
		rules, ok := byID[now.PolicyID]
		if !ok || rules.Paused || slices.Contains(p.WithoutRepositories, rules.Rules.Spec.RepositoryID) {
			continue // no backup by a policy, so no retention
		}
		if err := a.planNext(ctx, &plan, vm, e.active(before.PolicyID), rules.Rules); err != nil {
			return plan, err
		}
	}
	return plan, nil
}

// proposedExclusions reads the exclusions of a proposal. The filters of those that there are are not judged again.
func proposedExclusions(e estate, rows []catalog.Exclusion) ([]policy.Exclusion, error) {
	for _, row := range rows {
		if slices.ContainsFunc(e.Exclusions, func(x policy.Exclusion) bool { return x.Filter.String() == row.Filter }) {
			continue
		}
		if _, err := policy.ParseFilter(row.Filter); err != nil {
			return nil, fault.Context("plan exclusion", "", err)
		}
	}
	return schedule.Exclusions(rows)
}

// active returns the rules by which a policy would back its VMs up; nil if there are none, or if it is paused.
func (e estate) active(policyID string) *policy.Rules {
	for _, p := range e.Policies {
		if p.ID == policyID && !p.Paused {
			return &p.Rules
		}
	}
	return nil
}

// propose reads the policies of a proposal, and says in the plan what becomes of each.
func propose(plan *httpapi.CoveragePlan, e estate, p httpapi.CoverageProposal) ([]policy.Candidate, error) {
	known, names := map[string]schedule.Policy{}, map[string]bool{}
	for _, row := range e.Policies {
		known[row.ID] = row
	}
	var after []policy.Candidate
	for _, proposed := range p.Policies {
		rules, err := rulesOf(known[proposed.ID].Rules.Spec.Filter, proposed.Spec)
		if err != nil {
			return nil, fault.Context("plan policy", proposed.Name, err)
		}
		if names[proposed.Name] {
			return nil, fault.New(fault.Invalid, "plan policy", proposed.Name, "there are two of that name").Explain(
				"Policies are told apart by their names.", "Name one of them otherwise.")
		}
		names[proposed.Name] = true
		id, change := proposed.ID, httpapi.PolicyDiff{Name: proposed.Name, Action: httpapi.PlanCreate}
		if id == "" {
			id = "new " + proposed.Name
		} else {
			was, ok := known[id]
			if !ok {
				return nil, fault.New(fault.Invalid, "plan policy", proposed.Name, "there is no policy %s", id).Explain(
					"The policy was removed meanwhile.", "List the policies, and try again.")
			}
			delete(known, id)
			if change.Fields, err = differing(was, proposed.PolicyChange, rules); err != nil {
				return nil, err
			}
			change.Action = httpapi.PlanChange
		}
		after = append(after, policy.Candidate{ID: id, Name: proposed.Name, Paused: proposed.Paused, Rules: rules})
		if change.Action == httpapi.PlanCreate || len(change.Fields) > 0 {
			plan.Policies = append(plan.Policies, change)
		}
	}
	for _, row := range slices.SortedFunc(maps.Values(known), func(a, b schedule.Policy) int { return cmp.Compare(a.Name, b.Name) }) {
		plan.Policies = append(plan.Policies, httpapi.PolicyDiff{Name: row.Name, Action: httpapi.PlanRemove})
	}
	return after, nil
}

// differing names what a change of a policy changes, as the API calls it.
func differing(was schedule.Policy, c httpapi.PolicyChange, rules policy.Rules) ([]string, error) {
	var fields []string
	if was.Name != c.Name {
		fields = append(fields, "name")
	}
	if was.Paused != c.Paused {
		fields = append(fields, "paused")
	}
	before, err := members(was.Rules)
	if err != nil {
		return nil, err
	}
	after, err := members(rules)
	if err != nil {
		return nil, err
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			before[name] = nil
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if !reflect.DeepEqual(before[name], after[name]) {
			if name == "repository_id" {
				name = "repository"
			}
			fields = append(fields, name)
		}
	}
	return fields, nil
}

// members are the fields of a policy's spec as they count.
func members(r policy.Rules) (map[string]any, error) {
	r.Spec.TimeZone = r.Zone.String()
	p, err := json.Marshal(r.Spec)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "compare policies", "", err)
	}
	out := map[string]any{}
	return out, json.Unmarshal(p, &out)
}

// planNext adds the restore points of a VM that go with its next backup under new rules, and says of which that is so anyway.
func (a *Appliance) planNext(ctx context.Context, plan *httpapi.CoveragePlan, vm policy.VM, was *policy.Rules, rules policy.Rules) error {
	anyway := map[string]bool{}
	if was != nil && was.Spec.RepositoryID == rules.Spec.RepositoryID {
		gone, err := a.prunedNext(ctx, vm, *was)
		if err != nil {
			return err
		}
		for _, v := range gone {
			anyway[v.ID] = true
		}
	}
	gone, err := a.prunedNext(ctx, vm, rules)
	for _, v := range gone {
		switch {
		case anyway[v.ID]:
			plan.Anyway++
		case len(plan.Pruned) == httpapi.MaxVerdicts:
			plan.More = true
		default:
			plan.Pruned = append(plan.Pruned, v)
		}
	}
	return err
}

// keepsCheckpoint reports whether the next backup of a VM makes no checkpoint but keeps that of the one before: libvirt makes none of a
// VM that is off.
func keepsCheckpoint(vm policy.VM) bool {
	return vm.Platform == string(hypervisors.KVM) && vm.State == string(hypervisors.PowerOff)
}

// prunedNext are the restore points of a VM that the retention at the end of its next backup lets go.
func (a *Appliance) prunedNext(ctx context.Context, vm policy.VM, rules policy.Rules) ([]httpapi.PointVerdict, error) {
	list, err := a.protector.PlanNextRetention(ctx, rules.Spec.Retention, rules.Zone, vm.ID, rules.Spec.RepositoryID, keepsCheckpoint(vm))
	if fault.KindOf(err) == fault.NotFound {
		return nil, nil // the repository is to be made
	}
	var out []httpapi.PointVerdict
	for _, v := range list {
		if !v.Keep() {
			out = append(out, httpapi.PointVerdict{Verdict: v.Verdict, VMID: vm.ID, VMName: vm.Name, SizeBytes: v.SizeBytes})
		}
	}
	return out, err
}
