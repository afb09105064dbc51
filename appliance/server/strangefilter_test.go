package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/appliance/recover"
)

const strange = "state = running"

func saysStates(err error) bool {
	return kindOf(err) == "invalid" && strings.Contains(err.Error(), `one of on, off, paused, other), got "running"`)
}

func TestAFilterThatNoVMCanPassIsRefused(t *testing.T) {
	b := stillBench(t)
	for name, ask := range map[string]func(context.Context) error{
		"VMs": func(ctx context.Context) error {
			_, err := b.ListVMs(ctx, catalog.VMFilter{Filter: strange}, catalog.Page{})
			return err
		},
		"coverage": func(ctx context.Context) error {
			_, err := b.ListCoverage(ctx, httpapi.CoverageFilter{Filter: strange}, catalog.Page{})
			return err
		},
		"history": func(ctx context.Context) error {
			_, err := b.selectedVMs(ctx, httpapi.HistoryFilter{Filter: strange})
			return err
		},
		"restore of many": func(ctx context.Context) error {
			_, err := b.recoverer.PlanMany(ctx, recover.ManySpec{Filter: strange})
			return err
		},
		"exclusion": func(ctx context.Context) error {
			_, err := b.AddExclusion(ctx, admin, catalog.Exclusion{Filter: strange, Reason: "r"})
			return err
		},
		"policy": func(ctx context.Context) error {
			_, err := b.CreatePolicy(ctx, admin, b.change(policy.Spec{Filter: strange}))
			return err
		},
		"plan of a policy": func(ctx context.Context) error {
			_, err := b.PlanPolicy(ctx, "", b.change(policy.Spec{Filter: strange}))
			return err
		},
		"proposed policy": func(ctx context.Context) error {
			proposed := httpapi.ProposedPolicy{PolicyChange: b.change(policy.Spec{Filter: strange})}
			_, err := b.PlanCoverage(ctx, httpapi.CoverageProposal{Policies: []httpapi.ProposedPolicy{proposed}})
			return err
		},
		"proposed exclusion": func(ctx context.Context) error {
			_, err := b.PlanCoverage(ctx, httpapi.CoverageProposal{Exclusions: []catalog.Exclusion{{Filter: strange, Reason: "r"}}})
			return err
		},
	} {
		if err := ask(t.Context()); !saysStates(err) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

// TestAStoredFilterThatNoVMCanPass: what was taken by an older version is gone on with, and can be paused, planned and put right.
func TestAStoredFilterThatNoVMCanPass(t *testing.T) {
	b := stillBench(t)
	ctx := t.Context()
	row := b.policyDueAt(time.Now().Add(time.Hour), policy.Spec{Filter: strange + " or name = web"})
	if err := b.catalog.AddExclusion(ctx, &catalog.Exclusion{Filter: strange, Reason: "r"}); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}
	b.start()
	if turn := b.turn(time.Now().Add(2 * time.Hour)); turn.State != catalog.TurnDone {
		t.Errorf("turn = %+v", turn)
	}
	c := httpapi.PolicyChange{Name: row.Name, Spec: row.Spec, Paused: true}
	plan, err := b.PlanCoverage(ctx, httpapi.CoverageProposal{
		Policies:   []httpapi.ProposedPolicy{{ID: row.ID, PolicyChange: c}},
		Exclusions: []catalog.Exclusion{{Filter: strange, Reason: "r"}},
	})
	if err != nil || len(plan.Policies) != 1 {
		t.Errorf("plan = %+v, %v", plan, err)
	}
	if _, err := b.ReplacePolicy(ctx, admin, row.ID, c); err != nil {
		t.Errorf("pause: %v", err)
	}
	c.Spec.Filter = strange + " or all"
	if _, err := b.ReplacePolicy(ctx, admin, row.ID, c); !saysStates(err) {
		t.Errorf("another such filter: %v", err)
	}
}
