package store

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
)

const testChunk = 64 << 10

// rig is a repository in a directory.
type rig struct {
	t    *testing.T
	dir  string
	b    blob.Store
	key  Key
	repo *Repository
}

func newRig(t *testing.T) *rig {
	t.Helper()
	g := &rig{t: t, dir: filepath.Join(t.TempDir(), "repo")}
	b, err := file.Create(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	g.b = b
	g.key, err = NewKeyFile(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), b, g.key, CreateOptions{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	g.open()
	t.Cleanup(func() { g.close() })
	return g
}

func (g *rig) open() {
	g.t.Helper()
	var err error
	if g.repo, err = Open(g.t.Context(), g.b, g.key, Options{}); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) close() {
	g.t.Helper()
	if g.repo == nil {
		return
	}
	if err := g.repo.Close(); err != nil {
		g.t.Error(err)
	}
	g.repo = nil
}

func (g *rig) reopen() {
	g.t.Helper()
	g.close()
	g.open()
}

func (g *rig) begin() *Session {
	g.t.Helper()
	s, err := g.repo.Begin(context.Background(), SessionOptions{Series: "vm", Writer: g.t.Name()})
	if err != nil {
		g.t.Fatal(err)
	}
	return s
}

// write stores a disk: only the chunks that differ from before, if a parent is given.
func (g *rig) write(s *Session, disk, before []byte, parent *ImageRef) (ImageRef, ImageStats) {
	g.t.Helper()
	ctx := context.Background()
	w, err := s.NewImage(ctx, ImageOptions{SizeBytes: int64(len(disk)), Parent: parent})
	if err != nil {
		g.t.Fatal(err)
	}
	for at := 0; at < len(disk); at += testChunk {
		p := disk[at:min(at+testChunk, len(disk))]
		if parent != nil && at+len(p) <= len(before) && bytes.Equal(p, before[at:at+len(p)]) {
			continue
		}
		if err := w.Write(ctx, int64(at), p); err != nil {
			g.t.Fatal(err)
		}
	}
	ref, err := w.Finish(ctx)
	if err != nil {
		g.t.Fatal(err)
	}
	return ref, w.Stats()
}

func (g *rig) publish(s *Session, ref ImageRef) RestorePoint {
	g.t.Helper()
	p, err := s.Publish(context.Background(), Manifest{
		Time: time.Date(2026, 11, 21, 22, 0, 0, 0, time.UTC), Labels: map[string]string{"consistency": "crash"},
		Documents:   []Document{{Name: "domain.xml", MediaType: "application/xml", Data: []byte("<domain/>")}},
		Description: json.RawMessage(`{"cpus":2}`), Images: []NamedImage{{Name: "vda", Ref: ref}},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return p
}

// backup is a whole session.
func (g *rig) backup(disk, before []byte, parent *ImageRef) RestorePoint {
	g.t.Helper()
	s := g.begin()
	ref, _ := g.write(s, disk, before, parent)
	return g.publish(s, ref)
}

func (g *rig) read(ref ImageRef) []byte {
	g.t.Helper()
	i, err := g.repo.OpenImage(context.Background(), ref)
	if err != nil {
		g.t.Fatal(err)
	}
	defer i.Close()
	p, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
	if err != nil {
		g.t.Fatal(err)
	}
	return p
}

func (g *rig) mustHold(p RestorePoint, disk []byte) {
	g.t.Helper()
	if !bytes.Equal(g.read(p.Images[0].Ref), disk) {
		g.t.Errorf("restore point %s does not hold its disk", p.ID)
	}
	report, err := g.repo.Verify(context.Background(), p.ID, nil)
	if err != nil {
		g.t.Errorf("verify %s: %v", p.ID, err)
	}
	if want := int64(len(disk) + 9); report.Bytes != want {
		g.t.Errorf("verify proved %d bytes, want %d", report.Bytes, want)
	}
}

// randomDisk has random chunks, text-like chunks and zeros.
func randomDisk(rnd *rand.Rand, size int) []byte {
	disk := make([]byte, size)
	for at := 0; at < size; at += testChunk {
		p := disk[at:min(at+testChunk, size)]
		switch rnd.IntN(4) {
		case 0:
		case 1:
			for i := range p {
				p[i] = "configuration = true\n"[(i*7+at)%21]
			}
			p[rnd.IntN(len(p))] ^= 1
		default:
			fill(rnd, p)
		}
	}
	return disk
}

func fill(rnd *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
}

func TestBackupAndReadBack(t *testing.T) {
	for _, size := range []int{0, 1, 4096, testChunk, testChunk + 1, 5*testChunk - 7, 300 * testChunk} {
		g := newRig(t)
		rnd := rand.New(rand.NewPCG(1, uint64(size)))
		disk := randomDisk(rnd, size)
		p := g.backup(disk, nil, nil)
		g.mustHold(p, disk)
		g.reopen()
		g.mustHold(p, disk)
		points, err := g.repo.RestorePoints(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]RestorePoint{stripped(p)}, points); diff != "" {
			t.Errorf("size %d: restore points (-want +got):\n%s", size, diff)
		}
		doc, err := g.repo.Document(t.Context(), p.ID, "domain.xml")
		if err != nil || string(doc) != "<domain/>" {
			t.Errorf("Document = %q, %v", doc, err)
		}
	}
}

// stripped is a restore point as it is after its documents' data was put away.
func stripped(p RestorePoint) RestorePoint {
	p.Published = p.Published.Round(0)
	return p
}

func TestIncrementalEqualsFull(t *testing.T) {
	g := newRig(t)
	seed := uint64(20261121)
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	disk := randomDisk(rnd, 700*testChunk+5000)
	p := g.backup(disk, nil, nil)
	for day := range 6 {
		before := bytes.Clone(disk)
		for range 20 {
			at := rnd.IntN(len(disk) / 4096)
			block := disk[at*4096 : at*4096+4096]
			if rnd.IntN(5) == 0 {
				clear(block)
			} else {
				fill(rnd, block)
			}
		}
		s := g.begin()
		ref, stats := g.write(s, disk, before, &p.Images[0].Ref)
		if stats.BytesNew > 20*4096 {
			t.Errorf("day %d: %d bytes stored for at most %d changed: %+v", day, stats.BytesNew, 20*4096, stats)
		}
		if stats.ChunksRefs == 0 {
			t.Errorf("day %d: no chunk refers to another: %+v", day, stats)
		}
		p = g.publish(s, ref)
		full, _ := g.write(g.begin(), disk, nil, nil)
		if diff := cmp.Diff(full, ref); diff != "" {
			t.Errorf("day %d: incremental is not the full image (-full +incremental):\n%s", day, diff)
		}
		g.mustHold(p, disk)
	}
	g.reopen()
	g.mustHold(p, disk)
	if report, err := g.repo.Check(t.Context()); err != nil || len(report.Problems) > 0 {
		t.Errorf("Check = %+v, %v", report, err)
	}
}

func TestPruneAndCollect(t *testing.T) {
	g := newRig(t)
	rnd := rand.New(rand.NewPCG(7, 7))
	ctx := t.Context()
	first := randomDisk(rnd, 100*testChunk)
	second := bytes.Clone(first)
	fill(rnd, second[:4096])
	p1 := g.backup(first, nil, nil)
	p2 := g.backup(second, first, &p1.Images[0].Ref)
	other := randomDisk(rnd, 100*testChunk)
	p3 := g.backup(other, nil, nil)
	if report, err := g.repo.Collect(ctx, CollectOptions{}); err != nil || report.PacksFreed != 0 {
		t.Fatalf("Collect with nothing to free = %+v, %v", report, err)
	}
	if err := g.repo.Prune(ctx, p1.ID, p3.ID); err != nil {
		t.Fatal(err)
	}
	if err := g.repo.Prune(ctx, p1.ID); fault.KindOf(err) != fault.NotFound {
		t.Errorf("second prune: %v, want not found", err)
	}
	dry, err := g.repo.Collect(ctx, CollectOptions{DryRun: true})
	if err != nil || dry.PacksFreed == 0 {
		t.Fatalf("dry run = %+v, %v", dry, err)
	}
	report, err := g.repo.Collect(ctx, CollectOptions{})
	if err != nil || report.PacksFreed != dry.PacksFreed || report.BytesFreed != dry.BytesFreed {
		t.Fatalf("Collect = %+v, %v; dry run said %+v", report, err, dry)
	}
	g.mustHold(p2, second) // its packs refer to those of p1
	g.reopen()
	g.mustHold(p2, second)
	if _, err := g.repo.RestorePoint(ctx, p3.ID); fault.KindOf(err) != fault.NotFound {
		t.Errorf("pruned restore point: %v, want not found", err)
	}
	if report, err := g.repo.Check(ctx); err != nil || len(report.Problems) > 0 {
		t.Errorf("Check = %+v, %v", report, err)
	}
	// What was collected is stored again when it comes again.
	p4 := g.backup(other, nil, nil)
	g.mustHold(p4, other)
}
