package index

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// TestCallsAfterClose: each answers an error of kind Conflict where Pebble would panic.
func TestCallsAfterClose(t *testing.T) {
	x := open1(t, "", 1)
	d := directory(1, 0, 10)
	if err := x.Add(d); err != nil {
		t.Fatal(err)
	}
	l := &Loader{x: x}
	if err := errors.Join(x.Close(), x.Close()); err != nil {
		t.Fatal(err)
	}
	place := []Location{{Pack: seal.ID{1}}}
	for name, call := range map[string]func() error{
		"Add":         func() error { return x.Add(directory(2, 0, 10)) },
		"Lookup":      func() error { _, err := x.Lookup(nil, d.Entries[0].ID); return err },
		"LookupAll":   func() error { return x.LookupAll([]chunk.Hash{{}}, nil) },
		"Forget":      func() error { return x.Forget(seal.ID{1}) },
		"Sweep":       x.Sweep,
		"Dump":        func() error { _, err := x.Dump(); return err },
		"PacksWith":   func() error { _, err := x.PacksWith(nil, chunk.Fingerprint{}, 1); return err },
		"DumpBlocks":  func() error { _, err := x.DumpBlocks(); return err },
		"SetLeaf":     func() error { return x.SetLeaf(chunk.Hash{}, place, place) },
		"Leaf":        func() error { _, _, err := x.Leaf(nil, chunk.Hash{}); return err },
		"SweepLeaves": func() error { return x.SweepLeaves(nil) },
		"SetProof":    func() error { return x.SetProof(seal.ID{1}, Proof{}) },
		"Proofs":      func() error { _, err := x.Proofs(); return err },
		"SetNote":     func() error { return x.SetNote("a", nil) },
		"Notes":       func() error { _, err := x.Notes(""); return err },
		"Suspect":     func() error { _, err := x.Suspect(seal.ID{1}); return err },
		"Acquit":      func() error { return x.Acquit(seal.ID{1}) },
		"finish":      func() error { return l.finish(t.Context()) },
	} {
		if err := call(); fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s after Close = %v", name, err)
		}
	}
}

// TestCloseBesideCalls closes while others look up and add, under Pebble's own checks.
func TestCloseBesideCalls(t *testing.T) {
	x := open1(t, filepath.Join(t.TempDir(), "index"), 1)
	d := directory(1, 0, 10)
	if err := x.Add(d); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	begun := make(chan struct{}, 4)
	for range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				if n == 100 {
					begun <- struct{}{}
				}
				if _, err := x.Lookup(nil, d.Entries[n%10].ID); err != nil {
					if fault.KindOf(err) != fault.Conflict {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	for range 4 {
		<-begun
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// TestLoadOntoAFullDisk: what is in memory does not fit any more, so the load ends with an error instead of waiting.
func TestLoadOntoAFullDisk(t *testing.T) {
	disk := smallDisk(t, "size=16m")
	x := open1(t, filepath.Join(disk, "index"), 1)
	d := &pack.Directory{Header: pack.Header{Kind: pack.Data}, Entries: make([]pack.Entry, scalePack)}
	n := 0
	for ; n*scalePack < 150_000; n++ {
		scaledPack(d, n)
		if err := x.Add(d); err != nil {
			t.Fatal(err)
		}
	}
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 16<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	info, err := os.Stat(ballast)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(ballast, info.Size()-1<<20); err != nil { // room for the load, which is small
		t.Fatal(err)
	}
	l, err := x.Load()
	if err != nil {
		t.Fatal(err)
	}
	l.size = 1000
	if err := l.Add(directory(200, 1<<30, 10)); err != nil {
		t.Fatal(err)
	}
	if err := l.Finish(t.Context()); !errors.Is(err, syscall.ENOSPC) || len(x.Packs()) != n {
		t.Errorf("a load onto a full disk: %v, %d packs, %d before", err, len(x.Packs()), n)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	err = x.flush()
	for try := 0; err != nil && try < 100; try++ { // one that was under way may still fail
		err = x.flush()
	}
	if err := errors.Join(err, x.Add(directory(200, 1<<30, 10)), x.Close()); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
