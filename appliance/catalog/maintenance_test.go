package catalog

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMaintenanceHasDefaults(t *testing.T) { onEach(t, testMaintenanceHasDefaults) }

func testMaintenanceHasDefaults(t *testing.T, dir string) {
	c := open(t, dir)
	schedules := func() map[MaintenanceKind]string {
		t.Helper()
		rows, err := c.Maintenance(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out := map[MaintenanceKind]string{}
		for _, m := range rows {
			out[m.Kind] = m.Schedule
		}
		return out
	}
	want := map[MaintenanceKind]string{MaintainInventory: "*:0/15", MaintainVerify: "*:00", MaintainPrune: "05:00", MaintainCollect: "05:30", MaintainSweep: "*:0/5", MaintainReread: "06:30"}
	if diff := cmp.Diff(schedules(), want); diff != "" {
		t.Errorf("of which nobody has said anything, -got +want:\n%s", diff)
	}
	for range 2 {
		err := c.UpdateMaintenance(t.Context(), MaintainVerify, func(m *Maintenance) {
			if m.BudgetBytes != DefaultBudget {
				t.Errorf("the budget is %d", m.BudgetBytes)
			}
			m.Schedule, m.Windows = "Sat 06:00", []string{"06:00-18:00"}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	want[MaintainVerify] = "Sat 06:00"
	if diff := cmp.Diff(schedules(), want); diff != "" {
		t.Errorf("changed, -got +want:\n%s", diff)
	}
}
