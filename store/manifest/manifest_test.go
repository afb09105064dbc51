package manifest

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/cairn-backup/cairn/store/seal"
)

func TestEveryFlipAndCutIsRefused(t *testing.T) {
	keys, repository, id := seal.NewKeySet(1), seal.ID{1}, seal.ID{2}
	body := []byte(`{"format":1}`)
	p, err := Encode(keys, seal.AES256GCM, repository, id, body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(keys, repository, id, p); err != nil || !bytes.Equal(got, body) {
		t.Fatalf("Decode = %s, %v", got, err)
	}
	for at := range p {
		bad := bytes.Clone(p)
		bad[at] ^= 1 << (at % 8)
		if _, err := Decode(keys, repository, id, bad); err == nil {
			t.Errorf("flip at %d of %d is not refused", at, len(p))
		}
		if _, err := Decode(keys, repository, id, p[:at]); err == nil {
			t.Errorf("cut at %d of %d is not refused", at, len(p))
		}
	}
}

func TestForgedIsRefused(t *testing.T) {
	keys, repository, id := seal.NewKeySet(1), seal.ID{1}, seal.ID{2}
	p, err := Encode(keys, seal.AES256GCM, repository, id, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	// Whoever has the data key but not the signing seed can seal, but not sign.
	thief := *keys
	thief.Seed[0] ^= 1
	forged, err := Encode(&thief, seal.AES256GCM, repository, id, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name       string
		keys       *seal.KeySet
		repository seal.ID
		id         seal.ID
		p          []byte
	}{
		{"another repository", keys, seal.ID{9}, id, p},
		{"another name", keys, repository, seal.ID{9}, p},
		{"another key", seal.NewKeySet(1), repository, id, p},
		{"another key set", &seal.KeySet{ID: 2, Data: keys.Data, Seed: keys.Seed}, repository, id, p},
		{"signed by another", keys, repository, id, forged},
	}
	for _, tt := range tests {
		if _, err := Decode(tt.keys, tt.repository, tt.id, tt.p); err == nil {
			t.Errorf("%s: accepted", tt.name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	keys, repository, id := seal.NewKeySet(1), seal.ID{1}, seal.ID{2}
	p, err := Encode(keys, seal.AES256GCM, repository, id, []byte("{}"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	for at := 0; at+4 <= headBytes; at += 4 {
		for _, v := range []uint32{0, 1, 63, 64, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
			q := bytes.Clone(p)
			binary.LittleEndian.PutUint32(q[at:], v)
			f.Add(q)
		}
	}
	f.Fuzz(func(t *testing.T, q []byte) {
		if _, err := Decode(keys, repository, id, q); err == nil && !bytes.Equal(p, q) {
			t.Error("a manifest that was changed is accepted")
		}
	})
}
