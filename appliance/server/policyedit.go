package server

import (
	"cmp"
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/appliance/schedule"
	"github.com/cairn-backup/cairn/internal/fault"
)

// nextShown is how many of the next instants of a policy are said.
const nextShown = 5

// ListPolicies implements httpapi.Core.
func (a *Appliance) ListPolicies(ctx context.Context) ([]httpapi.PolicyInfo, error) {
	rows, err := a.catalog.Policies(ctx)
	if err != nil {
		return nil, err
	}
	return a.policyInfos(ctx, rows...)
}

// GetPolicy implements httpapi.Core.
func (a *Appliance) GetPolicy(ctx context.Context, id string) (httpapi.PolicyInfo, error) {
	row, err := a.catalog.Policy(ctx, id)
	if err != nil {
		return httpapi.PolicyInfo{}, err
	}
	infos, err := a.policyInfos(ctx, row)
	if err != nil {
		return httpapi.PolicyInfo{}, err
	}
	return infos[0], nil
}

func (a *Appliance) policyInfos(ctx context.Context, rows ...catalog.Policy) ([]httpapi.PolicyInfo, error) {
	now := time.Now()
	e, err := a.estate(ctx, now)
	if err != nil {
		return nil, err
	}
	vms := map[string]int{}
	for _, vm := range e.VMs {
		vms[e.covers.Which(vm)]++
	}
	out := make([]httpapi.PolicyInfo, len(rows))
	for i, row := range rows {
		info := httpapi.PolicyInfo{Policy: row, VMs: vms[row.ID]}
		if info.Rules, err = policy.Stored(row.Spec); err != nil {
			return nil, err
		}
		info.RPO = info.Rules.RPO(now)
		for _, t := range e.Turns {
			switch {
			case t.PolicyID != row.ID:
			case t.State == catalog.TurnRunning:
				info.Running++
			default:
				info.Waiting++
			}
		}
		if !row.Paused {
			info.NextDue = info.Rules.Calendar.Between(now, now.AddDate(50, 0, 0), info.Rules.Zone, nextShown)
		}
		if info.LastMissed, err = a.catalog.LastMissed(ctx, row.ID); err != nil {
			return nil, err
		}
		out[i] = info
	}
	return out, nil
}

// rulesOf reads a change of a policy that has the given filter, "" for a new one. A filter that stays is not judged again.
func rulesOf(filter string, s policy.Spec) (policy.Rules, error) {
	if s.Filter == filter {
		return policy.Stored(s)
	}
	return policy.Understand(s)
}

// understand checks all that a change of a policy that has the given filter says; see rulesOf.
func (a *Appliance) understand(ctx context.Context, filter string, c httpapi.PolicyChange) (policy.Rules, error) {
	rules, err := rulesOf(filter, c.Spec)
	if err != nil {
		return rules, err
	}
	if err := checkTransport(c.Spec.Transport); err != nil {
		return rules, err
	}
	if !c.Paused && rules.NeverBegins(time.Now()) {
		return rules, fault.New(fault.Invalid, "make policy", c.Name, "none of its turns would ever begin").Explain(
			"Whenever it is due its windows are closed, and each turn would be given up as missed before one opens.",
			"Move the schedule into a window, or let turns that are late begin (missed: run), or wait longer for them (within).")
	}
	if _, err := a.catalog.Repository(ctx, c.Spec.RepositoryID); err != nil {
		if fault.KindOf(err) == fault.NotFound {
			return rules, fault.Wrap(fault.Invalid, "make policy", c.Name, err).Explain(
				"The policy names a repository that is not there.", "List the repositories, and name one of them.")
		}
		return rules, err
	}
	return rules, nil
}

// CreatePolicy implements httpapi.Core.
func (a *Appliance) CreatePolicy(ctx context.Context, who fleet.Who, c httpapi.PolicyChange) (httpapi.PolicyInfo, error) {
	if _, err := a.understand(ctx, "", c); err != nil {
		return httpapi.PolicyInfo{}, err
	}
	row := catalog.Policy{Name: c.Name, Paused: c.Paused, Spec: c.Spec, UpdatedBy: who.User}
	if err := a.catalog.CreatePolicy(ctx, &row, time.Now()); err != nil {
		return httpapi.PolicyInfo{}, err
	}
	a.note(ctx, who, "policy.create", c.Name, row.ID)
	return a.GetPolicy(ctx, row.ID)
}

// ReplacePolicy implements httpapi.Core.
func (a *Appliance) ReplacePolicy(ctx context.Context, who fleet.Who, id string, c httpapi.PolicyChange) (httpapi.PolicyPlan, error) {
	plan, err := a.PlanPolicy(ctx, id, c)
	if err != nil {
		return plan, err
	}
	_, err = a.catalog.UpdatePolicy(ctx, id, time.Now(), func(p *catalog.Policy) {
		p.Name, p.Paused, p.Spec, p.UpdatedBy = c.Name, c.Paused, c.Spec, who.User
	})
	if err != nil {
		return httpapi.PolicyPlan{}, err
	}
	a.note(ctx, who, "policy.change", c.Name, id)
	plan.Policy, err = a.GetPolicy(ctx, id)
	return plan, err
}

// PlanPolicy implements httpapi.Core.
func (a *Appliance) PlanPolicy(ctx context.Context, id string, c httpapi.PolicyChange) (plan httpapi.PolicyPlan, err error) {
	if id != "" {
		if plan.Policy, err = a.GetPolicy(ctx, id); err != nil {
			return plan, err
		}
	}
	rules, err := a.understand(ctx, plan.Policy.Spec.Filter, c)
	if err != nil {
		return plan, err
	}
	e, err := a.estate(ctx, time.Now())
	if err != nil {
		return plan, err
	}
	after := make([]schedule.Policy, 0, len(e.Policies)+1)
	for _, p := range e.Policies {
		if p.ID != id && p.Name == c.Name {
			return plan, fault.New(fault.Exists, "make policy", c.Name, "there is one of that name").Explain(
				"Another policy has the name.", "Choose another name, or change that policy.")
		}
		if p.ID != id {
			after = append(after, p)
		}
	}
	planned := policy.Candidate{ID: cmp.Or(id, "new"), Name: c.Name, Paused: c.Paused, Rules: rules}
	covers := policy.NewCovers(append(candidates(after), planned), e.Exclusions, e.Now)
	for _, vm := range e.VMs {
		before, now := e.covers.Of(vm), covers.Of(vm)
		if before.PolicyID != now.PolicyID {
			plan.Changed = append(plan.Changed, httpapi.PlannedVM{ID: vm.ID, Name: vm.Name, Before: before.Policy, After: now.Policy})
		}
		if now.PolicyID != planned.ID {
			continue
		}
		var was *policy.Rules
		if r, ok := e.rules[before.PolicyID]; ok {
			was = &r
		}
		if err := a.planPruned(ctx, &plan, vm, was, rules); err != nil {
			return plan, err
		}
	}
	return plan, nil
}

// planPruned adds the restore points of a VM that new rules let go and old ones did not.
func (a *Appliance) planPruned(ctx context.Context, plan *httpapi.PolicyPlan, vm policy.VM, was *policy.Rules, rules policy.Rules) error {
	if was != nil && was.Spec.Retention == rules.Spec.Retention && was.Spec.RepositoryID == rules.Spec.RepositoryID && was.Zone.String() == rules.Zone.String() {
		return nil
	}
	gone := map[string]bool{}
	if was != nil {
		old, err := a.verdicts(ctx, vm, was.Spec.Retention, *was)
		if err != nil {
			return err
		}
		for _, v := range old {
			gone[v.ID] = !v.Keep()
		}
	}
	now, err := a.verdicts(ctx, vm, rules.Spec.Retention, rules)
	for _, v := range now {
		if !v.Keep() && !gone[v.ID] && len(plan.Pruned) < httpapi.MaxVerdicts {
			plan.Pruned = append(plan.Pruned, v)
		}
	}
	return err
}

// verdicts says what a retention does to a VM's restore points.
func (a *Appliance) verdicts(ctx context.Context, vm policy.VM, r policy.Retention, rules policy.Rules) ([]httpapi.PointVerdict, error) {
	list, err := a.protector.PlanRetention(ctx, r, rules.Zone, vm.ID, rules.Spec.RepositoryID, "")
	out := make([]httpapi.PointVerdict, len(list))
	for i, v := range list {
		out[i] = httpapi.PointVerdict{Verdict: v.Verdict, VMID: vm.ID, VMName: vm.Name, SizeBytes: v.SizeBytes}
	}
	return out, err
}

// RemovePolicy implements httpapi.Core.
func (a *Appliance) RemovePolicy(ctx context.Context, who fleet.Who, id string) error {
	row, err := a.catalog.Policy(ctx, id)
	if err != nil {
		return err
	}
	if err := a.catalog.DeletePolicy(ctx, id, time.Now()); err != nil {
		return err
	}
	a.note(ctx, who, "policy.remove", row.Name, id)
	return nil
}

// RunPolicy implements httpapi.Core.
func (a *Appliance) RunPolicy(ctx context.Context, who fleet.Who, id string) (int, error) {
	info, err := a.GetPolicy(ctx, id)
	if err != nil {
		return 0, err
	}
	if info.Paused {
		return 0, fault.New(fault.Conflict, "run policy", info.Name, "it is paused").Explain(
			"A paused policy is never due.", "End the pause first, or back VMs up one by one.")
	}
	if err := a.mayBegin(ctx, info.Name); err != nil {
		return 0, err
	}
	e, err := a.estate(ctx, time.Now())
	if err != nil {
		return 0, err
	}
	var vms []string
	for _, vm := range e.VMs {
		if e.covers.Which(vm) == id {
			vms = append(vms, vm.ID)
		}
	}
	if err := a.catalog.OpenNow(ctx, id, e.Now, vms); err != nil {
		return 0, err
	}
	a.note(ctx, who, "policy.run", info.Name, id)
	return len(vms), nil
}

// PreviewPolicy implements httpapi.Core.
func (a *Appliance) PreviewPolicy(ctx context.Context, id string, r httpapi.PreviewRequest) (out httpapi.Preview, err error) {
	e, err := a.estate(ctx, time.Now())
	if err != nil {
		return out, err
	}
	rules, ok := e.rules[id]
	if !ok {
		return out, fault.New(fault.NotFound, "preview policy", id, "not in the catalog").Explain(
			"The appliance does not know it, or not any more.", "List what there is, and name one of those.")
	}
	retention := rules.Spec.Retention
	if r.Retention != nil {
		retention = *r.Retention
	}
	for _, vm := range e.VMs {
		if e.covers.Which(vm) != id || r.VMID != "" && r.VMID != vm.ID {
			continue
		}
		out.VMs++
		list, err := a.verdicts(ctx, vm, retention, rules)
		if err != nil {
			return out, err
		}
		for _, v := range list {
			if v.Keep() {
				out.Kept++
			} else {
				out.Pruned++
			}
			switch {
			case v.Keep() && !r.All:
			case len(out.Items) == httpapi.MaxVerdicts:
				out.More = true
			default:
				out.Items = append(out.Items, v)
			}
		}
	}
	return out, nil
}

// ListTurns implements httpapi.Core.
func (a *Appliance) ListTurns(ctx context.Context, f catalog.TurnFilter, p catalog.Page) (catalog.List[httpapi.TurnInfo], error) {
	if _, err := a.catalog.Policy(ctx, f.PolicyID); err != nil {
		return catalog.List[httpapi.TurnInfo]{}, err
	}
	list, err := a.catalog.Turns(ctx, f, p)
	if err != nil {
		return catalog.List[httpapi.TurnInfo]{}, err
	}
	plan, err := a.scheduler.Look(ctx, time.Now())
	if err != nil {
		return catalog.List[httpapi.TurnInfo]{}, err
	}
	ids := make([]string, len(list.Items))
	for i, t := range list.Items {
		ids[i] = t.VMID
	}
	names, err := a.catalog.VMNames(ctx, ids)
	out := catalog.List[httpapi.TurnInfo]{Next: list.Next}
	for _, t := range list.Items {
		if why := plan.Waits[t.ID]; why != "" {
			t.Reason = why
		}
		out.Items = append(out.Items, httpapi.TurnInfo{Turn: t, VMName: names[t.VMID]})
	}
	return out, err
}

// Note implements httpapi.Core.
func (a *Appliance) Note(ctx context.Context, who fleet.Who, action, subject, detail string) {
	a.note(ctx, who, action, subject, detail)
}

// note writes to the audit log.
func (a *Appliance) note(ctx context.Context, who fleet.Who, action, subject, detail string) {
	a.fleet.Audit(ctx, catalog.AuditEntry{Actor: who.User, Source: who.Source, Action: action, Subject: subject, Detail: detail})
}
