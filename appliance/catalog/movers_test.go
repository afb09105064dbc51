package catalog

import (
	"testing"
	"time"
)

// TestMachineIsSettledByEnrolment: a mover cannot point to another VM later, into which disks would be plugged.
func TestMachineIsSettledByEnrolment(t *testing.T) {
	c := open(t, t.TempDir())
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
