package server

import (
	"context"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/appliance/schedule"
	"github.com/cairn-backup/cairn/internal/fault"
)

// estate is everything that says which rule covers which VM, at an instant.
type estate struct {
	schedule.State
	covers policy.Covers
	waits  map[string]string        // why the turn of a VM has not begun
	rules  map[string]policy.Rules  // by policy
	rpo    map[string]time.Duration // by policy
}

func (a *Appliance) estate(ctx context.Context, now time.Time) (estate, error) {
	state, err := a.scheduler.Read(ctx, now)
	if err != nil {
		return estate{}, err
	}
	return judge(state), nil
}

func judge(state schedule.State) estate {
	e := estate{State: state, waits: map[string]string{}, rules: map[string]policy.Rules{}, rpo: map[string]time.Duration{}}
	plan := schedule.Decide(state)
	for _, t := range state.Turns {
		if why := plan.Waits[t.ID]; why != "" {
			e.waits[t.VMID] = why
		}
	}
	for _, p := range state.Policies {
		e.rules[p.ID], e.rpo[p.ID] = p.Rules, p.Rules.RPO(state.Now)
	}
	e.covers = policy.NewCovers(candidates(state.Policies), state.Exclusions, state.Now)
	return e
}

func candidates(policies []schedule.Policy) []policy.Candidate {
	out := make([]policy.Candidate, len(policies))
	for i, p := range policies {
		out[i] = p.Candidate
	}
	return out
}

// of judges one VM.
func (e estate) of(vm policy.VM) httpapi.CoverageInfo {
	c := e.covers.Of(vm)
	newest := e.Newest[vm.ID]
	return httpapi.CoverageInfo{
		VM: vm, Cover: c, Standing: policy.Stand(c, e.rpo[c.PolicyID], newest.Time, e.Now), Newest: newest, Waits: e.waits[vm.ID],
	}
}

// ListCoverage implements httpapi.Core.
func (a *Appliance) ListCoverage(ctx context.Context, f httpapi.CoverageFilter, p catalog.Page) (httpapi.CoverageList, error) {
	match := func(policy.VM) bool { return true }
	if f.Filter != "" {
		parsed, err := policy.ParseFilter(f.Filter)
		if err != nil {
			return httpapi.CoverageList{}, err
		}
		match = parsed.Match
	}
	e, err := a.estate(ctx, time.Now())
	if err != nil {
		return httpapi.CoverageList{}, err
	}
	out := httpapi.CoverageList{Counts: map[policy.Protection]int{}}
	var all []httpapi.CoverageInfo
	for _, vm := range e.VMs {
		if !match(vm) {
			continue
		}
		c := e.of(vm)
		if f.PolicyID != "" && c.PolicyID != f.PolicyID {
			continue
		}
		out.Counts[c.Protection]++
		if f.State == "" || f.State == c.Protection {
			all = append(all, c)
		}
	}
	out.Items, out.Next, err = catalog.PageOf(all, p, func(c httpapi.CoverageInfo) (string, string) { return c.VM.Name, c.VM.ID })
	return out, err
}

// coverage judges the VM with an id, which must be there.
func (a *Appliance) coverage(ctx context.Context, vmID string) (httpapi.CoverageInfo, error) {
	state, err := a.scheduler.ReadOf(ctx, time.Now(), vmID)
	if err != nil {
		return httpapi.CoverageInfo{}, err
	}
	i := slices.IndexFunc(state.VMs, func(vm policy.VM) bool { return vm.ID == vmID })
	if i < 0 {
		return httpapi.CoverageInfo{}, fault.New(fault.NotFound, "look up coverage of", vmID, "the inventory does not have it")
	}
	return judge(state).of(state.VMs[i]), nil
}
