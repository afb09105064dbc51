package store

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/seal"
)

// familyRig is a repository of a few series that have much in common.
func familyRig(t *testing.T, seed uint64) *sparseRig {
	t.Helper()
	t.Logf("seed %d", seed)
	g := &sparseRig{rig: newRig(t), rnd: rand.New(rand.NewPCG(seed, 78)), disks: map[string][]byte{}}
	g.small(Options{})
	base := randomDisk(g.rnd, 40*testChunk)
	for _, series := range []string{"b", "a", "c"} {
		disk := bytes.Clone(base)
		var parent *ImageRef
		for range 2 + g.rnd.IntN(3) {
			for range g.rnd.IntN(12) {
				at, n := g.rnd.IntN(len(disk)/testChunk)*testChunk, testChunk
				if g.rnd.IntN(2) == 0 {
					at, n = at+4096*g.rnd.IntN(16), 4096
				}
				fill(rand.New(rand.NewPCG(uint64(g.rnd.IntN(40)), 5)), disk[at:at+n]) // what others may have too
			}
			s, err := g.repo.Begin(t.Context(), SessionOptions{Series: series})
			if err != nil {
				t.Fatal(err)
			}
			ref, _ := g.write(s, disk, nil, parent)
			p := g.publish(s, ref)
			g.points = append(g.points, p)
			g.disks[p.ID] = bytes.Clone(disk)
			parent = &p.Images[0].Ref
		}
	}
	return g
}

// naive works out from nothing who needs each entry: for each restore point a marker of its own.
func (g *sparseRig) naive() (owners map[index.Location][]string, share map[index.Location]int64, stored int64) {
	g.t.Helper()
	owners, share = map[index.Location][]string{}, map[index.Location]int64{}
	for _, p := range g.repo.idx.Packs() {
		rd, err := g.repo.openPack(context.Background(), p.ID, p.Size)
		if err != nil {
			g.t.Fatal(err)
		}
		stored += p.Size
		sum := int64(0)
		for slot, n := range rd.Directory().Shares() {
			share[index.Location{Pack: p.ID, Slot: uint32(slot)}] = n
			sum += n
		}
		if sum != p.Size {
			g.t.Fatalf("the shares of a pack of %d bytes are %d", p.Size, sum)
		}
	}
	for _, p := range g.points {
		m := newMarker(g.repo)
		m.fresh = true
		known, err := g.repo.point(context.Background(), p.ID)
		if err == nil {
			err = m.mark(context.Background(), pointRoots(known))
		}
		if err != nil {
			g.t.Fatal(err)
		}
		for id, l := range m.packs {
			for slot := range uint32(64 * len(l.bits)) {
				if l.has(slot) {
					at := index.Location{Pack: id, Slot: slot}
					owners[at] = append(owners[at], p.ID)
				}
			}
		}
	}
	return owners, share, stored
}

func TestSpace(t *testing.T) {
	for seed := range uint64(4) {
		g := familyRig(t, seed)
		for len(g.points) > 1 {
			got, err := g.repo.Space(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			g.compareSpace(got)
			g.compareFree()
			gone := g.rnd.IntN(len(g.points))
			if err := g.repo.Prune(t.Context(), g.points[gone].ID); err != nil {
				t.Fatal(err)
			}
			g.points = slices.Delete(g.points, gone, gone+1)
			if g.rnd.IntN(2) == 0 {
				g.collect(CollectOptions{Compact: []float64{-1, 0.5, 1}[g.rnd.IntN(3)]})
			}
		}
	}
}

func (g *sparseRig) compareSpace(got SpaceReport) {
	g.t.Helper()
	owners, share, stored := g.naive()
	series := map[string]string{}
	points, all := map[string]Space{}, map[string]Space{}
	for _, p := range g.points {
		series[p.ID] = p.Series
		points[p.ID] = Space{LogicalBytes: p.Images[0].Ref.SizeBytes}
		s := all[p.Series]
		s.LogicalBytes += p.Images[0].Ref.SizeBytes
		all[p.Series] = s
	}
	live := int64(0)
	for at, ids := range owners {
		n := share[index.Location{Pack: at.Pack, Slot: at.Slot}]
		live += n
		names := map[string]bool{}
		for _, id := range ids {
			names[series[id]] = true
			p := points[id]
			p.add(n, len(ids) == 1)
			points[id] = p
		}
		for name := range names {
			s := all[name]
			s.add(n, len(names) == 1)
			all[name] = s
		}
	}
	fair, fairSeries := int64(0), int64(0)
	for _, p := range got.RestorePoints {
		fair += p.FairShareBytes
		if p.FairShareBytes < p.UniqueBytes || p.FairShareBytes > p.UniqueBytes+p.SharedBytes {
			g.t.Errorf("fair share of %+v", p)
		}
		p.FairShareBytes = 0
		if diff := cmp.Diff(points[p.ID], p.Space); diff != "" || p.Series != series[p.ID] {
			g.t.Errorf("restore point %s (-naive +got):\n%s", p.ID, diff)
		}
	}
	for _, s := range got.Series {
		fairSeries += s.FairShareBytes
		s.FairShareBytes = 0
		if diff := cmp.Diff(all[s.Series], s.Space); diff != "" {
			g.t.Errorf("series %s (-naive +got):\n%s", s.Series, diff)
		}
	}
	if len(got.RestorePoints) != len(points) || len(got.Series) != len(all) || got.Unknown != 0 {
		g.t.Errorf("%d restore points of %d series, want %d of %d", len(got.RestorePoints), len(got.Series), len(points), len(all))
	}
	if got.StoredBytes != stored || got.UnreferencedBytes != stored-live || fair != live || fairSeries != live {
		g.t.Errorf("stored %d, unreferenced %d, fair shares %d and %d; want %d, %d, %d", got.StoredBytes, got.UnreferencedBytes,
			fair, fairSeries, stored, stored-live, live)
	}
}

// compareFree asks what some restore points would free, and compares that with what a collect counts without them.
func (g *sparseRig) compareFree() {
	g.t.Helper()
	ctx := context.Background()
	n := 1 + g.rnd.IntN(len(g.points)-1)
	at := g.rnd.IntN(len(g.points) - n + 1)
	var ids []string
	for _, p := range g.points[at : at+n] {
		ids = append(ids, p.ID)
	}
	before := g.collect(CollectOptions{DryRun: true})
	got, err := g.repo.WouldFree(ctx, ids...)
	if err != nil {
		g.t.Fatal(err)
	}
	for _, id := range ids { // as Prune does, but only in memory
		delete(g.repo.points, id)
	}
	m := newMarker(g.repo)
	if err := m.mark(ctx, g.repo.roots()); err != nil {
		g.t.Fatal(err)
	}
	after := CollectReport{}
	p := &plan{m: m, there: map[seal.ID]int64{}, pinned: map[seal.ID]struct{}{}}
	for _, known := range g.repo.idx.Packs() {
		if m.packs[known.ID] != nil {
			p.there[known.ID] = known.Size
			p.kept = append(p.kept, known.ID)
		}
	}
	if _, err := g.repo.weigh(ctx, CollectOptions{}, p, &after); err != nil {
		g.t.Fatal(err)
	}
	if want := before.LiveBytes - after.LiveBytes; got != want || (got == 0) != (want == 0) {
		g.t.Errorf("WouldFree of %d restore points = %d, a collect without them counts %d", n, got, want)
	}
}

// TestWouldFreeIsFreed prunes and collects with everything rewritten: then what was foretold is what is gone.
func TestWouldFreeIsFreed(t *testing.T) {
	g := familyRig(t, 9)
	g.collect(CollectOptions{Compact: 1})
	ids := []string{g.points[1].ID, g.points[2].ID, g.points[len(g.points)-1].ID}
	want, err := g.repo.WouldFree(t.Context(), ids...)
	if err != nil || want == 0 {
		t.Fatal(want, err)
	}
	if err := g.repo.Prune(t.Context(), ids...); err != nil {
		t.Fatal(err)
	}
	report := g.collect(CollectOptions{Compact: 1})
	if report.DeadBytes != want || report.LeftBytes != 0 || report.BytesFreed+report.BytesCompacted-report.BytesRewritten != want {
		t.Errorf("%d bytes were foretold: %+v", want, report)
	}
	if _, err := g.repo.WouldFree(t.Context(), ids[0]); fault.KindOf(err) != fault.NotFound {
		t.Errorf("of what is pruned: %v", err)
	}
	// What a reader keeps is not freed.
	i, err := g.repo.OpenImage(t.Context(), g.points[0].Images[0].Ref)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	held, err := g.repo.WouldFree(t.Context(), g.points[0].ID)
	if err != nil || held > 4096 { // its document and nothing of its disk
		t.Errorf("WouldFree of what is being read = %d, %v", held, err)
	}
}

func TestOwnerSets(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 3))
	s := newOwnerSets()
	numbers := map[uint64]uint32{0: 0}
	for range 3000 {
		pick := func() (uint64, uint32) {
			if rnd.IntN(4) == 0 {
				i := rnd.Uint32N(12)
				return 1 << i, s.of(i)
			}
			n := rnd.IntN(len(numbers))
			for bits, number := range numbers {
				if n--; n < 0 {
					return bits, number
				}
			}
			panic("unreachable")
		}
		a, x := pick()
		b, y := pick()
		numbers[a], numbers[b] = x, y
		got := s.union(x, y)
		if old, ok := numbers[a|b]; ok && old != got {
			t.Fatalf("%b or %b has the numbers %d and %d", a, b, old, got)
		}
		numbers[a|b] = got
		bits := uint64(0)
		for _, run := range s.list[got] {
			for i := run.from; i < run.end; i++ {
				bits |= 1 << i
			}
		}
		if bits != a|b {
			t.Fatalf("%b or %b = %b", a, b, bits)
		}
	}
}
