package tickets_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairn-backup/cairn/appliance/tickets"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

func TestTickets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refused []tickets.Refusal
		s := tickets.New(func(_ context.Context, r tickets.Refusal) { refused = append(refused, r) })
		good, end := s.Issue(tickets.Grant{Mover: "mover_a", Transfer: "tr_1", Expires: time.Now().Add(time.Hour)})
		expect := func(name, reason string, err error) {
			t.Helper()
			if reason == "" {
				if err != nil || len(refused) != 0 {
					t.Errorf("%s: %v, %v", name, err, refused)
				}
				return
			}
			if err == nil || fault.KindOf(err) != fault.Denied || len(refused) != 1 || refused[0].Reason != reason {
				t.Errorf("%s: %v, told %+v", name, err, refused)
			}
			refused = nil
		}
		_, err := s.Check(t.Context(), "mover_a", good, "")
		expect("not opened", "it was not opened by who uses it", err)
		_, err = s.Open(t.Context(), "mover_a", good, "")
		expect("no opener", "its opener has no word of its own", err)
		_, err = s.Open(t.Context(), "mover_b", good, "x")
		expect("another mover", "it was made for another mover", err)
		_, err = s.Open(t.Context(), "mover_a", "ticket_x", "x")
		expect("unknown", "it is not known, or its transfer has ended", err)
		g, err := s.Open(t.Context(), "mover_a", good, "x")
		expect("first", "", err)
		if g.Transfer != "tr_1" {
			t.Errorf("grant %+v", g)
		}
		_, err = s.Open(t.Context(), "mover_a", good, "x")
		expect("again after a broken connection", "", err)
		_, err = s.Open(t.Context(), "mover_a", good, "y")
		expect("replay", "it was used already", err)
		_, err = s.Check(t.Context(), "mover_a", good, "y")
		expect("replayed check", "it was not opened by who uses it", err)
		_, err = s.Check(t.Context(), "mover_a", good, "x")
		expect("check", "", err)
		time.Sleep(time.Hour)
		_, err = s.Check(t.Context(), "mover_a", good, "x")
		expect("expired", "its time is over", err)
		end()
		end()
		_, err = s.Check(t.Context(), "mover_a", good, "x")
		expect("ended", "it is not known, or its transfer has ended", err)
	})
}

// TestOneOpener: of many who open a ticket at once, one wins.
func TestOneOpener(t *testing.T) {
	s := tickets.New(nil)
	secret, end := s.Issue(tickets.Grant{Mover: "m"})
	defer end()
	const n = 8
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { _, errs[i] = s.Open(context.Background(), "m", secret, string(rune('a'+i))) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		}
	}
	if won != 1 {
		t.Errorf("%d opened it", won)
	}
}

func TestReads(t *testing.T) {
	a, b := store.ImageRef{SizeBytes: 1, Root: store.Hash{1}}, store.ImageRef{SizeBytes: 1, Root: store.Hash{2}}
	reader := tickets.Grant{Repository: &store.Repository{}, Images: []store.ImageRef{a}}
	writer := tickets.Grant{Images: []store.ImageRef{a}}
	if !reader.Reads(a) || reader.Reads(b) || writer.Reads(a) {
		t.Error("a grant reads what it does not name, or not what it names")
	}
}
