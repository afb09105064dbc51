package schedule

import (
	"fmt"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
)

// BenchmarkDecide decides for 10,000 VMs whose turn it is, under 20 policies.
func BenchmarkDecide(b *testing.B) {
	s := State{Now: time.Date(2026, 3, 4, 22, 1, 0, 0, time.UTC)}
	for i := range 20 {
		rules, err := policy.Understand(policy.Spec{
			Filter: fmt.Sprintf("cluster = c%d and not tag in (scratch, test) or name ~ x%d-*", i, i), Schedule: "22:00", Limits: policy.Limits{Connection: 8, Host: 2},
		})
		if err != nil {
			b.Fatal(err)
		}
		s.Policies = append(s.Policies, Policy{policy.Candidate{ID: fmt.Sprint("p", i), Name: fmt.Sprint(i), Rules: rules}, s.Now})
	}
	for i := range 10_000 {
		vm := policy.VM{ID: fmt.Sprint("vm", i), Name: fmt.Sprint("vm-", i), Cluster: fmt.Sprint("c", i%20), ConnectionID: "conn", Host: fmt.Sprint("h", i%40), Tags: []string{"gold"}}
		s.VMs = append(s.VMs, vm)
		s.Turns = append(s.Turns, catalog.Turn{ID: fmt.Sprint("t", i), PolicyID: fmt.Sprint("p", i%20), VMID: vm.ID, Due: s.Now.Add(-time.Minute), State: catalog.TurnWaiting})
	}
	for b.Loop() {
		if plan := Decide(s); len(plan.Begins) != ahead || len(plan.Waits) != 10_000-ahead {
			b.Fatalf("%d begin, %d wait", len(plan.Begins), len(plan.Waits))
		}
	}
}
