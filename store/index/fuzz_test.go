package index

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

func FuzzParseRecord(f *testing.F) {
	r := record{Pack{seal.ID{1}, pack.Data, 1 << 25, 500}, 7}
	key := packKey(r.ID)
	f.Add(key, r.append(nil))
	for p := range boundary.Binary(r.append(nil)) {
		f.Add(key, p)
	}
	f.Add([]byte("p"), []byte{})
	f.Fuzz(func(t *testing.T, key, val []byte) {
		if r, err := parseRecord(key, val); err == nil && !bytes.Equal(r.append(nil), val) {
			t.Errorf("%x is read as what is written %x", val, r.append(nil))
		}
	})
}

// FuzzLookup reads entries, pack records and notes that nobody wrote: the index is a file that may hold anything.
func FuzzLookup(f *testing.F) {
	id := chunk.Hash{9}
	for p := range boundary.Binary(make([]byte, 10)) {
		f.Add(p, p)
	}
	f.Add(bytes.Repeat([]byte{0xff}, 11), []byte{1})
	log := slog.New(slog.DiscardHandler)
	x, err := Open("", seal.ID{1}, log)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := x.Close(); err != nil {
			f.Error(err)
		}
	})
	x.packs[seal.ID{1}] = record{Pack{seal.ID{1}, pack.Data, 1, 1}, 0}
	x.byNum[0] = seal.ID{1}
	var key [prefixLen + 4]byte
	entryKey(&key, id, 0)
	f.Fuzz(func(t *testing.T, entry, other []byte) {
		for _, kv := range [][2][]byte{{key[:], entry}, {append([]byte("y"), other...), entry}, {append([]byte("s"), other...), entry}} {
			if err := x.db.Set(kv[0], kv[1], pebble.NoSync); err != nil {
				t.Fatal(err)
			}
		}
		places, err := x.Lookup(nil, id)
		if err == nil && len(places) != 1 {
			t.Errorf("%x: %d places", entry, len(places))
		}
		if _, err := x.Proofs(); err != nil {
			t.Errorf("proofs: %v", err)
		}
		if err := x.loadSuspects(); err != nil {
			t.Errorf("suspects: %v", err)
		}
	})
}
