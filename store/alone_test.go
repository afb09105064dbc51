package store

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/store/blob/file"
)

// held is everything that a repository has to tell.
type held struct {
	Points    []RestorePoint
	Documents map[string]string // their hashes, by restore point and name
	Disks     map[string]string // their hashes, by restore point and image
	Index     map[string]any
}

func heldBy(t *testing.T, r *Repository) held {
	t.Helper()
	h := held{Documents: map[string]string{}, Disks: map[string]string{}}
	var err error
	if h.Points, err = r.RestorePoints(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range h.Points {
		for _, d := range p.Documents {
			data, err := r.Document(t.Context(), p.ID, d.Name)
			if err != nil {
				t.Fatal(err)
			}
			h.Documents[p.ID+" "+d.Name] = sumOf(data)
		}
		for _, im := range p.Images {
			h.Disks[p.ID+" "+im.Name] = sumOf((&rig{t: t, repo: r}).read(im.Ref))
		}
	}
	h.Index = dumpBoth(t, r.idx)
	return h
}

// TestEverythingIsRebuiltFromTheRepositoryAlone: of a repository that has seen incrementals, prunes, collects and
// rewritten packs, only its files and its key are left: no index, no catalog, another place. Everything is there again.
func TestEverythingIsRebuiltFromTheRepositoryAlone(t *testing.T) {
	g := newSparseRig(t, 11)
	kept := filepath.Join(t.TempDir(), "index")
	g.small(Options{IndexDir: kept})
	disk := bytes.Clone(g.disks[g.points[len(g.points)-1].ID])
	g.day(disk)
	if report := g.collect(CollectOptions{Compact: 0.9}); report.PacksCompacted == 0 {
		t.Fatalf("nothing was rewritten: %+v", report)
	}
	for n := range 3 { // with documents of their own, one of them in several pieces
		s := g.begin()
		before := bytes.Clone(disk)
		fill(g.rnd, disk[n*testChunk:n*testChunk+5000])
		ref, _ := g.write(s, disk, before, &g.points[len(g.points)-1].Images[0].Ref)
		big := make([]byte, documentPiece+n)
		fill(g.rnd, big)
		p, err := s.Publish(context.Background(), Manifest{
			Labels: map[string]string{"day": fmt.Sprint(n)}, Images: []NamedImage{{Name: "vda", Ref: ref}},
			Documents: []Document{{Name: "domain.xml", MediaType: "application/xml", Data: fmt.Appendf(nil, "<domain id=%d/>", n)}, {Name: "nvram", Data: big}},
		})
		if err != nil {
			t.Fatal(err)
		}
		g.points, g.disks[p.ID] = append(g.points, p), bytes.Clone(disk)
	}
	want := heldBy(t, g.repo)
	for _, p := range g.points {
		if want.Disks[p.ID+" vda"] != sumOf(g.disks[p.ID]) {
			t.Fatalf("restore point %s does not hold its disk", p.ID)
		}
	}
	if len(want.Points) != len(g.points) || len(want.Documents) != len(g.points)+3 || len(want.Index) < 100 {
		t.Fatalf("%d points, %d documents, %d index entries: the test shows nothing", len(want.Points), len(want.Documents), len(want.Index))
	}
	g.close()

	alone := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.CopyFS(alone, os.DirFS(g.dir)); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{g.dir, kept} {
		if err := os.RemoveAll(gone); err != nil {
			t.Fatal(err)
		}
	}
	b, err := file.Open(alone)
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"for the owner": {IndexDir: filepath.Join(t.TempDir(), "new")}, "in memory": {}, "for a reader": {ReadOnly: true},
	} {
		r, err := Open(t.Context(), b, g.key, o)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, heldBy(t, r)); diff != "" {
			t.Errorf("%s (-before +rebuilt):\n%.2000s", name, diff)
		}
		if report, err := r.Check(t.Context()); err != nil || len(report.Problems) > 0 {
			t.Errorf("%s: Check = %+v, %v", name, report, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
