package store

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
)

func TestOneOwnerManyReaders(t *testing.T) {
	g, p := smallRig(t)
	b, err := file.Open(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), b, g.key, Options{})
	meaning, _ := fault.Explanation(err)
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(meaning, "process") {
		t.Errorf("second owner: %v, %q", err, meaning)
	}
	r, err := Open(t.Context(), b, g.key, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Verify(t.Context(), p.ID, nil); err != nil {
		t.Errorf("verify beside the owner: %v", err)
	}
	for name, err := range map[string]error{
		"begin": second(r.Begin(t.Context(), SessionOptions{Series: "x"})), "prune": r.Prune(t.Context(), p.ID),
		"collect": second(r.Collect(t.Context(), CollectOptions{})),
	} {
		if fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s when read-only: %v, want conflict", name, err)
		}
	}
	// A restore point made by the owner later is seen.
	q := g.backup([]byte("later"), nil, nil)
	points, err := r.RestorePoints(t.Context())
	if err != nil || len(points) != 2 || points[1].ID != q.ID {
		t.Errorf("RestorePoints of the reader = %v, %v", points, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestFencedOwnerChangesNothing(t *testing.T) {
	g, p := smallRig(t)
	s := g.begin()
	ref, _ := g.write(s, []byte("late"), nil, nil)
	// Somebody takes over where the lock does not reach.
	if err := blob.Put(t.Context(), g.b, epochName(g.repo.epoch+1), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	_, err := s.Publish(t.Context(), Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}})
	if meaning, _ := fault.Explanation(err); fault.KindOf(err) != fault.Conflict || !strings.Contains(meaning, "taken") {
		t.Errorf("publish: %v, %q", err, meaning)
	}
	if err := g.repo.Prune(t.Context(), p.ID); fault.KindOf(err) != fault.Conflict {
		t.Errorf("prune: %v, want conflict", err)
	}
	if err := s.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.repo.Collect(t.Context(), CollectOptions{}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("collect: %v, want conflict", err)
	}
	g.mustPoints(p)
}

// The next owner removes the unfinished files of the one before: what that one fails with is that it was overtaken.
func TestOvertakenOwnerIsTold(t *testing.T) {
	for name, work := range map[string]func(g *rig, s *Session, w *ImageWriter) error{
		"publish": func(g *rig, s *Session, w *ImageWriter) error {
			ref, err := w.Finish(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			g.takeOver()
			_, err = s.Publish(t.Context(), Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}})
			return err
		},
		"write": func(g *rig, _ *Session, w *ImageWriter) error {
			g.takeOver()
			p := make([]byte, 8*testChunk)
			fill(rand.New(rand.NewPCG(5, 5)), p)
			return w.Write(t.Context(), 8*testChunk, p)
		},
	} {
		g, _ := smallRig(t)
		g.repo.o.packBytes = 6 * testChunk
		s := g.begin()
		w, err := s.NewImage(t.Context(), ImageOptions{SizeBytes: 16 * testChunk})
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 4*testChunk)
		fill(rand.New(rand.NewPCG(5, 4)), p)
		if err := w.Write(t.Context(), 0, p); err != nil {
			t.Fatal(err)
		}
		err = work(g, s, w)
		if err == nil || fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s of an overtaken owner: %v, want conflict", name, err)
			continue
		}
		if meaning, _ := fault.Explanation(err); !strings.Contains(meaning, "taken") {
			t.Errorf("%s: %v, %q", name, err, meaning)
		}
	}
}

// takeOver lets another owner open the repository and end, as over a network file system whose locks do not work.
func (g *rig) takeOver() {
	g.t.Helper()
	if err := os.Remove(filepath.Join(g.dir, "lock")); err != nil {
		g.t.Fatal(err)
	}
	b, err := file.Open(g.dir)
	if err != nil {
		g.t.Fatal(err)
	}
	defer b.Close()
	r, err := Open(g.t.Context(), b, g.key, Options{})
	if err != nil {
		g.t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) mustPoints(want ...RestorePoint) {
	g.t.Helper()
	got, err := g.repo.RestorePoints(context.Background())
	if err != nil {
		g.t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		g.t.Errorf("restore points (-want +got):\n%s", diff)
	}
}

func TestLeasesLiveAsLongAsSessions(t *testing.T) {
	g, _ := smallRig(t)
	s, other := g.begin(), g.begin()
	if n := len(g.files("leases")); n != 2 {
		t.Errorf("%d leases of 2 sessions", n)
	}
	ref, _ := g.write(s, []byte("x"), nil, nil)
	g.publish(s, ref)
	if err := other.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(g.files("leases")); n != 0 {
		t.Errorf("%d leases after the end", n)
	}
	// A lease of a process that died goes with the next open.
	if err := blob.Put(t.Context(), g.b, leaseFolder+"dead", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	g.reopen()
	if n := len(g.files("leases")); n != 0 {
		t.Errorf("%d leases after the next open", n)
	}
	if n := len(g.files("epochs")); n != 1 {
		t.Errorf("%d epochs kept", n)
	}
}

func TestSessionsThatAreOver(t *testing.T) {
	g := newRig(t)
	ctx := t.Context()
	s := g.begin()
	w, err := s.NewImage(ctx, ImageOptions{SizeBytes: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"offset":    w.Write(ctx, 1, make([]byte, testChunk)),
		"length":    w.Write(ctx, 0, make([]byte, 5)),
		"beyond":    w.Write(ctx, testChunk, make([]byte, testChunk)),
		"negative":  w.Zero(ctx, -testChunk, testChunk),
		"overflow":  w.Zero(ctx, testChunk, 1<<63-1),
		"no series": second(g.repo.Begin(ctx, SessionOptions{})),
		"size":      second(s.NewImage(ctx, ImageOptions{SizeBytes: -1})),
	} {
		if fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	unknown := ImageRef{Root: Hash{1}, SizeBytes: 5}
	if _, err := s.NewImage(ctx, ImageOptions{SizeBytes: 5, Parent: &unknown}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("unknown parent: %v, want not found", err)
	}
	if _, err := g.repo.begin2().Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: unknown}}}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("unknown image: %v, want invalid", err)
	}
	if err := s.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Abort(ctx); err != nil {
		t.Errorf("second abort: %v", err)
	}
	if err := w.Write(ctx, 0, make([]byte, testChunk)); err == nil {
		t.Error("write after abort")
	}
	if _, err := s.Publish(ctx, Manifest{}); err == nil {
		t.Error("publish after abort")
	}
}

func (r *Repository) begin2() *Session {
	s, err := r.Begin(context.Background(), SessionOptions{Series: "vm"})
	if err != nil {
		panic(err)
	}
	return s
}

func TestChainsOfSeries(t *testing.T) {
	g := newRig(t)
	a := g.backup([]byte("1"), nil, nil)
	b := g.backup([]byte("2"), nil, nil)
	g.reopen()
	c := g.backup([]byte("3"), nil, nil)
	if a.Previous != "" || b.Previous != a.ID || c.Previous != b.ID || c.Sequence != 3 {
		t.Errorf("chain %q %q %q, sequence %d", a.Previous, b.Previous, c.Previous, c.Sequence)
	}
	if err := g.repo.Prune(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	report, err := g.repo.Check(t.Context())
	if err != nil || len(report.Problems) != 0 || len(report.Notes) != 0 {
		t.Errorf("Check = %+v, %v", report, err)
	}
	g.mustPoints(a, c)
}

// TestIndexIsACache compares an index kept on disk over a life with one made anew.
func TestIndexIsACache(t *testing.T) {
	g, _ := smallRig(t)
	g.close()
	dir := t.TempDir()
	open := func(o Options) *Repository {
		t.Helper()
		r, err := Open(t.Context(), g.b, g.key, o)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	rnd := rand.New(rand.NewPCG(8, 8))
	for life := range 3 {
		g.repo = open(Options{IndexDir: dir})
		disk := randomDisk(rnd, 50*testChunk)
		p := g.backup(disk, nil, nil)
		if life == 1 {
			if err := g.repo.Prune(t.Context(), p.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := g.repo.Collect(t.Context(), CollectOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		g.close()
	}
	kept := open(Options{IndexDir: dir})
	fresh := open(Options{ReadOnly: true})
	defer fresh.Close()
	got, err := kept.idx.Dump()
	if err != nil {
		t.Fatal(err)
	}
	want, err := fresh.idx.Dump()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got) < 50 {
		t.Errorf("%d entries; kept index (-fresh +kept):\n%s", len(got), diff)
	}
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	// The index of another repository is not believed.
	other, q := smallRig(t)
	other.close()
	r, err := Open(t.Context(), other.b, other.key, Options{IndexDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Verify(t.Context(), q.ID, nil); err != nil {
		t.Error(err)
	}
}

func TestParentOfAnotherSize(t *testing.T) {
	g := newRig(t)
	rnd := rand.New(rand.NewPCG(2, 2))
	old := make([]byte, 600*testChunk+9000)
	fill(rnd, old[500*testChunk:])
	fill(rnd, old[:3*testChunk])
	p := g.backup(old, nil, nil)
	for _, size := range []int{len(old) + 1, len(old) + 300*testChunk, 600 * testChunk, 599*testChunk + 100, 100, 0, testChunk} {
		want := make([]byte, size)
		copy(want, old)
		if size > 9*testChunk {
			fill(rnd, want[8*testChunk:9*testChunk])
		}
		s := g.begin()
		w, err := s.NewImage(t.Context(), ImageOptions{SizeBytes: int64(size), Parent: &p.Images[0].Ref})
		if err != nil {
			t.Fatal(err)
		}
		if size > 9*testChunk {
			if err := w.Write(t.Context(), 8*testChunk, want[8*testChunk:9*testChunk]); err != nil {
				t.Fatal(err)
			}
		}
		ref, err := w.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		q := g.publish(s, ref)
		g.mustHold(q, want)
		full, _ := g.write(g.begin(), want, nil, nil)
		if full != ref {
			t.Errorf("size %d: not the full image", size)
		}
	}
}

// TestFewLeavesInMemory writes in an order that spills leaves, some of them several times.
func TestFewLeavesInMemory(t *testing.T) {
	g := newRig(t)
	rnd := rand.New(rand.NewPCG(9, 9))
	disk := make([]byte, 12*256*testChunk)
	order := rnd.Perm(12 * 4)
	s := g.begin()
	w, err := s.NewImage(t.Context(), ImageOptions{SizeBytes: int64(len(disk))})
	if err != nil {
		t.Fatal(err)
	}
	w.maxDirty = 3
	for _, n := range order {
		at := n * 64 * testChunk
		copy(disk[at:], bytes.Repeat([]byte{byte(n + 1)}, testChunk))
		if err := w.Write(t.Context(), int64(at), disk[at:at+testChunk]); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g.mustHold(g.publish(s, ref), disk)
	full, _ := g.write(g.begin(), disk, nil, nil)
	if full != ref {
		t.Error("not the image that is written in order")
	}
}

func TestExtents(t *testing.T) {
	g := newRig(t)
	disk := make([]byte, 600*testChunk+77)
	for _, at := range []int{0, 1, 255, 256, 300, 600} {
		disk[at*testChunk] = 1
	}
	p := g.backup(disk, nil, nil)
	i, err := g.repo.OpenImage(t.Context(), p.Images[0].Ref)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	var got []Extent
	for e, err := range i.Extents(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	const c = testChunk
	want := []Extent{
		{0, 2 * c, false}, {2 * c, 253 * c, true}, {255 * c, 2 * c, false}, {257 * c, 43 * c, true},
		{300 * c, c, false}, {301 * c, 299 * c, true}, {600 * c, 77, false},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Extents (-want +got):\n%s", diff)
	}
	for range i.Extents(t.Context()) {
		break // a caller may stop
	}
}
