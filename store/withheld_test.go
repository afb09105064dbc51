package store

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
)

// halfDone writes all chunks of a disk into one pack that is durable and not said to be done.
func halfDone(t *testing.T, g *rig, disk []byte) (c *Carrier, done func() error) {
	t.Helper()
	c = newCarrier(t, g.repo, int64(len(disk)))
	p := newPorter(g.repo, c)
	if err := p.write(t.Context(), disk, 0, 1000); err != nil {
		t.Fatal(err)
	}
	d, err := p.w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c, func() error { return c.PackDone(context.Background(), d.Header.ID, d.Size()) }
}

// TestPackNotDoneIsNobodys has everything look at the packs that looks, while one is there that its mover has not said to
// be done: no other session may rely on it, for it goes with its carrier.
func TestPackNotDoneIsNobodys(t *testing.T) {
	looks := map[string]func(g *rig) error{
		"sweep":  func(g *rig) error { _, err := g.repo.Sweep(context.Background(), SweepOptions{}); return err },
		"damage": func(g *rig) error { _, err := g.repo.KnownDamage(context.Background()); return err },
		"heal":   func(g *rig) error { _, err := g.repo.Heal(context.Background(), HealOptions{}); return err },
		"sync":   func(g *rig) error { return g.repo.syncIndex(context.Background()) },
		"collect": func(g *rig) error {
			report, err := g.repo.Collect(context.Background(), CollectOptions{})
			if report.PacksUnreadable != 0 {
				g.t.Errorf("%d packs are called unreadable", report.PacksUnreadable)
			}
			return err
		},
	}
	for name, look := range looks {
		for _, delivered := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				g := newRig(t)
				disk := make([]byte, 8*testChunk)
				fill(rand.New(rand.NewPCG(73, 1)), disk)
				c, done := halfDone(t, g, disk)
				if err := look(g); err != nil {
					t.Fatal(err)
				}
				s := g.begin()
				ref, st := g.write(s, disk, nil, nil)
				if st.ChunksNew != 8 {
					t.Errorf("another session stored %d of 8 chunks", st.ChunksNew)
				}
				if delivered {
					if err := done(); err != nil {
						t.Fatal(err)
					}
				}
				if err := c.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				g.mustHold(g.publish(s, ref), disk)
				if n := len(g.repo.withheld.ids); n != 0 {
					t.Errorf("%d packs are withheld still", n)
				}
				g.reopen()
				if rep, err := g.repo.Check(t.Context()); err != nil || len(rep.Problems) > 0 {
					t.Errorf("check: %v, %v", rep.Problems, err)
				}
			})
		}
	}
}

// TestRefusedPackStaysAway refuses a pack of which the mover writes the same again at that time.
func TestRefusedPackStaysAway(t *testing.T) {
	g := newRig(t)
	c := newCarrier(t, g.repo, 1<<20)
	grant, err := c.NewPack(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	id := grant.Header.ID
	put := func(w interface{ Write([]byte) (int, error) }) {
		if _, err := w.Write(make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
	}
	again, err := c.CreatePack(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	put(again)
	// As by a mover that has the backend mounted.
	direct, err := g.b.Create(t.Context(), pack.Name(id))
	if err != nil {
		t.Fatal(err)
	}
	put(direct)
	if err := direct.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.PackDone(t.Context(), id, 5000); fault.KindOf(err) != fault.Denied {
		t.Fatalf("a pack of zeros: %v", err)
	}
	if err := again.Commit(t.Context()); err == nil {
		t.Error("a pack was put back that was refused")
	}
	if _, err := g.b.Stat(t.Context(), pack.Name(id)); fault.KindOf(err) != fault.NotFound {
		t.Errorf("the pack that was refused: %v", err)
	}
}
