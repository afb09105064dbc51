package store

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/store/blob/file"
)

// A scrub in steps reads each pack once, within its budget, and finds rot without any key.
func TestScrubInParts(t *testing.T) {
	f := newFleet(t, rand.New(rand.NewPCG(20261122, 15)), 2, 2)
	files := packFiles(t, f.dir)
	for _, name := range []string{files[0], files[len(files)-1]} {
		if err := flipFrame(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(f.dir, "config"), []byte(`{"config":`), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := file.Open(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	const budget = 600 << 10
	var bad []string
	packs, calls, last := 0, 0, int64(0)
	for after := ""; ; {
		calls++
		report, err := ScrubPart(t.Context(), b, ScrubOptions{Budget: budget, After: after, Progress: func(done, total int64) {
			if done <= last || done > total {
				t.Errorf("progress %d after %d, of %d", done, last, total)
			}
			last = done
		}})
		if err != nil {
			t.Fatal(err)
		}
		if report.Bytes > budget {
			t.Errorf("a call with a budget of %d read %d", budget, report.Bytes)
		}
		packs += report.Packs
		for _, p := range report.Problems {
			name, _, _ := strings.Cut(p, ":")
			bad = append(bad, name)
		}
		if after = report.Next; after == "" {
			break
		}
	}
	if want := []string{packName(files[0]), packName(files[len(files)-1]), "config"}; !slices.Equal(bad, want) {
		t.Errorf("problems with %v, want %v", bad, want)
	}
	if packs != len(files) || calls < 3 {
		t.Errorf("%d of %d packs in %d calls", packs, len(files), calls)
	}
}
