package recover

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

func TestVMsThatDoNotFitTogether(t *testing.T) {
	p, err := memplatform.New(memplatform.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	r := &Recoverer{drivers: func(context.Context, string) (hypervisors.Driver, error) { return p.Driver(), nil }}
	stores, err := p.Driver().Datastores(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	free := stores[0].FreeBytes
	vm := func(size, used int64, datastore string) PlannedVM {
		return PlannedVM{VM: policy.VM{Name: "x"}, Plan: Plan{ConnectionID: "c", Request: hypervisors.RestoreRequest{
			VM:    hypervisors.VM{Disks: []hypervisors.Disk{{ID: "a", SizeBytes: size, UsedBytes: used, Datastore: stores[0].Name}, {ID: "b", SizeBytes: free * 2}}},
			Disks: []hypervisors.RestoreDisk{{ID: "a", SizeBytes: size, Datastore: datastore}},
		}}}
	}
	failed := vm(free, 0, "")
	failed.Err = errors.New("it cannot be restored")
	for name, tt := range map[string]struct {
		vms  []PlannedVM
		warn bool
	}{
		"just":                        {[]PlannedVM{vm(free/2, 0, ""), vm(free/2, 0, stores[0].Name)}, false},
		"too large":                   {[]PlannedVM{vm(free/2, 0, ""), vm(free/2+1, 0, stores[0].Name)}, true},
		"too large by id":             {[]PlannedVM{vm(free+1, 0, stores[0].ID)}, true},
		"thin":                        {[]PlannedVM{vm(free*4, free/2, ""), vm(free*4, free/2, "")}, false},
		"elsewhere":                   {[]PlannedVM{vm(free/2, 0, ""), vm(free/2+1, 0, "other")}, false},
		"one that cannot be restored": {[]PlannedVM{vm(free, 0, ""), failed}, false},
	} {
		got, err := r.crowded(t.Context(), tt.vms)
		if err != nil || (len(got) > 0) != tt.warn || tt.warn && !strings.Contains(got[0], stores[0].Name) {
			t.Errorf("%s: warnings %q, %v, want some: %v", name, got, err, tt.warn)
		}
	}
}
