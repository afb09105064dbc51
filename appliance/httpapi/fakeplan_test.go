package httpapi

import (
	"context"

	"github.com/cairn-backup/cairn/appliance/fleet"
)

// This file is the part of fakeCore about plans of more than one thing, and changes of connections.

func (f *fakeCore) PlanCoverage(_ context.Context, p CoverageProposal) (CoveragePlan, error) {
	f.note(p)
	return one(f, "", "", CoveragePlan{
		Policies: []PolicyDiff{{Name: "gold", Action: PlanChange, Fields: []string{"filter"}}},
		Changed:  []PlannedVM{{ID: "vm_1", Name: "web", Before: "gold"}}, Pruned: []PointVerdict{someVerdict}, More: true, Anyway: 2,
	})
}

func (f *fakeCore) ReplaceConnection(_ context.Context, _ fleet.Who, id string, c NewConnection, _ bool) ([]string, error) {
	f.note(c)
	return one(f, id, "conn_1", []string{"address"})
}
