package index

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// The scale test's packs are as large as a full 32 MiB pack of 64 KiB chunks.
const (
	scalePack   = 512
	scaleCI     = 10_000_000
	scaleSoak   = 100_000_000
	memoryBound = 400 << 20 // of everything the process holds, however many entries; 160 bytes a pack come on top
)

// scaled is the id of entry n: as random as a hash, and made of n alone.
func scaled(n int) (h [32]byte) {
	for i := range 4 {
		z := uint64(n*4+i) + 0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.BigEndian.PutUint64(h[i*8:], z^z>>31)
	}
	return h
}

func scaledPack(d *pack.Directory, n int) {
	binary.BigEndian.PutUint64(d.Header.ID[:], uint64(n)+1)
	for i := range d.Entries {
		d.Entries[i].ID = scaled(n*scalePack + i)
	}
}

// held is what this process holds for an index: Go's heap and what Pebble allocates beside it.
func held(x *Index) int64 {
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	m := x.db.Metrics()
	return int64(ms.HeapInuse+ms.StackInuse) + m.BlockCache.Size + int64(m.MemTable.Size)
}

func dirBytes(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestScale loads very many entries, looks some up, adds and forgets packs, and opens the index again. It asserts what
// is found and how much memory is held; times are printed only.
func TestScale(t *testing.T) {
	if testing.Short() || os.Getenv("CAIRN_QUICK") != "" {
		t.Skip("takes a minute")
	}
	total := scaleCI
	if os.Getenv("CAIRN_SOAK") != "" {
		total = scaleSoak
	}
	root := t.TempDir()
	if dir := os.Getenv("CAIRN_SCALE_DIR"); dir != "" {
		var err error
		if root, err = os.MkdirTemp(dir, "scale"); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root)
	}
	dir := filepath.Join(root, "index")
	x := open1(t, dir, 1)
	defer func() { x.Close() }()
	packs := total / scalePack
	bound := int64(memoryBound + packs*160)
	var peak int64
	watch := func(what string) {
		t.Helper()
		n := held(x)
		if peak = max(peak, n); n > bound {
			t.Fatalf("%s: %d MiB are held, more than %d", what, n>>20, bound>>20)
		}
	}
	rate := func(what string, n int, begun time.Time) {
		took := time.Since(begun)
		t.Logf("%-12s %9d in %6.1f s: %8.0f a second", what, n, took.Seconds(), float64(n)/took.Seconds())
	}

	begun := time.Now()
	l, err := x.Load()
	if err != nil {
		t.Fatal(err)
	}
	d := &pack.Directory{Header: pack.Header{Kind: pack.Data}, Entries: make([]pack.Entry, scalePack)}
	for n := range packs {
		scaledPack(d, n)
		if err := l.Add(d); err != nil {
			t.Fatal(err)
		}
		if n%2000 == 0 {
			watch("load")
		}
	}
	if err := l.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	watch("finish")
	rate("bulk load", packs*scalePack, begun)
	size := dirBytes(t, dir)
	t.Logf("%.1f bytes an entry on disk, %d MiB", float64(size)/float64(packs*scalePack), size>>20)

	rnd := rand.New(rand.NewPCG(1, uint64(total)))
	look := func(what string, n, from, to int, there bool) {
		t.Helper()
		begun := time.Now()
		for range n {
			at := from + rnd.IntN(to-from)
			places, err := x.Lookup(nil, scaled(at))
			if err != nil {
				t.Fatal(err)
			}
			var want []Location
			if there {
				var id seal.ID
				binary.BigEndian.PutUint64(id[:], uint64(at/scalePack)+1)
				want = []Location{{Pack: id, Slot: uint32(at % scalePack)}}
			}
			if len(places) != len(want) || (there && places[0] != want[0]) {
				t.Fatalf("%s of %d: %s", what, at, cmp.Diff(want, places))
			}
		}
		watch(what)
		rate(what, n, begun)
	}
	look("hits", 100_000, 0, packs*scalePack, true)
	look("misses", 100_000, packs*scalePack, 1<<40, false)

	const more = 1000 // packs, as sessions add them
	begun = time.Now()
	for n := packs; n < packs+more; n++ {
		scaledPack(d, n)
		if err := x.Add(d); err != nil {
			t.Fatal(err)
		}
	}
	watch("add")
	rate("add", more*scalePack, begun)
	look("new hits", 10_000, packs*scalePack, (packs+more)*scalePack, true)

	var id seal.ID
	binary.BigEndian.PutUint64(id[:], 1)
	begun = time.Now()
	if err := errors.Join(x.Forget(id), x.Sweep()); err != nil {
		t.Fatal(err)
	}
	rate("sweep", packs*scalePack, begun)
	look("forgotten", scalePack, 0, scalePack, false)
	begun = time.Now()
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	x = open1(t, dir, 1)
	rate("open again", packs, begun)
	if got := len(x.Packs()); got != packs+more-1 {
		t.Errorf("%d packs after the next open, want %d", got, packs+more-1)
	}
	look("cold hits", 20_000, scalePack, (packs+more)*scalePack, true)
	t.Logf("at most %d MiB held, bound %d", peak>>20, bound>>20)
}
