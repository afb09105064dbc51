package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func box(t *testing.T, secret byte, keyID uint32, version uint16, repository, object, salt byte) *Box {
	t.Helper()
	b, err := NewBox([32]byte{secret}, keyID, version, ID{repository}, ID{object}, Salt{salt})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOpensInItsPlaceOnly(t *testing.T) {
	good := box(t, 1, 1, 1, 1, 1, 1)
	sealed := good.Seal(nil, Frame, 7, 9, []byte("text"))
	if got, err := good.Open(nil, Frame, 7, 9, sealed); err != nil || string(got) != "text" {
		t.Fatalf("Open = %q, %v", got, err)
	}
	tests := []struct {
		name           string
		box            *Box
		typ            Type
		number, detail uint64
		sealed         []byte
	}{
		{"another secret", box(t, 2, 1, 1, 1, 1, 1), Frame, 7, 9, sealed},
		{"another key set", box(t, 1, 2, 1, 1, 1, 1), Frame, 7, 9, sealed},
		{"another version", box(t, 1, 1, 2, 1, 1, 1), Frame, 7, 9, sealed},
		{"another repository", box(t, 1, 1, 1, 2, 1, 1), Frame, 7, 9, sealed},
		{"another object", box(t, 1, 1, 1, 1, 2, 1), Frame, 7, 9, sealed},
		{"another salt", box(t, 1, 1, 1, 1, 1, 2), Frame, 7, 9, sealed},
		{"another type", good, Directory, 7, 9, sealed},
		{"another number", good, Frame, 8, 9, sealed},
		{"another detail", good, Frame, 7, 8, sealed},
		{"cut", good, Frame, 7, 9, sealed[:len(sealed)-1]},
		{"empty", good, Frame, 7, 9, nil},
		{"longer", good, Frame, 7, 9, append(bytes.Clone(sealed), 0)},
	}
	for _, tt := range tests {
		if _, err := tt.box.Open(nil, tt.typ, tt.number, tt.detail, tt.sealed); !errors.Is(err, ErrForged) {
			t.Errorf("%s: %v, want ErrForged", tt.name, err)
		}
	}
}

func TestNonces(t *testing.T) {
	b := box(t, 1, 1, 1, 1, 1, 1)
	seen := map[[24]byte]bool{}
	for typ := Frame; typ <= KeyWrap; typ++ {
		for _, n := range []uint64{0, 1, 2, 255, 256, 1 << 32, 1<<64 - 1} {
			nonce, _ := b.bind(typ, n, 0)
			if seen[nonce] {
				t.Errorf("nonce of type %d, number %d repeats", typ, n)
			}
			seen[nonce] = true
		}
	}
}

func TestKeySetsKeepTheirSecrets(t *testing.T) {
	k := NewKeySet(1)
	secret := fmt.Sprintf("%v", k.Data[:4])
	var printed []string
	for _, v := range []any{k, *k, []KeySet{*k}, map[string]*KeySet{"k": k}, struct{ K KeySet }{*k}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%d", "%x", "%s", "%q"} {
			printed = append(printed, fmt.Sprintf(verb, v))
		}
		p, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("test", "k", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("test", "k", v)
		printed = append(printed, string(p), log.String())
	}
	hexed, coded := fmt.Sprintf("%x", k.Data[:4]), base64.StdEncoding.EncodeToString(k.Data[:3])
	for _, s := range printed {
		if strings.Contains(s, secret[1:len(secret)-1]) || strings.Contains(s, strings.ReplaceAll(secret[1:len(secret)-1], " ", ",")) ||
			strings.Contains(s, hexed) || strings.Contains(s, coded) || !strings.Contains(s, "redacted") {
			t.Errorf("a key set prints as %q", s)
		}
	}
	salt, id := NewSalt(), NewID()
	if *NewKeySet(1) == *k || NewSalt() == salt || NewID() == id {
		t.Error("random values repeat")
	}
}
