package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob/blobtest"
	"github.com/cairn-backup/cairn/store/pack"
)

// sparseRig is a repository of small packs and a disk of many days, of which two are kept: so many packs are mostly dead.
type sparseRig struct {
	*rig
	rnd    *rand.Rand
	points []RestorePoint
	disks  map[string][]byte
}

func newSparseRig(t *testing.T, seed uint64) *sparseRig {
	t.Helper()
	t.Logf("seed %d", seed)
	g := &sparseRig{rig: newRig(t), rnd: rand.New(rand.NewPCG(seed, 77)), disks: map[string][]byte{}}
	g.small(Options{})
	disk := randomDisk(g.rnd, 90*testChunk)
	for range 8 {
		g.day(disk)
	}
	for i, p := range g.points {
		if i != 3 && i != 7 {
			if err := g.repo.Prune(t.Context(), p.ID); err != nil {
				t.Fatal(err)
			}
			delete(g.disks, p.ID)
		}
	}
	g.points = slices.DeleteFunc(g.points, func(p RestorePoint) bool { return g.disks[p.ID] == nil })
	return g
}

func (g *sparseRig) small(o Options) {
	g.t.Helper()
	g.close()
	o.packBytes = 512 << 10
	var err error
	if g.repo, err = Open(g.t.Context(), g.b, g.key, o); err != nil {
		g.t.Fatal(err)
	}
}

// day changes blocks and whole chunks and makes an incremental.
func (g *sparseRig) day(disk []byte) RestorePoint {
	before := bytes.Clone(disk)
	for range 40 {
		at := g.rnd.IntN(len(disk)/testChunk) * testChunk
		n := testChunk
		if g.rnd.IntN(2) == 0 {
			at, n = at+4096*g.rnd.IntN(16), 4096
		}
		fill(g.rnd, disk[at:at+n])
	}
	var parent *ImageRef
	if n := len(g.points); n > 0 {
		parent = &g.points[n-1].Images[0].Ref
	}
	p := g.backup(disk, before, parent)
	g.points = append(g.points, p)
	g.disks[p.ID] = bytes.Clone(disk)
	return p
}

func (g *sparseRig) packBytes() (n int64) {
	g.t.Helper()
	there, err := g.repo.listPacks(context.Background())
	if err != nil {
		g.t.Fatal(err)
	}
	for _, size := range there {
		n += size
	}
	return n
}

func (g *sparseRig) collect(o CollectOptions) CollectReport {
	g.t.Helper()
	report, err := g.repo.Collect(context.Background(), o)
	if err != nil {
		g.t.Fatal(err)
	}
	return report
}

// holds compares everything with what it must be, also after the next open with a new index.
func (g *sparseRig) holds() {
	g.t.Helper()
	for range 2 {
		for _, p := range g.points {
			g.mustHoldDisk(p, g.disks[p.ID])
		}
		if report, err := g.repo.Check(context.Background()); err != nil || len(report.Problems) > 0 {
			g.t.Errorf("Check = %+v, %v", report, err)
		}
		g.small(Options{})
	}
}

func TestCompaction(t *testing.T) {
	g := newSparseRig(t, 1)
	before := g.packBytes()
	names := g.files("packs")
	dry := g.collect(CollectOptions{DryRun: true})
	if diff := cmp.Diff(names, g.files("packs")); diff != "" {
		t.Errorf("a dry run changed packs:\n%s", diff)
	}
	real := g.collect(CollectOptions{})
	t.Logf("%+v", real)
	if real.PacksCompacted == 0 || real.PacksFreed == 0 || real.BytesWritten == 0 || real.PacksPinned+real.PacksSuspect+real.PacksWaiting != 0 {
		t.Errorf("the workload does not show a compaction: %+v", real)
	}
	after := g.packBytes()
	if want := before - real.BytesFreed - real.BytesCompacted + real.BytesWritten; after != want {
		t.Errorf("%d bytes of packs are left of %d, want %d: %+v", after, before, want, real)
	}
	if real.LiveBytes+real.DeadBytes != before || real.DeadBytes-real.LeftBytes != real.BytesFreed+real.BytesCompacted-real.BytesRewritten {
		t.Errorf("the numbers do not add up: %+v", real)
	}
	want := real
	want.DryRun, want.BytesWritten = true, 0
	if diff := cmp.Diff(want, dry); diff != "" {
		t.Errorf("dry run (-real +dry):\n%s", diff)
	}
	g.holds()
	again := g.collect(CollectOptions{})
	if again.PacksCompacted+again.PacksFreed != 0 || again.LiveBytes+again.DeadBytes != after {
		t.Errorf("a second collect finds work: %+v", again)
	}
	// All that is dead goes if it is asked for, and none if it is not.
	if never := g.collect(CollectOptions{Compact: -1, DryRun: true}); never.PacksCompacted != 0 || never.LeftBytes == 0 {
		t.Errorf("never: %+v", never)
	}
	if all := g.collect(CollectOptions{Compact: 1}); all.LeftBytes != 0 || all.PacksCompacted == 0 {
		t.Errorf("all: %+v", all)
	}
	if none := g.collect(CollectOptions{}); none.DeadBytes != 0 {
		t.Errorf("dead bytes after everything was rewritten: %+v", none)
	}
	g.holds()
}

// TestReadersAcrossACompaction reads images, some of them pruned, while packs are rewritten under them.
func TestReadersAcrossACompaction(t *testing.T) {
	g := newSparseRig(t, 2)
	var readers []*ImageReader
	for _, p := range g.points {
		i, err := g.repo.OpenImage(t.Context(), p.Images[0].Ref)
		if err != nil {
			t.Fatal(err)
		}
		defer i.Close()
		if _, err := i.ReadAt(make([]byte, 3*testChunk), 0); err != nil { // has packs of before in its hands
			t.Fatal(err)
		}
		readers = append(readers, i)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for n, i := range readers {
		want := g.disks[g.points[n].ID]
		wg.Go(func() {
			for round := 0; ; round++ {
				got, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("round %d: %v", round, err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	compacted := 0
	for _, threshold := range []float64{0.2, 0.5, 0.8, 1} {
		g.repo.frames.Clear() // so that readers go to the files
		compacted += g.collect(CollectOptions{Compact: threshold}).PacksCompacted
	}
	close(stop)
	wg.Wait()
	if compacted == 0 {
		t.Error("nothing was rewritten")
	}
	g.holds()
}

// TestCompactionBesideSessions lets sessions come to rely on packs after they were chosen to be rewritten.
func TestCompactionBesideSessions(t *testing.T) {
	g := newSparseRig(t, 3)
	gone := bytes.Clone(g.disks[g.points[0].ID])
	pruned := g.points[0]
	if err := g.repo.Prune(t.Context(), pruned.ID); err != nil {
		t.Fatal(err)
	}
	delete(g.disks, pruned.ID)
	g.points = g.points[1:]
	old := g.repo.b
	fired := false
	var s *Session
	var ref ImageRef
	g.repo.b = blobtest.Fails(old, func(op, name string) error {
		if op == "create" && strings.HasPrefix(name, "packs/") && !fired {
			// The choice is made; now somebody writes what nothing needed, and finds it in packs that are to go.
			fired = true
			g.repo.b = old
			s = g.begin()
			ref, _ = g.write(s, gone, nil, nil)
		}
		return nil
	})
	report := g.collect(CollectOptions{Compact: 1})
	g.repo.b = old
	if !fired || report.PacksPinned == 0 {
		t.Fatalf("no session came in between: %+v", report)
	}
	if again := g.collect(CollectOptions{Compact: 1}); again.PacksPinned == 0 && again.PacksWaiting == 0 {
		t.Errorf("pins of a running session are not seen: %+v", again)
	}
	p := g.publish(s, ref)
	g.points = append(g.points, p)
	g.disks[p.ID] = gone
	g.holds()
	if end := g.collect(CollectOptions{Compact: 1}); end.LeftBytes != 0 {
		t.Errorf("after the session: %+v", end)
	}
	g.holds()
}

// TestCompactionOnAFullDisk: whole packs go first; a full disk ends the rewriting, not the collect.
func TestCompactionOnAFullDisk(t *testing.T) {
	g := newSparseRig(t, 4)
	dry := g.collect(CollectOptions{DryRun: true, Compact: 0.9})
	room := int64(-1)
	old := g.repo.b
	calls := 0
	g.repo.b = blobtest.Fails(old, func(op, name string) error {
		if (op == "write" || op == "commit" || op == "create") && strings.HasPrefix(name, "packs/") {
			if calls++; room < 0 || calls > 3 {
				return syscall.ENOSPC
			}
		}
		return nil
	})
	report := g.collect(CollectOptions{Compact: 0.9})
	if !report.NoRoom || calls < 2 || report.PacksFreed != dry.PacksFreed || report.PacksCompacted != 0 || report.BytesWritten != 0 {
		t.Errorf("no room at all (%d calls): %+v", calls, report)
	}
	if report.LeftBytes != report.DeadBytes-report.BytesFreed {
		t.Errorf("the numbers do not add up: %+v", report)
	}
	// Room for little: what is in small steps goes.
	used := 0
	g.repo.b = blobtest.Fails(old, func(op, name string) error {
		switch {
		case op == "create" && strings.HasPrefix(name, "packs/"):
			used = 0
		case op == "write" && strings.HasPrefix(name, "packs/"):
			if used++; used > 8 {
				return syscall.ENOSPC
			}
		}
		return nil
	})
	report = g.collect(CollectOptions{Compact: 0.9})
	if report.PacksCompacted == 0 {
		t.Errorf("nothing was rewritten in small steps: %+v", report)
	}
	g.repo.b = old
	if report = g.collect(CollectOptions{Compact: 0.9}); report.NoRoom {
		t.Errorf("with room again: %+v", report)
	}
	g.holds()
}

// TestCompactionThatTheIndexDoesNotTake leaves no pack behind that nobody knows, and does not call the repository full.
func TestCompactionThatTheIndexDoesNotTake(t *testing.T) {
	g := newSparseRig(t, 5)
	g.repo.idx.Limit(1)
	report, err := g.repo.Collect(t.Context(), CollectOptions{Compact: 0.9})
	if err == nil || report.NoRoom || report.BytesWritten != 0 {
		t.Errorf("Collect = %+v, %v", report, err)
	}
	there, err := g.repo.listPacks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if known := g.repo.idx.Packs(); len(there) != len(known) {
		t.Errorf("%d packs are there, the index knows %d", len(there), len(known))
	}
	g.holds()
	g.repo.idx.Limit(0)
	if report := g.collect(CollectOptions{Compact: 0.9}); report.PacksCompacted == 0 {
		t.Errorf("once the index takes it: %+v", report)
	}
	g.holds()
}

// TestCompactionThatFails fails every call of the rewriting in turn, and then lets it do its work.
func TestCompactionThatFails(t *testing.T) {
	for _, op := range []string{"create", "write", "commit", "read", "rename"} {
		t.Run(op, func(t *testing.T) {
			g := newSparseRig(t, 5)
			g.collect(CollectOptions{Compact: -1}) // whole packs are gone
			old := g.repo.b
			for n := 1; ; n += 1 + n/2 {
				var calls atomic.Int64
				var fired, armed atomic.Bool
				armed.Store(true)
				g.repo.b = blobtest.Fails(old, func(did, name string) error {
					if !armed.Load() || did != op || !strings.HasPrefix(name, "packs/") || calls.Add(1) != int64(n) {
						return nil
					}
					fired.Store(true)
					return fault.Wrap(fault.Transient, did, name, syscall.EIO)
				})
				g.repo.frames.Clear()
				g.repo.nodes.Clear()
				g.repo.directories.Clear()
				_, err := g.repo.Collect(t.Context(), CollectOptions{Compact: 0.9})
				g.repo.b = old
				armed.Store(false)
				if !fired.Load() {
					if n == 1 {
						t.Error("no call failed")
					}
					break
				}
				if err == nil {
					t.Errorf("call %d failed in silence", n)
				}
				for _, p := range g.points {
					g.mustHoldDisk(p, g.disks[p.ID])
				}
			}
			g.collect(CollectOptions{Compact: 0.9})
			g.holds()
		})
	}
}

// TestSuspectPacksAreNotRewritten damages a sparse pack.
func TestSuspectPacksAreNotRewritten(t *testing.T) {
	g := newSparseRig(t, 6)
	g.collect(CollectOptions{Compact: -1})
	p, err := func() (*plan, error) {
		var report CollectReport
		return g.repo.decide(t.Context(), CollectOptions{DryRun: true}, &report)
	}()
	if err != nil {
		t.Fatal(err)
	}
	o := CollectOptions{Compact: 0.5} // by default more packs may be rewritten, among them such as may stay
	victims, err := g.repo.weigh(t.Context(), o, p, &CollectReport{})
	if err != nil || len(victims) < 2 {
		t.Fatalf("%d victims, %v", len(victims), err)
	}
	bad := victims[len(victims)-1].ID
	g.repo.suspect(bad, errors.New("rot"))
	report := g.collect(o)
	if report.PacksSuspect != 1 || report.PacksCompacted != len(victims)-1 {
		t.Errorf("%d victims, one of them suspect: %+v", len(victims), report)
	}
	if _, err := g.b.Stat(t.Context(), pack.Name(bad)); err != nil {
		t.Errorf("the suspect pack: %v", err)
	}
	g.holds()
}

// TestKeptIndexEqualsARebuiltOne, with everything a collect does.
func TestKeptIndexEqualsARebuiltOne(t *testing.T) {
	g := newSparseRig(t, 7)
	dir := t.TempDir()
	g.small(Options{IndexDir: dir})
	g.collect(CollectOptions{})
	disk := bytes.Clone(g.disks[g.points[len(g.points)-1].ID])
	g.day(disk)
	g.collect(CollectOptions{Compact: 0.9})
	g.small(Options{IndexDir: dir})
	kept, err := g.repo.idx.Dump()
	if err != nil {
		t.Fatal(err)
	}
	g.small(Options{})
	fresh, err := g.repo.idx.Dump()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fresh, kept); diff != "" || len(kept) < 100 {
		t.Errorf("%d entries (-rebuilt +kept):\n%s", len(kept), diff)
	}
	g.holds()
}

// TestCollectKeepsToItsBudget rewrites sparse packs one after the other, as a budget smaller than any of them lets it.
func TestCollectKeepsToItsBudget(t *testing.T) {
	g := &sparseRig{rig: newRig(t), rnd: rand.New(rand.NewPCG(5, 78)), disks: map[string][]byte{}}
	g.small(Options{})
	disk := randomDisk(g.rnd, 96*testChunk)
	fill(g.rnd, disk)
	first := g.backup(disk, nil, nil)
	before := bytes.Clone(disk)
	for at := 0; at < len(disk); at += testChunk {
		if at/testChunk%8 != 0 {
			fill(g.rnd, disk[at:at+testChunk])
		}
	}
	second := g.backup(disk, before, &first.Images[0].Ref)
	g.points, g.disks[second.ID] = []RestorePoint{second}, bytes.Clone(disk)
	if err := g.repo.Prune(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	all := g.collect(CollectOptions{DryRun: true})
	if all.PacksCompacted < 3 || all.PacksLater != 0 {
		t.Fatalf("the packs are not what this test is about: %+v", all)
	}
	dry := g.collect(CollectOptions{Budget: 1, DryRun: true})
	steps := 0
	for later := all.PacksCompacted; later > 0; steps++ {
		got := g.collect(CollectOptions{Budget: 1})
		if got.PacksCompacted != 1 || got.PacksLater >= later || got.LiveBytes+got.DeadBytes != got.BytesKept+got.BytesFreed+got.BytesCompacted ||
			got.DeadBytes-got.LeftBytes != got.BytesFreed+got.BytesCompacted-got.BytesRewritten {
			t.Fatalf("step %d: %+v", steps, got)
		}
		want := got
		want.DryRun, want.BytesWritten = true, 0
		if diff := cmp.Diff(want, dry); steps == 0 && diff != "" {
			t.Errorf("dry run (-real +dry):\n%s", diff)
		}
		later = got.PacksLater
		g.holds()
	}
	if again := g.collect(CollectOptions{}); steps < 3 || again.PacksCompacted != 0 {
		t.Errorf("after %d steps a collect without a budget finds work: %+v", steps, again)
	}
}

// TestCollectGoesOnWhileMuchIsDead has packs of which a third is dead, which is too little for any of them alone.
func TestCollectGoesOnWhileMuchIsDead(t *testing.T) {
	g := &sparseRig{rig: newRig(t), rnd: rand.New(rand.NewPCG(5, 77)), disks: map[string][]byte{}}
	g.small(Options{})
	disk := randomDisk(g.rnd, 96*testChunk)
	fill(g.rnd, disk)
	first := g.backup(disk, nil, nil)
	before := bytes.Clone(disk)
	for at := 0; at < len(disk); at += 3 * testChunk {
		fill(g.rnd, disk[at:at+testChunk])
	}
	second := g.backup(disk, before, &first.Images[0].Ref)
	g.points, g.disks[second.ID] = []RestorePoint{second}, bytes.Clone(disk)
	if err := g.repo.Prune(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if half := g.collect(CollectOptions{Compact: 0.5, DryRun: true}); half.PacksCompacted > 1 || half.LeftBytes < 25*testChunk {
		t.Fatalf("the packs are not what this test is about: %+v", half)
	}
	dry := g.collect(CollectOptions{DryRun: true})
	real := g.collect(CollectOptions{})
	t.Logf("%+v", real)
	if real.PacksCompacted == 0 || real.LeftBytes*20 > real.LiveBytes+real.LeftBytes {
		t.Errorf("%d of %d bytes are left dead: %+v", real.LeftBytes, real.LiveBytes+real.LeftBytes, real)
	}
	if real.LeftBytes == 0 {
		t.Error("the collect went on until nothing was dead")
	}
	if real.LiveBytes+real.DeadBytes != real.BytesKept+real.BytesFreed+real.BytesCompacted ||
		real.DeadBytes-real.LeftBytes != real.BytesFreed+real.BytesCompacted-real.BytesRewritten {
		t.Errorf("the numbers do not add up: %+v", real)
	}
	want := real
	want.DryRun, want.BytesWritten = true, 0
	if diff := cmp.Diff(want, dry); diff != "" {
		t.Errorf("dry run (-real +dry):\n%s", diff)
	}
	g.holds()
	if again := g.collect(CollectOptions{}); again.PacksCompacted != 0 {
		t.Errorf("a second collect finds work: %+v", again)
	}
}
