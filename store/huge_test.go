package store

import (
	"bytes"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
)

// The largest disk there is costs what is stored of it, in whatever is done with it. Work that goes by the disk's size
// would not end, and sizes that are multiplied overflow.
func TestWorkIsThatOfWhatIsStored(t *testing.T) {
	const size = int64(math.MaxInt64)
	last := size / testChunk * testChunk
	g := newRig(t)
	ctx := t.Context()
	data := make([]byte, testChunk)
	fill(rand.New(rand.NewPCG(3, 1)), data)
	write := func(s *Session, o ImageOptions, offs ...int64) ImageRef {
		t.Helper()
		w, err := s.NewImage(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Zero(ctx, 0, o.SizeBytes); err != nil {
			t.Fatal(err)
		}
		for _, off := range offs {
			if err := w.Write(ctx, off, data[:min(testChunk, o.SizeBytes-off)]); err != nil {
				t.Fatal(err)
			}
		}
		ref, err := w.Finish(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	check := func(ref ImageRef, want []Extent) RestorePoint {
		t.Helper()
		p := g.publish(g.begin(), ref)
		i := openImage(t, g.repo, p)
		var got []Extent
		for e, err := range i.Extents(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("extents (-want +got):\n%s", diff)
		}
		for _, e := range want {
			n := min(e.Length, testChunk)
			p := make([]byte, n)
			if _, err := i.ReadAt(p, e.Offset); err != nil || bytes.Equal(p, make([]byte, n)) != e.Zero {
				t.Errorf("reading %+v: %v", e, err)
			}
		}
		streamed := int64(0)
		if err := i.Stream(ctx, 1, func(_ int64, p []byte) error { streamed += int64(len(p)); return nil }); err != nil {
			t.Error(err)
		}
		done, total := int64(0), int64(0)
		report, err := g.repo.Verify(ctx, p.ID, func(d, n int64) { done, total = d, n })
		if err != nil || report.Bytes != math.MaxInt64 || done != total {
			t.Errorf("Verify = %+v, %v; %d of %d done", report, err, done, total)
		}
		for _, e := range want {
			if !e.Zero {
				streamed -= e.Length
			}
		}
		if streamed != 0 {
			t.Errorf("%d bytes more streamed than there are", streamed)
		}
		return p
	}
	s := g.begin()
	zeros := write(s, ImageOptions{SizeBytes: size})
	ends := write(s, ImageOptions{SizeBytes: size}, 0, last)
	small := write(s, ImageOptions{SizeBytes: 3 * testChunk}, testChunk)
	if _, err := s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: zeros}, {Name: "b", Ref: ends}, {Name: "c", Ref: small}}}); err != nil {
		t.Fatal(err)
	}
	if ends == zeros {
		t.Fatal("the image with data is that without")
	}
	check(zeros, []Extent{{Offset: 0, Length: size, Zero: true}})
	p := check(ends, []Extent{{Offset: 0, Length: testChunk}, {Offset: testChunk, Length: last - testChunk, Zero: true}, {Offset: last, Length: size - last}})

	// Zeros over a parent that has data are zeros; a parent of another size is taken over.
	s = g.begin()
	if got := write(s, ImageOptions{SizeBytes: size, Parent: &ends}); got != zeros {
		t.Errorf("zeroed: %v, want %v", got, zeros)
	}
	w, err := s.NewImage(ctx, ImageOptions{SizeBytes: size, Parent: &small})
	if err != nil {
		t.Fatal(err)
	}
	grown, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if want := write(g.begin(), ImageOptions{SizeBytes: size}, testChunk); grown != want {
		t.Errorf("grown: %v, want %v", grown, want)
	}
	grownParent := g.publish(s, grown).Images[0].Ref
	s = g.begin()
	if w, err = s.NewImage(ctx, ImageOptions{SizeBytes: 3 * testChunk, Parent: &grownParent}); err != nil {
		t.Fatal(err)
	}
	if shrunk, err := w.Finish(ctx); err != nil || shrunk != small {
		t.Errorf("shrunk: %v, %v; want %v", shrunk, err, small)
	}
	if err := s.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := g.repo.Space(ctx); err != nil {
		t.Error(err)
	}
	if u, err := g.repo.Usage(ctx); err != nil || u.LogicalBytes != math.MaxInt64 {
		t.Errorf("Usage = %+v, %v", u, err)
	}

	// Without its tree, all of the disk is lost.
	g.close()
	spoiled := 0
	err = filepath.WalkDir(filepath.Join(g.dir, "packs"), func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		spoiled++
		return flipAt(name, pack.HeaderBytes)
	})
	if err != nil || spoiled == 0 {
		t.Fatal(spoiled, err)
	}
	g.open()
	report, err := g.repo.Verify(ctx, p.ID, nil)
	if fault.KindOf(err) != fault.Corrupt {
		t.Fatal(err)
	}
	want := []Range{{Offset: 0, Length: size}}
	for _, touched := range report.Touched {
		if touched.RestorePoint == p.ID {
			if diff := cmp.Diff(want, touched.Images[0].Ranges); diff != "" {
				t.Errorf("lost ranges (-want +got):\n%s", diff)
			}
		}
	}
	if len(report.Damage) == 0 || len(report.Touched) == 0 {
		t.Errorf("report of damage: %+v", report)
	}
}
