package index

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/store/seal"
)

func TestSuspectsLastAndGoWithTheirPacks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open1(t, dir, 1)
	for id := byte(1); id <= 3; id++ {
		if err := x.Add(directory(id, 10*int(id), 5)); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[byte]bool{1: true, 2: true, 3: true, 9: false} {
		if first, err := x.Suspect(seal.ID{id}); err != nil || first != want {
			t.Errorf("Suspect(%d) = %v, %v, want %v", id, first, err, want)
		}
	}
	if first, err := x.Suspect(seal.ID{1}); err != nil || first {
		t.Errorf("second Suspect = %v, %v", first, err)
	}
	if err := x.Acquit(seal.ID{2}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(x.Forget(seal.ID{3}), x.Sweep()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if diff := cmp.Diff([]seal.ID{{1}}, x.Suspects()); diff != "" {
			t.Errorf("Suspects (-want +got):\n%s", diff)
		}
		if !x.IsSuspect(seal.ID{1}) || x.IsSuspect(seal.ID{2}) || !x.AnySuspect() {
			t.Error("IsSuspect and Suspects do not agree")
		}
		if len(lookup(t, x, 10)) != 1 {
			t.Error("a suspect pack is not found: it may still be read")
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		x = open1(t, dir, 1)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
}
