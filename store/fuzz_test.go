package store

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/campaign/memory"
	"github.com/cairn-backup/cairn/store/seal"
)

// textFactor is what a JSON decoder may allocate for a byte: "{}," becomes a struct, in a slice that doubles.
const textFactor = 400

func FuzzRecord(f *testing.F) {
	rec := record{Format: 1, Pieces: [][]Hash{{{1}, {2}}, {}}, PreviousHash: strings.Repeat("ab", 32), Point: RestorePoint{
		ID: "rp_01m80535qydthwh8bpddmzv1dh", Sequence: 7, Previous: "rp_01m80535s294v7sh9hh6568zdn", Published: time.Unix(1e9, 0).UTC(),
		Manifest: Manifest{
			Series: "vm", Documents: []Document{{Name: "a", SizeBytes: documentPiece + 1}, {Name: "b"}},
			Images: []NamedImage{{Name: "vda", Ref: ImageRef{Hash{3}, 1 << 40}, Meta: json.RawMessage(`{"n":1}`)}},
		},
	}}
	base, err := json.Marshal(rec)
	if err != nil {
		f.Fatal(err)
	}
	boundary.Add(f, base, boundary.Text(base))
	f.Fuzz(func(t *testing.T, p []byte) {
		boundary.Bounded(t, len(p), textFactor, func() {
			rec, err := parseRecord(p)
			if err != nil {
				return
			}
			for i, d := range rec.Point.Documents {
				if d.SizeBytes < 0 || d.SizeBytes > int64(len(rec.Pieces[i]))*documentPiece {
					t.Errorf("%d bytes in %d pieces", d.SizeBytes, len(rec.Pieces[i]))
				}
			}
		})
	})
}

func FuzzConfig(f *testing.F) {
	m := memory.New("fuzz")
	if err := Create(context.Background(), m, Key{}, CreateOptions{Name: "fuzz"}); err != nil {
		f.Fatal(err)
	}
	good := m.Content(configName)
	boundary.Add(f, good, boundary.Text(good))
	f.Add([]byte(`{"config":{"format":1},"config":[]}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		bad := m.Clone()
		bad.Set(configName, p)
		boundary.Bounded(t, len(p), textFactor, func() {
			c, id, _, err := loadConfig(context.Background(), bad, Key{})
			if err == nil && !sameConfig(p, good) {
				t.Errorf("a changed config is accepted: %+v, %x", c, id)
			}
		})
	})
}

// sameConfig reports whether two config objects say the same over the same signed bytes.
func sameConfig(a, b []byte) bool {
	var x, y configFile
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	return bytes.Equal(x.Body, y.Body) && x.PublicKey == y.PublicKey && strings.EqualFold(x.Signature, y.Signature)
}

func FuzzWrapping(f *testing.F) {
	m := memory.New("fuzz")
	if err := Create(context.Background(), m, Key{}, CreateOptions{Name: "fuzz"}); err != nil {
		f.Fatal(err)
	}
	_, _, id, err := readConfig(context.Background(), m)
	if err != nil {
		f.Fatal(err)
	}
	name := m.Names(keyFolder)[0]
	good := m.Content(name)
	boundary.Add(f, good, boundary.Text(good))
	f.Add(bytes.ReplaceAll(good, []byte(wrapByKeyFile), []byte(wrapByAge)))
	f.Add(bytes.ReplaceAll(good, []byte(wrapByKeyFile), []byte(wrapByPaper)))
	keys, _, err := unlock(context.Background(), m, Key{}, id, "", func(*seal.KeySet) error { return nil })
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		boundary.Bounded(t, len(p), textFactor, func() {
			w, err := parseWrapping(p)
			if err != nil {
				return
			}
			w.name = name
			_ = w.public(keys.Public())
			if got, err := w.openWith(Key{}, id); err == nil && (got.Data != keys.Data || got.IDs != keys.IDs || got.Seed != keys.Seed) {
				t.Error("it opens to other keys")
			}
			if _, err := w.parseAgePlain(p, id); err == nil && len(p) < keySetBytes {
				t.Error("keys out of too few bytes")
			}
		})
	})
}

func FuzzKeyText(f *testing.F) {
	good := []byte(Key{[32]byte{1, 2, 3}}.text())
	boundary.Add(f, good, boundary.Text(good))
	f.Fuzz(func(t *testing.T, p []byte) {
		if k, ok := parseKey(string(p)); ok && k.text() != string(p) {
			t.Errorf("%q is read as another key", p)
		}
	})
}

func FuzzPointID(f *testing.F) {
	for _, s := range []string{
		"rp_01m80535qydthwh8bpddmzv1dh", "rp_7zzzzzzzzzzzzzzzzzzzzzzzzz", "rp_8zzzzzzzzzzzzzzzzzzzzzzzzz", "rp_zzzzzzzzzzzzzzzzzzzzzzzzzz", "rp_../config", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := parsePointID(s); err == nil && (len(s) != 29 || strings.ContainsAny(s, "/.\\")) {
			t.Errorf("%q is taken for a restore point", s)
		}
	})
}

// FuzzOwnerFiles opens a repository in whose epochs and leases anything lies, under any name: the owner must get
// through, or refuse, and never take less than the highest epoch.
func FuzzOwnerFiles(f *testing.F) {
	m := memory.New("fuzz")
	if err := Create(context.Background(), m, Key{}, CreateOptions{Name: "fuzz"}); err != nil {
		f.Fatal(err)
	}
	lease := []byte(`{"format":1,"session":"01m80535s294v7sh9hh6568zdn","epoch":1,"series":"a","time":"2026-11-22T00:00:00Z"}`)
	for p := range boundary.Text(lease) {
		f.Add("0000000000000007", p)
	}
	for _, name := range []string{"ffffffffffffffff", "fffffffffffffffe", "7fffffffffffffff", "8000000000000000", "10000000000000000", "-1", "x", "00"} {
		f.Add(name, lease)
	}
	f.Fuzz(func(t *testing.T, name string, p []byte) {
		bad := m.Clone()
		if name == "" || blob.Put(context.Background(), bad, epochFolder+name, p) != nil || blob.Put(context.Background(), bad, leaseFolder+name, p) != nil {
			return
		}
		r := &Repository{b: bad}
		newest, err := r.newestEpoch(context.Background())
		if err == nil && len(name) == 16 && epochName(newest) < epochFolder+strings.ToLower(name) && isHex(name) {
			t.Errorf("epoch %q is overlooked: %x", name, newest)
		}
	})
}

func isHex(s string) bool {
	return strings.Trim(strings.ToLower(s), "0123456789abcdef") == ""
}
