package catalog

import (
	"testing"
	"time"
)

// TestMoversOfTheFourthVersionGetTheirColumn opens a catalog whose movers were all enrolled by hand.
func TestMoversOfTheFourthVersionGetTheirColumn(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	for _, q := range []string{
		"ALTER TABLE movers DROP COLUMN deployed_on", "ALTER TABLE repositories DROP COLUMN generation", "ALTER TABLE vms DROP COLUMN facts", "DROP INDEX idx_runs_policy_id", "ALTER TABLE runs DROP COLUMN policy_id", "ALTER TABLE runs DROP COLUMN turn_id",
		"DROP INDEX idx_tasks_manager_id", "ALTER TABLE tasks DROP COLUMN manager_id", "ALTER TABLE events DROP COLUMN manager_id",
		"ALTER TABLE repositories DROP COLUMN compression", "UPDATE schema_version SET version = 4",
		"INSERT INTO movers (id, name, slots) VALUES ('mover_1', 'm1', 4)",
	} {
		if _, err := c.sql.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	if err := c.DeployedMover(t.Context(), "mover_1", "conn_1"); err != nil {
		t.Fatal(err)
	}
	m, err := c.Mover(t.Context(), "mover_1")
	if err != nil || m.Name != "m1" || m.DeployedOn != "conn_1" {
		t.Errorf("mover %+v, %v", m, err)
	}
}

// TestMachineIsSettledByEnrolment: a mover cannot point to another VM later, into which disks would be plugged.
func TestMachineIsSettledByEnrolment(t *testing.T) { onEach(t, testMachineIsSettledByEnrolment) }

func testMachineIsSettledByEnrolment(t *testing.T, dir string) {
	c := open(t, dir)
	ctx := t.Context()
	if err := c.AddJoinToken(ctx, &JoinToken{Hash: "h", ExpiresAt: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	m := Mover{Name: "m1", Facts: MoverFacts{MachineUUID: "its own", Version: "1"}}
	if _, err := c.EnrolMover(ctx, "h", "key", &m); err != nil {
		t.Fatal(err)
	}
	for _, claim := range []string{"another", ""} {
		m.Facts.MachineUUID, m.Facts.Version = claim, "2"
		if err := c.SeeMover(ctx, m); err != nil {
			t.Fatal(err)
		}
		got, err := c.Mover(ctx, m.ID)
		if err != nil || got.Facts.MachineUUID != "its own" || got.Facts.Version != "2" {
			t.Errorf("after the claim %q: %+v, %v; want its own machine and what else is new", claim, got.Facts, err)
		}
	}
}
