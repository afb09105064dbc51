package peers

import (
	"context"
	"log/slog"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
)

// willing is a queue that has nothing to do.
type willing struct{}

func (willing) Lead(bool)                              {}
func (willing) TakeOver(context.Context, string) error { return nil }
func (willing) GiveUp(string)                          {}
func (willing) CancelHere(string)                      {}

// TestMadeWhileDutiesAreAskedFor: a repository that was made after the duties were read is not among them, and is kept all the same.
func TestMadeWhileDutiesAreAskedFor(t *testing.T) {
	closed := make(chan string, 1)
	p := &Peers{
		o: Options{Queue: willing{}, Log: slog.New(slog.DiscardHandler), Close: func(_ context.Context, id string) error {
			closed <- id
			return nil
		}},
		owned: map[string]*repository{},
	}
	p.ask()
	if err := p.Made(t.Context(), "repo_1"); err != nil {
		t.Fatal(err)
	}
	p.apply(t.Context(), catalog.Duties{})
	if !p.Owns("repo_1") {
		t.Error("a repository that was made meanwhile was given up")
	}
	p.ask()
	p.apply(t.Context(), catalog.Duties{}) // which knew it, and have it as another manager's
	if id := <-closed; p.Owns("repo_1") || id != "repo_1" {
		t.Errorf("closed %q, a repository of another manager is kept", id)
	}
	p.done.Wait()
}
