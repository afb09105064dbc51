package program

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// TestMountThatDoesNotAnswer runs on virtual time. A directory whose file system hangs costs a greeting one wait, later ones nothing,
// and is looked at again as soon as it has answered; the others are not concerned.
func TestMountThatDoesNotAnswer(t *testing.T) {
	good := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		looks := map[string]int{}
		var mu sync.Mutex
		m := newMounts([]string{"/dead", good}, slog.New(slog.DiscardHandler))
		m.open = func(_ context.Context, dir string) (*file.Store, string, error) {
			mu.Lock()
			looks[dir]++
			mu.Unlock()
			if dir == "/dead" {
				<-hang
			}
			s, err := file.Open(good)
			return s, "repo_1", err
		}
		began := time.Now()
		for range 3 {
			if got := m.facts(t.Context()); len(got) != 1 || got[0].GetPath() != good {
				t.Fatalf("facts = %v", got)
			}
		}
		if took := time.Since(began); took != lookTime || looks["/dead"] != 1 || looks[good] != 3 {
			t.Errorf("three greetings took %v and looked %v", took, looks)
		}
		if _, _, err := m.look(t.Context(), "/dead"); fault.KindOf(err) != fault.Transient {
			t.Errorf("a look meanwhile: %v", err)
		}
		if s := m.find(t.Context(), "repo_1", false); s == nil || s.Location() != good {
			t.Errorf("found %v", s)
		}
		close(hang)
		synctest.Wait()
		if got := m.facts(t.Context()); len(got) != 2 {
			t.Errorf("after it has answered: %v", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		hang = make(chan struct{})
		if _, _, err := m.look(ctx, "/dead"); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		close(hang)
		synctest.Wait()
		if n := m.unanswered("/dead"); n != 0 {
			t.Errorf("%d looks are counted as unanswered", n)
		}
	})
}

// TestMountsAreLookedAtByManyAtOnce: transfers that begin together all find their repository.
func TestMountsAreLookedAtByManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMounts([]string{t.TempDir()}, slog.New(slog.DiscardHandler))
		m.open = func(_ context.Context, dir string) (*file.Store, string, error) {
			time.Sleep(lookTime / 2)
			s, err := file.Open(dir)
			return s, "repo_1", err
		}
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if m.find(t.Context(), "repo_1", true) == nil {
					t.Error("not found")
				}
			})
		}
		all.Wait()
	})
}
