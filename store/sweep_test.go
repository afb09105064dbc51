package store

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
)

// A cycle reads each frame of data once, however many restore points share it, and proves all of them.
func TestSweepReadsEachPackOnce(t *testing.T) {
	f := newFleet(t, rand.New(rand.NewPCG(5, 1)), 3, 4)
	r, c := f.openCounting(f.dir)
	defer f.shut(r)
	before, err := r.LastVerified(t.Context())
	if err != nil || len(before) != 0 {
		t.Fatalf("LastVerified = %v, %v", before, err)
	}
	c.take()
	report, err := r.Sweep(t.Context(), SweepOptions{})
	if err != nil || !report.Complete || report.PacksLeft != 0 || report.Proven != len(f.disks) {
		t.Fatalf("Sweep = %+v, %v", report, err)
	}
	_, reads := c.take()
	frames := int64(0)
	for _, p := range r.idx.Packs() {
		rd, err := r.pack(t.Context(), p.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, fr := range rd.Directory().Frames {
			frames++
			if n := reads[pack.Name(p.ID)][part{int64(fr.Offset), int64(fr.Stored)}]; p.Kind == pack.Data && n != 1 {
				t.Errorf("%s: frame at %d was read %d times", pack.Name(p.ID), fr.Offset, n)
			}
		}
	}
	if report.Frames != frames || report.Packs != len(r.idx.Packs()) {
		t.Errorf("report %+v for %d frames in %d packs", report, frames, len(r.idx.Packs()))
	}
	proven, err := r.LastVerified(t.Context())
	if err != nil || len(proven) != len(f.disks) {
		t.Fatalf("LastVerified = %v, %v", proven, err)
	}
	for id := range f.disks {
		if !proven[id].Equal(report.Started) {
			t.Errorf("%s was proven at %v, the cycle began at %v", id, proven[id], report.Started)
		}
	}
}

// One Verify decodes each frame once, those that chunks only refer to included.
func TestVerifyReadsEachFrameOnce(t *testing.T) {
	f := newFleet(t, rand.New(rand.NewPCG(5, 2)), 1, 8)
	r, c := f.openCounting(f.dir)
	defer f.shut(r)
	points, err := r.RestorePoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	last := points[len(points)-1]
	c.take()
	if _, err := r.Verify(t.Context(), last.ID, nil); err != nil {
		t.Fatal(err)
	}
	_, reads := c.take()
	hit := 0
	for _, p := range r.idx.Packs() {
		rd, err := r.pack(t.Context(), p.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, fr := range rd.Directory().Frames {
			n := reads[pack.Name(p.ID)][part{int64(fr.Offset), int64(fr.Stored)}]
			if hit += n; n > 1 {
				t.Errorf("frame at %d of %s was read %d times", fr.Offset, pack.Name(p.ID), n)
			}
		}
	}
	if hit < 8 {
		t.Errorf("only %d frames were read", hit)
	}
	if proven, err := r.LastVerified(t.Context()); err != nil || len(proven) != 1 || proven[last.ID].IsZero() {
		t.Errorf("LastVerified = %v, %v", proven, err)
	}
}

// A sweep in small steps stays within its budget, and the steps together read everything once.
func TestSweepKeepsItsBudget(t *testing.T) {
	f := newFleet(t, rand.New(rand.NewPCG(5, 3)), 3, 3)
	r, c := f.openCounting(f.dir)
	defer f.shut(r)
	const budget = 700 << 10
	seen := map[string]int{}
	for calls := 1; ; calls++ {
		c.take()
		report, err := r.Sweep(t.Context(), SweepOptions{Budget: budget})
		if err != nil {
			t.Fatal(err)
		}
		_, reads := c.take()
		var frames int64
		for _, p := range r.idx.Packs() {
			rd, err := r.pack(t.Context(), p.ID)
			if err != nil {
				t.Fatal(err)
			}
			for _, fr := range rd.Directory().Frames {
				if n := reads[pack.Name(p.ID)][part{int64(fr.Offset), int64(fr.Stored)}]; p.Kind == pack.Data && n > 0 {
					frames += int64(fr.Stored)
					seen[fmt.Sprintf("%x %d", p.ID, fr.Offset)] += n
				}
			}
		}
		if frames > budget || (!report.Complete && report.Packs == 0) {
			t.Errorf("a call with a budget of %d read %d bytes of frames of %d packs", budget, frames, report.Packs)
		}
		if report.Complete {
			if calls < 3 {
				t.Errorf("all was read in %d calls", calls)
			}
			if report.Proven != len(f.disks) {
				t.Errorf("Sweep = %+v", report)
			}
			break
		}
	}
	for frame, n := range seen {
		if n != 1 {
			t.Errorf("frame %s was read %d times", frame, n)
		}
	}
}

// What is on disk in the middle of a cycle is what a kill leaves: the next process reads only the rest.
func TestSweepGoesOnAfterAKill(t *testing.T) {
	f := newFleet(t, rand.New(rand.NewPCG(5, 4)), 3, 3)
	r := f.open(f.dir)
	first, err := r.Sweep(t.Context(), SweepOptions{Budget: 900 << 10})
	if err != nil || first.Complete || first.Packs < 2 || first.PacksLeft < 2 {
		t.Fatalf("Sweep = %+v, %v", first, err)
	}
	dir := f.copy()
	f.shut(r)
	r = f.open(dir)
	second, err := r.Sweep(t.Context(), SweepOptions{})
	if err != nil || !second.Complete || !second.Started.Equal(first.Started) || second.Packs != first.PacksLeft || second.Proven != len(f.disks) {
		t.Errorf("after the kill: Sweep = %+v, %v; before: %+v", second, err, first)
	}
	f.shut(r)
	// Without the index everything is read, and nothing is missed.
	if err := os.RemoveAll(dir + ".index"); err != nil {
		t.Fatal(err)
	}
	r = f.open(dir)
	defer f.shut(r)
	third, err := r.Sweep(t.Context(), SweepOptions{})
	if err != nil || third.Packs != first.Packs+first.PacksLeft || third.Proven != len(f.disks) {
		t.Errorf("without the index: Sweep = %+v, %v", third, err)
	}
}

// The pack that was proven longest ago, or never, is the first to be read.
func TestSweepReadsTheOldestFirst(t *testing.T) {
	f := newFleet(t, rand.New(rand.NewPCG(5, 5)), 2, 2)
	r := f.open(f.dir)
	defer f.shut(r)
	if _, err := r.Sweep(t.Context(), SweepOptions{}); err != nil {
		t.Fatal(err)
	}
	old := len(r.idx.Packs())
	f.fill(r, rand.New(rand.NewPCG(5, 6)), 1, 1)
	proofs, err := r.Proofs(t.Context())
	if err != nil || len(proofs) <= old {
		t.Fatalf("Proofs = %v, %v", proofs, err)
	}
	fresh := len(proofs) - old
	for i, p := range proofs {
		if p.Time.IsZero() != (i < fresh) || p.Good != (i >= fresh) {
			t.Errorf("proof %d of %d: %+v, %d packs are new", i, len(proofs), p, fresh)
		}
	}
	report, err := r.Sweep(t.Context(), SweepOptions{Budget: 1})
	if err != nil || report.Packs != 1 || report.Complete {
		t.Fatalf("Sweep = %+v, %v", report, err)
	}
	if now, err := r.Proofs(t.Context()); err != nil || now[0].Pack != proofs[1].Pack {
		t.Errorf("after reading one pack: %+v, %v; want %s first", now[0], err, proofs[1].Pack)
	}
}

// Every flip of a byte of a pack is found by reading it whole.
func TestEveryFlipOfAPackIsFound(t *testing.T) {
	const seed = 20261122
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 5))
	f := newFleet(t, rnd, 1, 3)
	r := f.open(f.dir)
	defer f.shut(r)
	pr := &prover{r, newMeter(r.b, 0)}
	fired := 0
	for _, p := range r.idx.Packs() {
		name := filepath.Join(f.dir, pack.Name(p.ID))
		if st, err := pr.pack(t.Context(), p.ID, p.Size); err != nil || st.cause != nil {
			t.Fatalf("good pack: %v, %v", st, err)
		}
		offsets := map[int64]bool{}
		for at := range int64(pack.HeaderBytes) {
			offsets[at] = true
		}
		for at := range int64(pack.TrailerBytes) {
			offsets[p.Size-1-at] = true
		}
		for range 120 {
			offsets[rnd.Int64N(p.Size)] = true
		}
		for _, at := range slices.Sorted(maps.Keys(offsets)) {
			if err := flipAt(name, at); err != nil {
				t.Fatal(err)
			}
			st, err := pr.pack(t.Context(), p.ID, p.Size)
			if err != nil || st.cause == nil {
				t.Errorf("%s: flip at %d of %d is not found: %v", p.Kind, at, p.Size, err)
			}
			if err := flipAt(name, at); err != nil {
				t.Fatal(err)
			}
			fired++
		}
	}
	t.Logf("%d flips", fired)
	if fired < 1000 {
		t.Errorf("only %d flips", fired)
	}
}

// What Touched names without reading is what cannot be read when the packs are really gone.
func TestTouchedIsWhatCannotBeRead(t *testing.T) {
	const seed = 20261122
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 6))
	f := newFleet(t, rnd, 3, 4)
	r := f.open(f.dir)
	defer f.shut(r)
	hit := 0
	for range 12 {
		dir := f.copy()
		files := packFiles(t, dir)
		rnd.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
		var names []string
		for _, file := range files[:1+rnd.IntN(3)] {
			names = append(names, packName(file))
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
		damaged := f.open(dir)
		want := f.oracle(damaged)
		f.shut(damaged)
		got, err := r.Touched(t.Context(), names...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("without %v (-read +told):\n%s", names, diff)
		}
		hit += len(want)
	}
	if hit < 12 {
		t.Errorf("only %d restore points were touched", hit)
	}
	if _, err := r.Touched(t.Context(), "packs/nonsense"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("Touched of nonsense: %v", err)
	}
	if got, err := r.Touched(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("Touched of nothing = %v, %v", got, err)
	}
}
