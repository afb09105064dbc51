package store

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/campaign/memory"
	"github.com/cairn-backup/cairn/store/chunk"
)

// FuzzSignedConfig signs whatever the config may say: who has the key can write anything.
func FuzzSignedConfig(f *testing.F) {
	ctx := context.Background()
	m := memory.New("fuzz")
	if err := Create(ctx, m, Key{}, CreateOptions{Name: "fuzz"}); err != nil {
		f.Fatal(err)
	}
	var good configFile
	if err := json.Unmarshal(m.Content(configName), &good); err != nil {
		f.Fatal(err)
	}
	_, _, keys, err := loadConfig(ctx, m, Key{})
	if err != nil {
		f.Fatal(err)
	}
	private := ed25519.NewKeyFromSeed(keys.Seed[:])
	boundary.Add(f, good.Body, boundary.Text(good.Body))
	f.Fuzz(func(t *testing.T, text []byte) {
		body, err := json.Marshal(json.RawMessage(text)) // as it is in the file
		if err != nil {
			return // no JSON
		}
		p, err := json.Marshal(configFile{
			Body: body, PublicKey: good.PublicKey, Signature: hex.EncodeToString(ed25519.Sign(private, append([]byte(signConfig), body...))),
		})
		if err != nil {
			t.Fatal(err)
		}
		bad := m.Clone()
		bad.Set(configName, p)
		boundary.Bounded(t, len(p), textFactor, func() {
			c, id, got, err := loadConfig(ctx, bad, Key{})
			if err == nil && (c.Format != formatVersion || !chunk.ValidSize(c.ChunkBytes) || hex.EncodeToString(id[:]) != strings.ToLower(c.Repository) || got.Data != keys.Data) {
				t.Errorf("accepted %+v, %v", c, id)
			}
		})
	})
}

// FuzzKeyFile reads anything as the file of a key: only the line it was written with is that key.
func FuzzKeyFile(f *testing.F) {
	key := Key{[32]byte{1, 2, 3}}
	good := []byte(key.text() + "\n")
	boundary.Add(f, good, boundary.Text(good))
	f.Add(bytes.Repeat([]byte{' '}, 1<<16))
	path := filepath.Join(f.TempDir(), "key")
	f.Fuzz(func(t *testing.T, p []byte) {
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		boundary.Bounded(t, len(p), 16, func() {
			k, err := LoadKeyFile(path)
			if err == nil && k.text() != string(bytes.TrimSpace(p)) {
				t.Errorf("%q is read as another key", p)
			}
			if err != nil && k != (Key{}) {
				t.Error("half a key is handed out beside an error")
			}
		})
	})
}

// FuzzIdentityFile reads anything as an age identity file and as a recipient. Errors must not quote secrets.
func FuzzIdentityFile(f *testing.F) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	good := []byte("# created: 2026-11-22T00:00:00Z\n# public key: " + key.Recipient().String() + "\n" + key.String() + "\n")
	boundary.Add(f, good, boundary.Text(good))
	boundary.Add(f, []byte(key.Recipient().String()), boundary.Text([]byte(key.Recipient().String())))
	f.Add([]byte("AGE-SECRET-KEY-PQ-1"))
	f.Add([]byte("age1pq1"))
	f.Fuzz(func(t *testing.T, p []byte) {
		// A post-quantum key is some KiB whatever the text is.
		boundary.Bounded(t, len(p)+16<<10, textFactor, func() {
			i, err := ParseIdentity(string(p))
			if err == nil && len(i.(*identity).recipients) == 0 {
				t.Error("an identity without a recipient")
			}
			if err != nil && (fault.KindOf(err) != fault.Invalid || strings.Contains(err.Error(), "SECRET")) {
				t.Errorf("refused with %v", err)
			}
			if r, text, err := parseRecipient(string(p)); err == nil {
				if _, again, err := parseRecipient(text); r == nil || err != nil || again != text {
					t.Errorf("%q is read as %q, which is %q, %v", p, text, again, err)
				}
			}
		})
	})
}
