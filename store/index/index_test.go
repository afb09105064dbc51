package index

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

var quiet = slog.New(slog.DiscardHandler)

func open1(t *testing.T, dir string, repository byte) *Index {
	t.Helper()
	x, err := Open(dir, seal.ID{repository}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// directory is a pack of n chunks, first of which has id number from.
func directory(id byte, from, n int) *pack.Directory {
	d := &pack.Directory{Header: pack.Header{Kind: pack.Data, ID: seal.ID{id}}}
	for i := range n {
		d.Entries = append(d.Entries, pack.Entry{Type: pack.Chunk, ID: number(from + i)})
	}
	return d
}

func number(n int) (h chunk.Hash) {
	binary.BigEndian.PutUint64(h[4:], uint64(n)+1)
	return h
}

func lookup(t *testing.T, x *Index, n int) []Location {
	t.Helper()
	places, err := x.Lookup(nil, number(n))
	if err != nil {
		t.Fatal(err)
	}
	return places
}

func TestLookup(t *testing.T) {
	for _, dir := range []string{"", filepath.Join(t.TempDir(), "index")} {
		x := open1(t, dir, 1)
		for _, d := range []*pack.Directory{directory(1, 0, 100), directory(2, 50, 100)} {
			d.Entries[60].Refs = []pack.Ref{{}}
			if err := x.Add(d); err != nil {
				t.Fatal(err)
			}
			if err := x.Add(d); err != nil { // twice is once
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff([]Location{{seal.ID{1}, 60, true}, {seal.ID{2}, 10, false}}, lookup(t, x, 60)); diff != "" {
			t.Errorf("copies (-want +got):\n%s", diff)
		}
		if got := lookup(t, x, 150); len(got) != 0 {
			t.Errorf("Lookup of the unknown = %v", got)
		}
		if err := x.Forget(seal.ID{1}); err != nil {
			t.Fatal(err)
		}
		if got := lookup(t, x, 60); len(got) != 1 || got[0].Pack != (seal.ID{2}) {
			t.Errorf("after Forget: %v", got)
		}
		if err := x.Sweep(); err != nil {
			t.Fatal(err)
		}
		if all, err := x.Dump(); err != nil || len(all) != 100 {
			t.Errorf("%d entries after Sweep, %v", len(all), err)
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNumbersAreNotGivenOutTwice: entries of a pack that was forgotten but not swept must not come to life again.
func TestNumbersAreNotGivenOutTwice(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open1(t, dir, 1)
	if err := errors.Join(x.Add(directory(1, 0, 10)), x.Add(directory(2, 10, 10)), x.Forget(seal.ID{2}), x.Close()); err != nil {
		t.Fatal(err)
	}
	x = open1(t, dir, 1)
	defer x.Close()
	if err := x.Add(directory(3, 20, 10)); err != nil {
		t.Fatal(err)
	}
	if got := lookup(t, x, 15); len(got) != 0 {
		t.Errorf("a chunk of a forgotten pack is found in another: %v", got)
	}
}

func TestDamagedOrForeignIndexStartsAfresh(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open1(t, dir, 1)
	if err := errors.Join(x.Add(directory(1, 0, 10)), x.Close()); err != nil {
		t.Fatal(err)
	}
	x = open1(t, dir, 2)
	if n := len(x.Packs()); n != 0 {
		t.Errorf("the index of another repository has %d packs", n)
	}
	if err := errors.Join(x.Add(directory(1, 0, 10)), x.Close()); err != nil {
		t.Fatal(err)
	}
	manifests, err := filepath.Glob(filepath.Join(dir, "MANIFEST-*"))
	if err != nil || len(manifests) == 0 {
		t.Fatalf("no manifest: %v", err)
	}
	for _, name := range manifests {
		if err := os.WriteFile(name, []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	x = open1(t, dir, 2)
	defer x.Close()
	if n := len(x.Packs()); n != 0 {
		t.Errorf("a damaged index has %d packs", n)
	}
}

func TestBrokenIndexAnswersErrors(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open1(t, dir, 1)
	x.log.Fatalf("MANIFEST sync: %v", errors.New("no space left"))
	if _, err := x.Lookup(nil, number(1)); err == nil {
		t.Error("Lookup in a broken index")
	}
	if err := x.Add(directory(1, 0, 1)); err == nil {
		t.Error("Add to a broken index")
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("a broken index is kept: %v", err)
	}
}

func TestCloseOfAnIndexThatCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open1(t, dir, 1)
	if err := errors.Join(x.Add(directory(1, 0, 10)), os.RemoveAll(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Lookup(nil, number(1)); err != nil {
		t.Errorf("what is in memory: %v", err)
	}
	if err := x.Close(); err != nil { // and it ends
		t.Error(err)
	}
	x = open1(t, dir, 1)
	defer x.Close()
	if n := len(x.Packs()); n != 0 {
		t.Errorf("the index made afresh has %d packs", n)
	}
}
