package e2e

import (
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// TestOVirtRestoreCluster loses a VM of a cluster and restores the cluster: what is lost comes back under its name, all of it beside the
// originals, each disk as it was frozen. A VM that was never backed up is named, and nothing begins until it may be left out.
func TestOVirtRestoreCluster(t *testing.T) {
	s := newSite(t, ovirtsim.Config{Site: waysSite()})
	ids := map[string]string{"tracked": ovirtTracked, "untracked": ovirtSnapshot}
	order := map[string][]string{}
	for name, id := range ids {
		order[name] = s.disks(id)
		s.backup(s.named(name).ID, s.repo.ID, nil)
		if err := s.engine.Write(t.Context(), id, 2); err != nil {
			t.Fatal(err)
		}
	}
	s.power(ovirtSnapshot, "stop", "down")
	s.removeVM(ovirtSnapshot)
	s.must("POST", "/connections/"+s.connection.ID+"/refresh", nil, nil)

	cluster := map[string]any{"filter": "cluster = Default", "mode": "new"}
	got := map[string]string{}
	for _, vm := range s.planMany(cluster).VMs {
		got[vm.VMName] = strings.TrimPrefix(vm.Error.Type, "/problems/")
	}
	if got["tracked"] != "exists" || got["plugged"] != "not-found" || got["untracked"] != "" || len(got) != 3 {
		t.Errorf("problems with the old names: %v", got)
	}
	refused(t, "VMs of which some cannot be restored", s.call("POST", "/restores/vms", cluster, nil), 409, "conflict")

	s.cairn("restore", "many", "--filter", "cluster = Default", "--same-names", "--leave-out", "--wait")
	back := s.named("untracked").PlatformID
	s.sameDisks("the VM that was lost", back, order["untracked"], s.frozenHashes(ovirtSnapshot))
	s.boots(back)
	s.power(back, "stop", "down")

	said := s.cairn("restore", "many", "--filter", "cluster = Default", "--name-suffix", "-copy", "--leave-out", "--wait")
	for name, id := range ids {
		s.sameDisks("the copy of "+name, s.named(name+"-copy").PlatformID, order[name], s.frozenHashes(id))
		if !strings.Contains(said, name+"-copy") {
			t.Errorf("cairn restore many says nothing of %s-copy:\n%s", name, said)
		}
	}
	var runs client.RunList
	s.must("GET", "/runs?kind=restore", nil, &runs)
	if len(runs.Items) != 2 || len(runs.Items[0].Tasks) != 2 || len(runs.Items[1].Tasks) != 1 {
		t.Errorf("the runs of the two restores are %+v", runs.Items)
	}
	s.clean("", "in the end")
}

// planMany says what restores of many VMs would make.
func (a *appliance) planMany(body map[string]any) client.RestoresPlan {
	a.t.Helper()
	var outcome client.RestoresOutcome
	a.must("POST", "/restores/vms", dry(body), &outcome)
	return outcome.Plan
}
