package store

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob/blobtest"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/pack"
)

// besideRig is a repository with its owner, and a reader as another process has it, whose backend calls do before it
// reads from a pack.
type besideRig struct {
	*rig
	reader *Repository

	mu sync.Mutex
	do func() // once
}

func newBesideRig(t *testing.T, disks ...[]byte) (*besideRig, []RestorePoint) {
	t.Helper()
	small, _ := smallPacks(t, 512<<10)
	g := &besideRig{rig: small}
	var points []RestorePoint
	for _, disk := range disks {
		session := g.begin()
		ref, _ := g.write(session, disk, nil, nil)
		p, err := session.Publish(t.Context(), Manifest{
			Images: []NamedImage{{Name: "vda", Ref: ref}}, Documents: []Document{{Name: "domain.xml", Data: disk[:9]}},
		})
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, p)
	}
	b, err := file.Open(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	late := blobtest.Fails(b, func(op, name string) error {
		if op == "read" && strings.HasPrefix(name, "packs/") {
			g.mu.Lock()
			do := g.do
			g.do = nil
			g.mu.Unlock()
			if do != nil {
				do()
			}
			_, err := b.Stat(context.Background(), name) // without the files that it holds open, as over a network
			return err
		}
		return nil
	})
	if g.reader, err = Open(t.Context(), late, g.key, Options{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.reader.Close(); err != nil {
			t.Error(err)
		}
	})
	return g, points
}

// arm lets do happen when the reader goes to a pack next; fired says whether it did.
func (g *besideRig) arm(do func()) (fired func() bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reader.frames.Clear()
	g.reader.nodes.Clear()
	g.reader.directories.Clear()
	g.do = do
	return func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.do == nil
	}
}

// free prunes a restore point and collects what it had, as the owner.
func (g *besideRig) free(p RestorePoint) {
	g.t.Helper()
	if err := g.repo.Prune(g.t.Context(), p.ID); err != nil {
		g.t.Fatal(err)
	}
	report, err := g.repo.Collect(g.t.Context(), CollectOptions{})
	if err != nil || report.PacksFreed == 0 {
		g.t.Fatalf("Collect = %+v, %v", report, err)
	}
}

// TestReaderOfWhatTheOwnerRemoves: the owner prunes and collects a restore point while a read-only process knows it, or
// reads it. It is not there any more then; nothing is damaged.
func TestReaderOfWhatTheOwnerRemoves(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	kept, gone := make([]byte, 40*testChunk), make([]byte, 40*testChunk)
	fill(rnd, kept)
	fill(rnd, gone)
	tests := []struct {
		name string
		read func(g *besideRig, p RestorePoint, i *ImageReader) error
	}{
		{"open image", func(g *besideRig, p RestorePoint, _ *ImageReader) error {
			i, err := g.reader.OpenImage(t.Context(), p.Images[0].Ref)
			if err == nil {
				_ = i.Close()
			}
			return err
		}},
		{"document", func(g *besideRig, p RestorePoint, _ *ImageReader) error {
			return second(g.reader.Document(t.Context(), p.ID, "domain.xml"))
		}},
		{"read at", func(_ *besideRig, _ RestorePoint, i *ImageReader) error {
			return second(i.ReadAt(make([]byte, 4096), 20*testChunk))
		}},
		{"extents", func(_ *besideRig, _ RestorePoint, i *ImageReader) error {
			for _, err := range i.Extents(t.Context()) {
				if err != nil {
					return err
				}
			}
			return nil
		}},
		{"stream", func(_ *besideRig, _ RestorePoint, i *ImageReader) error {
			return i.Stream(t.Context(), 2, func(int64, []byte) error { return nil })
		}},
		{"verify", func(g *besideRig, p RestorePoint, _ *ImageReader) error {
			report, err := g.reader.Verify(t.Context(), p.ID, nil)
			if fault.KindOf(err) == fault.Corrupt {
				t.Logf("damage: %+v", report.Damage)
			}
			return err
		}},
	}
	for _, tt := range tests {
		for _, when := range []string{"before", "during"} {
			t.Run(tt.name+" "+when, func(t *testing.T) {
				g, points := newBesideRig(t, kept, gone)
				i, err := g.reader.OpenImage(t.Context(), points[1].Images[0].Ref)
				if err != nil {
					t.Fatal(err)
				}
				defer i.Close()
				if when == "before" {
					g.arm(nil)
					g.free(points[1])
				} else if fired := g.arm(func() { g.free(points[1]) }); fired() {
					t.Fatal("fired too early")
				} else {
					defer func() {
						if !fired() {
							t.Error("nothing was removed during the read")
						}
					}()
				}
				err = tt.read(g, points[1], i)
				if err == nil || fault.KindOf(err) != fault.NotFound {
					t.Errorf("%v, want not found", err)
				}
				if report, err := g.reader.Check(t.Context()); err != nil || len(report.Problems) > 0 || report.RestorePoints != 1 {
					t.Errorf("Check = %+v, %v", report, err)
				}
			})
		}
	}
}

// TestReaderAcrossRewrites: the owner rewrites packs again and again at once; a reader in another process follows.
func TestReaderAcrossRewrites(t *testing.T) {
	s := newSparseRig(t, 5)
	b, err := file.Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	nothingHeld := blobtest.Fails(b, func(op, name string) error {
		if op != "read" {
			return nil
		}
		_, err := b.Stat(context.Background(), name)
		return err
	})
	reader, err := Open(t.Context(), nothingHeld, s.key, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	compacted := 0
	for round, threshold := range []float64{0.2, 0.5, 0.8, 1} {
		compacted += s.collect(CollectOptions{Compact: threshold}).PacksCompacted
		reader.frames.Clear() // what is in memory would hide it
		reader.nodes.Clear()
		for _, p := range s.points {
			i, err := reader.OpenImage(t.Context(), p.Images[0].Ref)
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			got, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
			if err != nil || !bytes.Equal(got, s.disks[p.ID]) {
				t.Errorf("round %d: %v, or other bytes", round, err)
			}
			if err := i.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if compacted == 0 {
		t.Error("nothing was rewritten")
	}
}

// TestReaderOfALoss: what a restore point that is there needs has gone; that is damage, for a reader too.
func TestReaderOfALoss(t *testing.T) {
	disk := make([]byte, 20*testChunk)
	fill(rand.New(rand.NewPCG(5, 6)), disk)
	g, points := newBesideRig(t, disk)
	g.arm(nil)
	for _, p := range g.repo.idx.Packs() {
		if err := g.b.Delete(t.Context(), pack.Name(p.ID)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.reader.OpenImage(t.Context(), points[0].Images[0].Ref); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("OpenImage: %v, want corrupt", err)
	}
	if _, err := g.reader.Document(t.Context(), points[0].ID, "domain.xml"); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("Document: %v, want corrupt", err)
	}
	report, err := g.reader.Verify(t.Context(), points[0].ID, nil)
	if fault.KindOf(err) != fault.Corrupt || len(report.Damage) == 0 {
		t.Errorf("Verify = %+v, %v, want corrupt", report, err)
	}
	if report, err := g.reader.Check(t.Context()); err != nil || len(report.Problems) == 0 {
		t.Errorf("Check = %+v, %v, want problems", report, err)
	}
}
