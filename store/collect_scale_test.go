package store

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// bigRig is a repository with very many chunks: their packs and trees are real, their content is zeros that no pack holds.
type bigRig struct {
	t    *testing.T
	r    *Repository
	read counting
	next uint64
	keys int // chunks a pack
}

func newBigRig(t *testing.T, dir string) *bigRig {
	t.Helper()
	b, err := file.Create(filepath.Join(dir, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	key := Key{secret: [32]byte{1}}
	if err := Create(t.Context(), b, key, CreateOptions{ChunkBytes: chunk.MinBytes}); err != nil {
		t.Fatal(err)
	}
	g := &bigRig{t: t, keys: 512}
	if g.r, err = Open(t.Context(), g.read.of(b), key, Options{IndexDir: filepath.Join(dir, "index")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.r.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g *bigRig) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// chunks stores chunks that nothing has, and returns their ids.
func (g *bigRig) chunks(n int) []Hash {
	g.t.Helper()
	ctx := g.t.Context()
	ids := make([]Hash, n)
	for i := range ids {
		g.next++
		var p [8]byte
		binary.LittleEndian.PutUint64(p[:], g.next)
		ids[i] = g.r.hasher.Document(p[:])
	}
	for from := 0; from < n; from += g.keys {
		some := ids[from:min(from+g.keys, n)]
		id := seal.NewID()
		out, err := g.r.b.Create(ctx, pack.Name(id))
		g.must(err)
		w, err := pack.NewWriter(out, pack.Header{Kind: pack.Data, Cipher: g.r.o.Cipher, Repository: g.r.id, ID: id, KeyID: g.r.keys.ID, Salt: seal.NewSalt()},
			g.r.keys.Data, g.r.blocks, g.r.coder(), g.r.bufs)
		g.must(err)
		items := make([]pack.Item, len(some))
		for i := range some {
			items[i] = pack.Item{Entry: pack.Entry{Type: pack.Chunk, ID: some[i], Zeros: g.r.allBlocks()}, Prints: make([]chunk.Fingerprint, g.r.blocks)}
		}
		_, err = w.AddFrame(nil, items)
		g.must(err)
		d, err := w.Finish(ctx)
		g.must(err)
		g.must(g.r.idx.Add(d))
	}
	return ids
}

// image publishes an image of these chunks.
func (g *bigRig) image(ids []Hash) RestorePoint {
	g.t.Helper()
	ctx := g.t.Context()
	s, err := g.r.Begin(ctx, SessionOptions{Series: "vm"})
	g.must(err)
	head := tree.Head{Size: int64(len(ids)) * chunk.MinBytes, ChunkBytes: chunk.MinBytes}
	head.Height = tree.Height(head.Size, chunk.MinBytes)
	for level := range head.Height {
		var above []Hash
		for from := 0; from < len(ids); from += tree.FanOut {
			n := tree.Node{Level: level}
			copy(n.Children[:], ids[from:min(from+tree.FanOut, len(ids))])
			id, err := s.putObject(ctx, pack.Node, n.Append(nil))
			g.must(err)
			above = append(above, id)
		}
		ids = above
	}
	head.Top = ids[0]
	root, err := s.putObject(ctx, pack.Image, head.Append(nil))
	g.must(err)
	ref := ImageRef{root, head.Size}
	s.mu.Lock()
	s.finished[ref] = struct{}{}
	s.mu.Unlock()
	p, err := s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}})
	g.must(err)
	return p
}

// cold empties the caches, and counts from now on.
func (g *bigRig) cold() {
	g.r.directories.Clear()
	g.r.frames.Clear()
	g.r.nodes.Clear()
	g.read.take()
}

// TestCollectScale shows what a collect costs in a repository with many chunks, of which few change from day to day.
// Asserted is what is read; times are printed only. CAIRN_SOAK=1: ten million chunks.
func TestCollectScale(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	n := 500_000
	dir := t.TempDir()
	if os.Getenv("CAIRN_SOAK") != "" {
		n = 10_000_000
		if at := os.Getenv("CAIRN_SCALE_DIR"); at != "" {
			var err error
			if dir, err = os.MkdirTemp(at, "collect"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
		}
	}
	g := newBigRig(t, dir)
	begun := time.Now()
	ids := g.chunks(n)
	p := g.image(ids)
	t.Logf("made %d chunks in %v", n, time.Since(begun))
	collect := func(what string) (CollectReport, int64) {
		t.Helper()
		g.cold()
		begun, worked := time.Now(), cpuSeconds()
		report, err := g.r.Collect(t.Context(), CollectOptions{})
		g.must(err)
		took, worked := time.Since(begun), cpuSeconds()-worked
		bytes, parts := g.read.take()
		reads := int64(0)
		for _, of := range parts {
			for _, n := range of {
				reads += int64(n)
			}
		}
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		t.Logf("%-28s %8.2f s, %8.2f s of processors, %6d reads of %4d MiB; freed %d, rewritten %d, kept %d; heap %d MiB", what, took.Seconds(), worked, reads,
			bytes>>20, report.PacksFreed, report.PacksCompacted, report.PacksKept, ms.HeapInuse>>20)
		return report, reads
	}
	first, firstReads := collect("the first, all is new")
	again, againReads := collect("nothing has changed")
	if again.LiveBytes != first.LiveBytes || again.DeadBytes != first.DeadBytes || first.PacksFreed != 0 {
		t.Errorf("first %+v, again %+v", first, again)
	}
	if againReads*10 > firstReads {
		t.Errorf("%d reads though nothing has changed, %d at first", againReads, firstReads)
	}
	// A day: a run of leaves in a hundred is written anew.
	for at := 0; at < len(ids)/100; at += tree.FanOut {
		copy(ids[at:], g.chunks(min(tree.FanOut, len(ids)-at)))
	}
	q := g.image(ids)
	_, dayReads := collect("a day later")
	if dayReads*5 > firstReads {
		t.Errorf("%d reads after a small change, %d at first", dayReads, firstReads)
	}
	begun = time.Now()
	g.must(g.r.Prune(t.Context(), p.ID))
	t.Logf("%-28s %8.3f s", "prune of the older", time.Since(begun).Seconds())
	pruned, _ := collect("after the prune")
	if pruned.PacksFreed+pruned.PacksCompacted == 0 {
		t.Errorf("nothing was freed: %+v", pruned)
	}
	last, _ := collect("and again")
	begun, worked := time.Now(), cpuSeconds()
	space, err := g.r.Space(t.Context())
	g.must(err)
	t.Logf("%-28s %8.2f s, %8.2f s of processors", "space report", time.Since(begun).Seconds(), cpuSeconds()-worked)
	if space.RestorePoints[0].ID != q.ID || space.RestorePoints[0].UniqueBytes != last.LiveBytes || space.UnreferencedBytes != last.DeadBytes {
		t.Errorf("space %+v, collect %+v", space, last)
	}
	begun = time.Now()
	reader, err := Open(t.Context(), g.r.b, Key{secret: [32]byte{1}}, Options{ReadOnly: true, IndexDir: filepath.Join(dir, "index")})
	g.must(err)
	defer reader.Close()
	t.Logf("%-28s %8.2f s, %d packs", "index rebuilt by a reader", time.Since(begun).Seconds(), len(reader.idx.Packs()))
	if !slices.Equal(reader.idx.Packs(), g.r.idx.Packs()) {
		t.Error("the rebuilt index has other packs")
	}
}
