package catalog

import (
	"context"

	"github.com/cairn-backup/cairn/appliance/policy"
)

// VMsEver returns the VMs that a filter selects, by name, also those that vanished, as they were when they were last seen.
func (c *Catalog) VMsEver(ctx context.Context, filter policy.Filter) ([]policy.VM, error) {
	byID, err := c.connectionsByID(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := everything[VM](ctx, c, "VMs")
	if err != nil {
		return nil, err
	}
	var out []policy.VM
	for _, v := range rows {
		if v.GoneAt != nil { // it may never have been in an inventory
			v.Facts = factsOf(v.ID, v.ConnectionID, v.Description)
		}
		if facts := v.FactsIn(byID[v.ConnectionID]); filter.Match(facts) {
			out = append(out, facts)
		}
	}
	return out, nil
}
