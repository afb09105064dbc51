package store

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
)

// What is proven is doubted from the first read that meets damage in it, whatever reads, and is proven again when the
// damage turns out to be none, or is healed.
func TestProofEndsWithTheFirstDamageThatIsRead(t *testing.T) {
	spoil := map[string]func(t *testing.T, name string){
		"flipped": func(t *testing.T, name string) {
			if err := flipAt(name, 1000); err != nil {
				t.Fatal(err)
			}
		},
		"missing": func(t *testing.T, name string) {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		},
	}
	readers := map[string]func(t *testing.T, r *Repository, p RestorePoint) error{
		"ReadAt": func(t *testing.T, r *Repository, p RestorePoint) error {
			i := openImage(t, r, p)
			_, err := i.ReadAt(make([]byte, i.Size()), 0)
			return err
		},
		"Stream": func(t *testing.T, r *Repository, p RestorePoint) error {
			return openImage(t, r, p).Stream(t.Context(), 1, func(int64, []byte) error { return nil })
		},
	}
	for damage, spoil := range spoil {
		for reader, read := range readers {
			t.Run(damage+" "+reader, func(t *testing.T) {
				f := newFleet(t, rand.New(rand.NewPCG(5, 1)), 2, 1)
				r := f.open(f.dir)
				defer func() { f.shut(r) }()
				points, err := r.RestorePoints(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := r.Sweep(t.Context(), SweepOptions{}); err != nil {
					t.Fatal(err)
				}
				copied := f.dir + ".copy"
				if err := os.CopyFS(copied, os.DirFS(f.dir)); err != nil {
					t.Fatal(err)
				}
				f.shut(r) // a file that is open could be read although it is gone
				r = f.open(f.dir)
				// The second machine's own packs: those that the first does not need.
				first := newMarker(r)
				p, err := r.point(t.Context(), points[0].ID)
				if err != nil {
					t.Fatal(err)
				}
				if err := first.mark(t.Context(), pointRoots(p)); err != nil {
					t.Fatal(err)
				}
				spoiled := 0
				for _, p := range r.idx.Packs() {
					if p.Kind == pack.Data && first.packs[p.ID] == nil {
						spoil(t, filepath.Join(f.dir, pack.Name(p.ID)))
						spoiled++
					}
				}
				if err := read(t, r, points[1]); fault.KindOf(err) != fault.Corrupt || spoiled == 0 {
					t.Fatalf("%d packs are spoiled; reading: %v", spoiled, err)
				}
				wantProven(t, r, points[0].ID)
				from := f.open(copied)
				defer f.shut(from)
				if _, err := r.Heal(t.Context(), HealOptions{From: []*Repository{from}}); err != nil {
					t.Fatal(err)
				}
				wantProven(t, r, points[0].ID, points[1].ID)
			})
		}
	}
}

// A file that was put back is no damage any more as soon as somebody has looked.
func TestProofComesBackWithTheFile(t *testing.T) {
	f := newFleet(t, rand.New(rand.NewPCG(5, 2)), 1, 1)
	r := f.open(f.dir)
	defer f.shut(r)
	points, err := r.RestorePoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Sweep(t.Context(), SweepOptions{}); err != nil {
		t.Fatal(err)
	}
	var name string
	for _, p := range r.idx.Packs() {
		if p.Kind == pack.Data {
			name = filepath.Join(f.dir, pack.Name(p.ID))
			break
		}
	}
	if err := os.Rename(name, name+".aside"); err != nil {
		t.Fatal(err)
	}
	if report, err := r.Check(t.Context()); err != nil || len(report.Problems) == 0 {
		t.Fatalf("Check = %+v, %v", report, err)
	}
	wantProven(t, r)
	if err := os.Rename(name+".aside", name); err != nil {
		t.Fatal(err)
	}
	wantProven(t, r, points[0].ID)
}

func openImage(t *testing.T, r *Repository, p RestorePoint) *ImageReader {
	t.Helper()
	i, err := r.OpenImage(t.Context(), p.Images[0].Ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

// wantProven compares the restore points that count as proven.
func wantProven(t *testing.T, r *Repository, want ...string) {
	t.Helper()
	got, err := r.LastVerified(t.Context())
	if err != nil || len(got) != len(want) {
		t.Errorf("LastVerified = %v, %v; want %v", got, err, want)
	}
	for _, id := range want {
		if got[id].IsZero() {
			t.Errorf("%s is not proven: %v", id, got)
		}
	}
}
