package fleet

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
)

// TestFailedTakeover: a new stream that dies while it takes the place of one that lives leaves none that nobody knows:
// the mover is told to come again.
func TestFailedTakeover(t *testing.T) {
	dir := t.TempDir()
	c, err := catalog.Open(t.Context(), catalog.Options{Path: filepath.Join(dir, "c.db"), KeyFile: filepath.Join(dir, "key")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	m := catalog.Mover{ID: "mover_1", Name: "m1"}
	f := New(Options{Catalog: c, Log: slog.New(slog.DiscardHandler)})
	stream := func() *link {
		return &link{fleet: f, mover: m, incarnation: "one", gone: make(chan struct{}), wake: make(chan struct{}, 1)}
	}
	lives, dies := stream(), stream()
	f.links[m.ID] = lives
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.attach(dead, dies, &pb.Hello{Incarnation: "one"}); err == nil {
		t.Fatal("a stream that is dead was attached")
	}
	if f.links[m.ID] == dies {
		t.Error("the dead stream is the mover's")
	}
	messages, last := lives.take()
	if f.links[m.ID] != lives && !last {
		t.Errorf("nobody knows the stream that lives, and it was told %v", messages)
	}
	if last && messages[len(messages)-1].GetGoodbye().GetReason() != pb.Goodbye_REASON_UNSPECIFIED {
		t.Errorf("it was told not to come again: %v", messages)
	}
}
