package server

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/protect"
)

// retention says to which VMs a policy's retention applies in a repository now: those that it covers and that are there. A VM that is not
// backed up any more, because it is gone, excluded or its policy is paused, loses nothing.
func (a *Appliance) retention(ctx context.Context, repositoryID string) ([]protect.Retained, error) {
	e, err := a.estate(ctx, time.Now())
	if err != nil {
		return nil, err
	}
	var out []protect.Retained
	for _, vm := range e.VMs {
		rules := e.active(e.covers.Which(vm))
		if rules == nil || rules.Spec.RepositoryID != repositoryID || rules.Spec.Retention.KeepsAll() {
			continue
		}
		out = append(out, protect.Retained{VMID: vm.ID, VMName: vm.Name, Retention: rules.Spec.Retention, Zone: rules.Zone})
	}
	return out, nil
}
