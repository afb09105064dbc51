package index

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// TestLoadIsLikeAdd compares an index that was loaded with one to which the same packs were added, in another order.
func TestLoadIsLikeAdd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x, y := open1(t, dir, 1), open1(t, "", 1)
	defer y.Close()
	old := directory(1, 0, 10) // there before, and forgotten: its number must stay its own
	if err := errors.Join(x.Add(old), x.Forget(seal.ID{1})); err != nil {
		t.Fatal(err)
	}
	l, err := x.Load()
	if err != nil {
		t.Fatal(err)
	}
	l.size = 700
	const packs, per = 120, 200 // many runs
	for n := range packs {
		d := directory(byte(n+2), n*per/2, per) // half of each pack is in the next one too
		d.Entries[7].Refs = []pack.Ref{{}}
		d.Entries[9].ID = d.Entries[8].ID // an object twice
		if err := errors.Join(l.Add(d), l.Add(d)); err != nil {
			t.Fatal(err)
		}
		if got := lookup(t, x, n*per/2); len(got) != 0 {
			t.Fatalf("an entry is seen before Finish: %v", got)
		}
	}
	for n := packs - 1; n >= 0; n-- {
		d := directory(byte(n+2), n*per/2, per)
		d.Entries[7].Refs = []pack.Ref{{}}
		d.Entries[9].ID = d.Entries[8].ID
		if err := y.Add(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	same := func() {
		t.Helper()
		got, err := x.Dump()
		if err != nil {
			t.Fatal(err)
		}
		want, err := y.Dump()
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != packs*(per-1) || !maps.Equal(want, got) || !slices.Equal(y.Packs(), x.Packs()) {
			t.Errorf("%d entries loaded, %d added, or they differ", len(got), len(want))
		}
	}
	same()
	if got := lookup(t, x, 5); len(got) != 1 || got[0].Pack != (seal.ID{2}) {
		t.Errorf("an entry of the forgotten pack came to life: %v", got)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	x = open1(t, dir, 1)
	defer x.Close()
	same()
	if _, err := os.Stat(filepath.Join(dir, loadFolder)); !os.IsNotExist(err) {
		t.Errorf("the load's folder is left: %v", err)
	}
	if err := x.Add(directory(255, 1<<30, 5)); err != nil {
		t.Fatal(err)
	}
	if got := lookup(t, x, 1<<30); len(got) != 1 || got[0].Pack != (seal.ID{255}) {
		t.Errorf("added after a load: %v", got)
	}
}

func TestLoadThatEndsEarlyLeavesNothing(t *testing.T) {
	for name, end := range map[string]func(*Loader) error{
		"abort": func(l *Loader) error { return l.Abort() },
		"cancel": func(l *Loader) error {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := l.Finish(ctx); !errors.Is(err, context.Canceled) {
				return errors.New("finished though it was cancelled")
			}
			return nil
		},
		"lost run": func(l *Loader) error {
			if err := errors.Join(l.wait(), os.RemoveAll(l.dir)); err != nil {
				return err
			}
			if err := l.Finish(context.Background()); err == nil {
				return errors.New("finished without its runs")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := open1(t, filepath.Join(t.TempDir(), "index"), 1)
			defer x.Close()
			l, err := x.Load()
			if err != nil {
				t.Fatal(err)
			}
			l.size = 700
			for n := range 20 {
				if err := l.Add(directory(byte(n+1), n*800, 800)); err != nil {
					t.Fatal(err)
				}
			}
			if err := end(l); err != nil {
				t.Fatal(err)
			}
			if n := len(x.Packs()); n != 0 || len(lookup(t, x, 5)) != 0 {
				t.Errorf("%d packs", n)
			}
			if err := x.Add(directory(1, 0, 10)); err != nil || len(lookup(t, x, 5)) != 1 {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}
