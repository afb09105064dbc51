package store

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
)

// TestManyPacksAreLoaded rebuilds indexes of a repository with more packs than are added one by one, one of them
// damaged, and compares them with one to which the packs were added as they were written.
func TestManyPacksAreLoaded(t *testing.T) {
	g := newRig(t)
	dir := filepath.Join(t.TempDir(), "index")
	small := func(o Options) {
		t.Helper()
		g.close()
		o.packBytes = 64 << 10
		var err error
		if g.repo, err = Open(t.Context(), g.b, g.key, o); err != nil {
			t.Fatal(err)
		}
	}
	small(Options{IndexDir: filepath.Join(dir, "kept")})
	disk := make([]byte, 6*bulkPacks*testChunk)
	fill(rand.New(rand.NewPCG(4, 4)), disk)
	p := g.backup(disk, nil, nil)
	if n := len(g.repo.idx.Packs()); n < bulkPacks {
		t.Fatalf("%d packs only", n)
	}
	dump := func() [2]any {
		t.Helper()
		objects, err := g.repo.idx.Dump()
		if err != nil {
			t.Fatal(err)
		}
		blocks, err := g.repo.idx.DumpBlocks()
		if err != nil || len(blocks) == 0 || len(objects) < 3*bulkPacks {
			t.Fatalf("%d objects, %d blocks, %v", len(objects), len(blocks), err)
		}
		return [2]any{objects, blocks}
	}
	want := dump()
	for name, o := range map[string]Options{
		"on disk": {IndexDir: filepath.Join(dir, "new")}, "in memory": {}, "for a reader": {IndexDir: filepath.Join(dir, "kept"), ReadOnly: true},
		"reader in memory": {ReadOnly: true}, "one worker": {IndexDir: filepath.Join(dir, "other"), Workers: 1},
	} {
		small(o)
		if diff := cmp.Diff(want, dump()); diff != "" {
			t.Errorf("%s (-added +loaded):\n%s", name, diff)
		}
		g.mustHoldDisk(p, disk)
	}
	small(Options{})
	bad := g.repo.idx.Packs()[7].ID
	g.close()
	name := g.files("packs")[0]
	for _, n := range g.files("packs") {
		if strings.Contains(n, strings.TrimPrefix(trashName(bad), trashFolder)) {
			name = n
		}
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	small(Options{IndexDir: filepath.Join(dir, "damaged")})
	if n := len(g.repo.idx.Packs()); n != len(g.files("packs"))-1 {
		t.Errorf("%d packs of %d are indexed beside a damaged one", n, len(g.files("packs")))
	}
}

// TestScratchIndexes: a reader's index goes with it; what crashed readers left goes with the next one, but not what is in use.
func TestScratchIndexes(t *testing.T) {
	g, p := smallRig(t)
	dir := filepath.Join(t.TempDir(), "a[b]", "index")
	there := func() []string {
		entries, err := os.ReadDir(filepath.Dir(dir))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	open := func() *Repository {
		t.Helper()
		r, err := Open(t.Context(), g.b, g.key, Options{IndexDir: dir, ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Verify(t.Context(), p.ID, nil); err != nil {
			t.Error(err)
		}
		return r
	}
	first := open()
	if len(there()) != 1 {
		t.Errorf("there are %v", there())
	}
	stale := dir + ".reader-dead"
	if err := os.Mkdir(stale, 0o700); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-2 * time.Hour)
	for _, name := range there() {
		if err := os.Chtimes(filepath.Join(filepath.Dir(dir), name), long, long); err != nil {
			t.Fatal(err)
		}
	}
	second := open()
	if _, err := os.Stat(stale); !os.IsNotExist(err) || len(there()) != 2 {
		t.Errorf("there are %v", there())
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := second.Close(); err != nil || len(there()) != 0 {
		t.Errorf("%v, there are %v", err, there())
	}
	if _, err := g.repo.Verify(t.Context(), p.ID, nil); err != nil {
		t.Error(err)
	}
}

// TestStreamAcrossACompaction is TestReadersAcrossACompaction for reading in pack order.
func TestStreamAcrossACompaction(t *testing.T) {
	g := newSparseRig(t, 8)
	for _, p := range g.points {
		want, got := g.disks[p.ID], make([]byte, len(g.disks[p.ID]))
		i, err := g.repo.OpenImage(t.Context(), p.Images[0].Ref)
		if err != nil {
			t.Fatal(err)
		}
		defer i.Close()
		begun := make(chan struct{})
		done := make(chan error, 1)
		first := true
		go func() {
			done <- i.Stream(t.Context(), 1, func(off int64, p []byte) error {
				if first {
					first = false
					close(begun)
				}
				copy(got[off:], p)
				return nil
			})
		}()
		<-begun
		g.repo.frames.Clear()
		g.collect(CollectOptions{Compact: 1})
		if err := <-done; err != nil || !bytes.Equal(got, want) {
			t.Errorf("stream: %v", err)
		}
		g.day(bytes.Clone(want)) // something to do for the next collect
		if err := g.repo.Prune(t.Context(), g.points[len(g.points)-1].ID); err != nil {
			t.Fatal(err)
		}
		delete(g.disks, g.points[len(g.points)-1].ID)
		g.points = g.points[:len(g.points)-1]
	}
}

// TestReaderInAnotherProcessFollowsACompaction: what it knew of packs is not true any more.
func TestReaderInAnotherProcessFollowsACompaction(t *testing.T) {
	g := newSparseRig(t, 10)
	r, err := Open(t.Context(), g.b, g.key, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if report := g.collect(CollectOptions{Compact: 1}); report.PacksCompacted == 0 {
		t.Fatalf("nothing was rewritten: %+v", report)
	}
	for _, p := range g.points {
		if err := sameDisk(t.Context(), r, p, g.disks[p.ID]); err != nil {
			t.Error(err)
		}
	}
}

// TestIndexThatDoesNotFitIntoMemory: its folder cannot be used, and what there is to index is more than is allowed.
func TestIndexThatDoesNotFitIntoMemory(t *testing.T) {
	m := newMemRepo(t)
	entries := int64(0)
	for _, p := range m.repo.idx.Packs() {
		entries += int64(p.Entries)
	}
	if err := m.repo.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{IndexDir: filepath.Join(file, "index"), memoryEntries: entries - 1}
	r, err := Open(t.Context(), m.b, Key{}, o)
	if err == nil {
		_ = r.Close()
	}
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Transient || meaning == "" || !strings.Contains(advice, o.IndexDir) {
		t.Errorf("Open = %v, %q, %q", err, meaning, advice)
	}
	o.memoryEntries++
	if r, err = Open(t.Context(), m.b, Key{}, o); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
