package ovirt

import (
	"context"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// TestEverySessionIsConfirmed looks that nothing is asked of an engine that is not the one wanted, and that no session is left there.
func TestEverySessionIsConfirmed(t *testing.T) {
	e := startEngine(t, ovirtsim.Config{Site: testSite(false)})
	var want string
	asked := 0
	d := openDriver(t, e, func(c *Config) {
		c.Confirm = func(_ context.Context, _, id string) error {
			asked++
			if want == "" {
				want = id
			}
			if id != want {
				return fault.New(fault.Conflict, "confirm", id, "it is another")
			}
			return nil
		}
	})
	if _, err := d.VM(t.Context(), webID); err != nil || asked != 1 || want == "" {
		t.Fatalf("asked %d times for %q, %v", asked, want, err)
	}
	if _, err := d.VM(t.Context(), webID); err != nil || asked != 1 {
		t.Errorf("a VM in the same session: asked %d times, %v", asked, err)
	}
	if _, err := d.VMs(t.Context()); err != nil || asked != 2 {
		t.Errorf("an inventory in the same session: asked %d times, %v", asked, err)
	}
	right := want
	want = "another"
	if _, err := d.VMs(t.Context()); fault.KindOf(err) != fault.Conflict || e.Sessions() != 0 {
		t.Errorf("refused within a session: %v, want a Conflict; %d sessions are left", err, e.Sessions())
	}
	want = right
	if _, err := d.VM(t.Context(), webID); err != nil {
		t.Errorf("confirmed again: %v", err)
	}
	e.Reinstall()
	for what, do := range map[string]func() error{
		"a VM":         func() error { _, err := d.VM(t.Context(), webID); return err },
		"an inventory": func() error { _, err := d.VMs(t.Context()); return err },
		"a check":      func() error { _, err := d.Check(t.Context()); return err },
	} {
		if err := do(); fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s of another engine: %v, want a Conflict", what, err)
		}
		if n := e.Sessions(); n != 0 {
			t.Errorf("%s of another engine: %d sessions are left there", what, n)
		}
	}
}
