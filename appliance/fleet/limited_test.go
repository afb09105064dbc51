package fleet_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// TestLimitsReachTheMover: a limit is told to a mover that is connected, and to one that comes back, and taken back.
func TestLimitsReachTheMover(t *testing.T) {
	m := newManager(t, fleet.Timing{})
	v := newMover(t, m, m.token(fleet.NewToken{}))
	reads := make(chan int64, 16)
	v.config.ReadLimit = func(n int64) { reads <- n }
	v.start()
	next := func(want int64) {
		t.Helper()
		select {
		case got := <-reads:
			if got != want {
				t.Errorf("limit %d, want %d", got, want)
			}
		case <-time.After(patience):
			t.Fatal("the mover is not told")
		}
	}
	next(0)
	who := fleet.Who{User: "admin", Source: "192.0.2.1"}
	l, err := m.fleet.AddLimit(t.Context(), who, catalog.MoverLimit{Kind: catalog.LimitMover, Name: "m1", Read: 1 << 20, Network: 2 << 20})
	check(t, err)
	next(1 << 20)
	info, err := m.fleet.Get(t.Context(), "m1")
	check(t, err)
	if want := (fleet.Bandwidth{Read: 1 << 20, Network: 2 << 20}); info.Limit != want || !l.Holds {
		t.Errorf("limit %+v, holds %v", info.Limit, l.Holds)
	}
	check(t, v.end())
	v.start() // another process, which has to be told
	next(1 << 20)
	check(t, m.fleet.RemoveLimit(t.Context(), who, l.ID))
	next(0)
	if err := m.fleet.RemoveLimit(t.Context(), who, l.ID); fault.KindOf(err) != fault.NotFound {
		t.Errorf("removed twice: %v", err)
	}
	if a := m.audited("mover.limit"); len(a) != 1 || a[0].Actor != "admin" || a[0].Subject != "m1" {
		t.Errorf("audit %+v", a)
	}
}

// TestSlotsOfADatastore: a transfer waits while its datastore has as many as it may, restores and backups together, and
// goes on as soon as the limit is taken back.
func TestSlotsOfADatastore(t *testing.T) {
	m, _ := enrolled(t, fleet.Timing{})
	who := fleet.Who{User: "admin"}
	l, err := m.fleet.AddLimit(t.Context(), who, catalog.MoverLimit{Kind: catalog.LimitDatastore, Name: "pool", Slots: 1})
	check(t, err)
	own := fleet.Candidate{ID: "built-in", Name: "built-in", BuiltIn: true, State: fleet.Online, Slots: 8}
	wish := func(writable bool) fleet.Wish {
		return fleet.Wish{Mover: "m1", Datastore: "pool", Connection: "c", Export: hypervisors.Export{Transport: hypervisors.TransportNBD, Writable: writable}}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, err := m.fleet.Find(ctx, wish(false), own, nil, nil)
	check(t, err)
	words, found := m.waits(ctx, wish(true), own)
	if !strings.Contains(words, "datastore pool has 1 transfers already") {
		t.Errorf("waits: %q", words)
	}
	check(t, m.fleet.RemoveLimit(t.Context(), who, l.ID))
	check(t, <-found)
	first.Release()
}
