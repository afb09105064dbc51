package jobs

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
)

// cleaner is a driver that notes what it removes, and cannot remove some of it.
type cleaner struct {
	hypervisors.Driver
	removed []string
	stuck   map[string]bool
}

// CleanUp implements hypervisors.Driver.
func (c *cleaner) CleanUp(_ context.Context, o hypervisors.Owed) error {
	c.removed = append(c.removed, o.Name)
	if c.stuck[o.Name] {
		return errors.New("the guest does not answer")
	}
	return nil
}

// plugged has a task of which a backup job, a disk in a mover and a checkpoint are owed, in the order of their making.
func plugged(t *testing.T, kind catalog.RunKind) (*fixture, *cleaner, *Journal, string) {
	t.Helper()
	f := newFixture(t, nil)
	c := &cleaner{Driver: f.platform.Driver(), stuck: map[string]bool{}}
	j := NewJournal(f.catalog, func(context.Context, string) (hypervisors.Driver, error) { return c, nil }, slog.New(slog.DiscardHandler))
	task := f.submit(kind, f.vm.ID)
	for _, o := range []hypervisors.Owed{
		{Kind: "job", VM: f.vm.ID, Name: "job"},
		{Kind: hypervisors.OwedAttached, VM: "mover", Name: "disk in the mover"},
		{Kind: "late", VM: f.vm.ID, Name: "made last"},
	} {
		if err := j.Owe(f.conn, task.ID)(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	return f, c, j, task.ID
}

func (c *cleaner) want(t *testing.T, what string, names ...string) {
	t.Helper()
	if diff := cmp.Diff(names, c.removed); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
	c.removed = nil
}

// TestDisksInMoversGoFirst: what a plugged disk is made of goes after it, also when only the VM it is of is settled.
func TestDisksInMoversGoFirst(t *testing.T) {
	for name, settle := range map[string]func(f *fixture, j *Journal, task string) error{
		"the task": func(f *fixture, j *Journal, task string) error { return j.Settle(f.t.Context(), task) },
		"the VM": func(f *fixture, j *Journal, _ string) error {
			return j.SettleVM(f.t.Context(), f.conn, f.vm.ID, "another task")
		},
		"the sweep": func(f *fixture, j *Journal, task string) error {
			if _, err := f.catalog.MoveTask(f.t.Context(), task, catalog.Cancelled, nil); err != nil {
				f.t.Log(err) // it is over already
			}
			return j.sweepJournal(f.t.Context(), nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, c, j, task := plugged(t, catalog.KindBackup)
			c.stuck["disk in the mover"] = true
			for range attachedPatience - 1 {
				if err := settle(f, j, task); err == nil {
					t.Error("a disk that could not be unplugged is no error")
				}
				c.want(t, "while the disk is in the mover", "disk in the mover")
			}
			if err := settle(f, j, task); err == nil {
				t.Error("a disk that could not be unplugged is no error")
			}
			c.want(t, "when patience has ended", "disk in the mover", "made last", "job")
			if n := f.owed(); n != 1 {
				t.Errorf("%d clean-ups are owed, want the disk's", n)
			}
			c.stuck = nil
			if err := j.Settle(t.Context(), task); err != nil {
				t.Error(err)
			}
			c.want(t, "when the mover answers", "disk in the mover")
			if n := f.owed(); n != 0 {
				t.Errorf("%d clean-ups are owed", n)
			}
		})
	}
}

// TestDiskInMoverIsNobodys: neither the end of a restore nor striking off makes a disk in a mover somebody's.
func TestDiskInMoverIsNobodys(t *testing.T) {
	f, c, j, task := plugged(t, catalog.KindRestore)
	if _, err := f.catalog.MoveTask(t.Context(), task, catalog.Running, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.catalog.SetResult(t.Context(), task, catalog.Result{VMPlatformID: "new"}); err != nil {
		t.Fatal(err)
	}
	c.stuck["disk in the mover"] = true
	if err := j.StrikeOff(t.Context(), task); err == nil {
		t.Error("struck off with a disk in a mover")
	}
	c.want(t, "at StrikeOff", "disk in the mover")
	if n := f.owed(); n != 3 {
		t.Errorf("%d clean-ups are owed, want all 3", n)
	}
	c.stuck = nil
	if err := j.Settle(t.Context(), task); err != nil {
		t.Error(err)
	}
	c.want(t, "what a restore made", "disk in the mover")
	if n := f.owed(); n != 0 {
		t.Errorf("%d clean-ups are owed", n)
	}
}
