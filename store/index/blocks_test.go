package index

import (
	"encoding/binary"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// sampledPrint is a fingerprint that the sparse index takes.
func sampledPrint(n int) (f chunk.Fingerprint) {
	binary.BigEndian.PutUint64(f[:], uint64(n)+1)
	return f
}

// blocky is a pack of one chunk with the given blocks, of which those in present are physically there.
func blocky(id byte, present uint64, prints ...chunk.Fingerprint) *pack.Directory {
	return &pack.Directory{
		Header: pack.Header{Kind: pack.Data, ID: seal.ID{id}}, Blocks: len(prints), Prints: prints,
		Entries: []pack.Entry{{Type: pack.Chunk, ID: number(int(id)), Present: present}},
	}
}

func TestPacksWithBlock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open1(t, dir, 1)
	odd := sampledPrint(3)
	odd[15] = 1
	for id := byte(1); id <= 6; id++ {
		if err := x.Add(blocky(id, 0b1101, sampledPrint(1), sampledPrint(2), odd, sampledPrint(10+int(id)))); err != nil {
			t.Fatal(err)
		}
	}
	with := func(f chunk.Fingerprint, most int) []seal.ID {
		t.Helper()
		ids, err := x.PacksWith(nil, f, most)
		if err != nil {
			t.Fatal(err)
		}
		return ids
	}
	check := func(when string, newest ...seal.ID) {
		t.Helper()
		for _, tt := range []struct {
			name string
			f    chunk.Fingerprint
			most int
			want []seal.ID
		}{
			{"in all packs", sampledPrint(1), 3, newest},
			{"in the first pack only", sampledPrint(11), 3, []seal.ID{{1}}},
			{"referred to, not present", sampledPrint(2), 3, nil},
			{"not sampled", odd, 3, nil},
			{"nowhere", sampledPrint(99), 3, nil},
		} {
			if diff := cmp.Diff(tt.want, with(tt.f, tt.most)); diff != "" {
				t.Errorf("%s, a block %s (-want +got):\n%s", when, tt.name, diff)
			}
		}
	}
	check("added", seal.ID{6}, seal.ID{5}, seal.ID{4})
	if err := x.Forget(seal.ID{6}); err != nil {
		t.Fatal(err)
	}
	check("one forgotten", seal.ID{5}, seal.ID{4}, seal.ID{3})
	if err := x.Sweep(); err != nil {
		t.Fatal(err)
	}
	check("swept", seal.ID{5}, seal.ID{4}, seal.ID{3})
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	x = open1(t, dir, 1)
	defer x.Close()
	check("opened again", seal.ID{5}, seal.ID{4}, seal.ID{3})
	all, err := x.DumpBlocks()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 10 { // two of each pack that is left
		t.Errorf("%d block entries, want 10", len(all))
	}
	it, err := x.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for it.First(); it.Valid(); it.Next() {
		if it.Key()[0] == 'b' {
			n++
		}
	}
	if err := it.Close(); err != nil || n != 10 {
		t.Errorf("%d block entries are there in fact, %v; the sweep left some", n, err)
	}
}

// TestLoadTakesBlocks compares the blocks of a load with those of single Adds.
func TestLoadTakesBlocks(t *testing.T) {
	one, many := open1(t, "", 1), open1(t, filepath.Join(t.TempDir(), "index"), 1)
	defer one.Close()
	defer many.Close()
	l, err := many.Load()
	if err != nil {
		t.Fatal(err)
	}
	l.size = 7 // several runs
	for id := byte(1); id <= 9; id++ {
		d := blocky(id, 0b1011, sampledPrint(1), sampledPrint(int(id)), sampledPrint(7), sampledPrint(7))
		if err := one.Add(d); err != nil {
			t.Fatal(err)
		}
		if err := l.Add(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	want, err := one.DumpBlocks()
	if err != nil {
		t.Fatal(err)
	}
	got, err := many.DumpBlocks()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got) < 18 {
		t.Errorf("%d entries of blocks (-added +loaded):\n%s", len(got), diff)
	}
	if all, err := many.Dump(); err != nil || len(all) != 9 {
		t.Errorf("%d objects, %v", len(all), err)
	}
}
