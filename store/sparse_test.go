package store

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/index"
)

// smallPacks is a rig whose packs are full after n bytes, so that a few MiB are many packs.
func smallPacks(t *testing.T, n int) (g *rig, reopen func()) {
	t.Helper()
	g = newRig(t)
	reopen = func() {
		t.Helper()
		g.close()
		var err error
		if g.repo, err = Open(t.Context(), g.b, g.key, Options{packBytes: n}); err != nil {
			t.Fatal(err)
		}
	}
	reopen()
	return g, reopen
}

// shifted is disk moved on by some blocks, with other blocks in front.
func shifted(rnd *rand.Rand, disk []byte, blocks int) []byte {
	n := blocks * chunk.BlockBytes
	out := make([]byte, len(disk))
	fill(rnd, out[:n])
	copy(out[n:], disk)
	return out
}

// TestShiftedDiskIsFoundByItsBlocks writes a disk and then, as another machine's, the same moved by three blocks: no
// chunk of it is known, nearly all of its blocks are.
func TestShiftedDiskIsFoundByItsBlocks(t *testing.T) {
	const size = 16 << 20
	rnd := rand.New(rand.NewPCG(7, 7))
	disk := make([]byte, size)
	fill(rnd, disk)
	moved := shifted(rnd, disk, 3)
	for _, tt := range []struct {
		name   string
		sparse bool
	}{{"with the sparse index", true}, {"without", false}} {
		t.Run(tt.name, func(t *testing.T) {
			g, reopen := smallPacks(t, 8<<20)
			first := g.backup(disk, nil, nil)
			reopen() // nothing is at hand
			g.repo.sparse = tt.sparse
			s := g.begin()
			ref, stats := g.write(s, moved, nil, nil)
			second := g.publish(s, ref)
			if chunks := int64(size / testChunk); stats.Chunks != chunks || stats.ChunksNew != chunks {
				t.Fatalf("%d chunks, %d new, want %d of each", stats.Chunks, stats.ChunksNew, chunks)
			}
			// Which blocks are sampled depends on the repository's random key. A pack is found by the first chunk with a
			// sampled block, and (63/64)^16 = 78 % of chunks have none: with 9 packs, more than 140 such chunks come
			// before that once in 70 million runs.
			if tt.sparse && (stats.ChunksRefs < stats.Chunks-140 || stats.BytesNew > size*9/16 || stats.BytesStored > size*9/16) {
				t.Errorf("%d chunks with references, %d bytes new, %d stored", stats.ChunksRefs, stats.BytesNew, stats.BytesStored)
			}
			if !tt.sparse && (stats.ChunksRefs != 0 || stats.BytesNew != size) {
				t.Errorf("without the sparse index %d chunks with references, %d bytes new", stats.ChunksRefs, stats.BytesNew)
			}
			g.mustHold(first, disk)
			g.mustHold(second, moved)
			if err := g.repo.Prune(t.Context(), first.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := g.repo.Collect(t.Context(), CollectOptions{}); err != nil {
				t.Fatal(err)
			}
			g.mustHold(second, moved)
			reopen()
			g.mustHold(second, moved)
		})
	}
}

// mixedDisk is made of blocks from a common stock, in runs as files have them, of new blocks and of zeros.
func mixedDisk(rnd *rand.Rand, stock []byte, size int) []byte {
	disk := make([]byte, size)
	blocks := len(stock) / chunk.BlockBytes
	for at := 0; at < size; {
		run := (1 + rnd.IntN(24)) * chunk.BlockBytes
		p := disk[at:min(at+run, size)]
		switch rnd.IntN(10) {
		case 0: // zeros
		case 1:
			fill(rnd, p)
		default:
			copy(p, stock[rnd.IntN(blocks)*chunk.BlockBytes:])
		}
		at += len(p)
	}
	return disk
}

// TestSparseReferencesSurvive writes disks of machines that have blocks in common, prunes and collects some, loses the
// index now and then, and expects every disk back as it was, and the index equal to one built anew.
func TestSparseReferencesSurvive(t *testing.T) {
	runs := 4
	if os.Getenv("CAIRN_SOAK") == "1" {
		runs = 60
	}
	var refs int64
	for seed := range uint64(runs) {
		t.Logf("seed %d", seed)
		rnd := rand.New(rand.NewPCG(seed, 21))
		stock := make([]byte, 4<<20)
		fill(rnd, stock)
		g := newRig(t)
		dir := filepath.Join(t.TempDir(), "index")
		reopen := func(o Options) {
			g.close()
			var err error
			if g.repo, err = Open(t.Context(), g.b, g.key, o); err != nil {
				t.Fatal(err)
			}
		}
		o := Options{packBytes: 512 << 10, IndexDir: dir}
		reopen(o)
		type kept struct {
			p    RestorePoint
			disk []byte
		}
		var points []kept
		for step := range 14 {
			switch rnd.IntN(5) {
			case 0:
				reopen(Options{packBytes: 512 << 10}) // built anew, then the one on disk again
				reopen(o)
			case 1:
				if len(points) < 2 {
					break
				}
				i := rnd.IntN(len(points))
				if err := g.repo.Prune(t.Context(), points[i].p.ID); err != nil {
					t.Fatal(err)
				}
				points = append(points[:i], points[i+1:]...)
				if _, err := g.repo.Collect(t.Context(), CollectOptions{}); err != nil {
					t.Fatal(err)
				}
			default:
				disk := mixedDisk(rnd, stock, 2<<20+rnd.IntN(3)*chunk.BlockBytes)
				var before []byte
				var parent *ImageRef
				if len(points) > 0 && rnd.IntN(2) == 0 {
					last := points[rnd.IntN(len(points))]
					before, parent = last.disk, &last.p.Images[0].Ref
					at := rnd.IntN(len(disk) / 2)
					disk = append(append(append([]byte{}, last.disk[:min(at, len(last.disk))]...), disk[:64<<10]...), last.disk[min(at, len(last.disk)):]...)
				}
				s := g.begin()
				ref, stats := g.write(s, disk, before, parent)
				refs += stats.ChunksRefs
				points = append(points, kept{g.publish(s, ref), disk})
			}
			for _, k := range points {
				if step%4 == 3 {
					g.mustHold(k.p, k.disk)
				}
			}
		}
		reopen(Options{packBytes: 512 << 10})
		for _, k := range points {
			g.mustHold(k.p, k.disk)
		}
		if report, err := g.repo.Check(t.Context()); err != nil || len(report.Problems) > 0 {
			t.Errorf("seed %d: %v, %v", seed, report.Problems, err)
		}
		built := dumpBoth(t, g.repo.idx)
		reopen(o)
		if diff := cmp.Diff(built, dumpBoth(t, g.repo.idx)); diff != "" {
			t.Errorf("seed %d: index (-built anew +kept):\n%s", seed, diff)
		}
		if len(built) < 20 {
			t.Errorf("seed %d: only %d index entries are compared", seed, len(built))
		}
		g.close()
	}
	if refs < 20 {
		t.Errorf("only %d chunks with references", refs)
	}
}

// dumpBoth returns what an index says of objects and of blocks.
func dumpBoth(t *testing.T, x *index.Index) map[string]any {
	t.Helper()
	objects, err := x.Dump()
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := x.DumpBlocks()
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks) == 0 {
		t.Error("no blocks are indexed")
	}
	out := map[string]any{}
	for k, v := range objects {
		out["object "+k] = v
	}
	for k := range blocks {
		out["block "+k] = true
	}
	return out
}

// TestReferencesKeepPacks lets a Collect run while a session relies on blocks found by the sparse index in packs that
// no restore point needs any more.
func TestReferencesKeepPacks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(8, 8))
	disk := make([]byte, 4<<20)
	fill(rnd, disk)
	moved := shifted(rnd, disk, 5)
	g, reopen := smallPacks(t, 1<<20)
	first := g.backup(disk, nil, nil)
	s := g.begin()
	ref, stats := g.write(s, moved, nil, nil)
	if stats.ChunksRefs == 0 {
		t.Fatal("no references")
	}
	if err := g.repo.Prune(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	report, err := g.repo.Collect(t.Context(), CollectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if report.PacksWaiting < 2 {
		t.Errorf("%d packs wait for the session", report.PacksWaiting)
	}
	second := g.publish(s, ref)
	if _, err := g.repo.Collect(t.Context(), CollectOptions{}); err != nil {
		t.Fatal(err)
	}
	g.mustHold(second, moved)
	reopen()
	g.mustHold(second, moved)
}

// TestDamagedPackIsNotReferredTo damages the pack in which the blocks are: the new disk is stored whole.
func TestDamagedPackIsNotReferredTo(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 9))
	disk := make([]byte, 2<<20)
	fill(rnd, disk)
	g := newRig(t)
	first := g.backup(disk, nil, nil)
	damaged := 0
	for _, name := range g.files("packs") {
		// Not the pack of tree nodes: a tree that cannot be read would hide from Verify what lies below it.
		if info, err := os.Stat(name); err != nil || info.Size() < 1<<20 {
			continue
		}
		if err := flipFrame(name); err != nil {
			t.Fatal(err)
		}
		damaged++
	}
	if damaged == 0 {
		t.Fatal("no pack of chunks was found")
	}
	if _, err := g.repo.Verify(t.Context(), first.ID, nil); err == nil {
		t.Fatal("the damage is not found")
	}
	moved := shifted(rnd, disk, 1)
	s := g.begin()
	ref, stats := g.write(s, moved, nil, nil)
	if stats.ChunksRefs != 0 {
		t.Errorf("%d chunks refer to blocks of damaged packs", stats.ChunksRefs)
	}
	p := g.publish(s, ref)
	g.mustHold(p, moved)
}
