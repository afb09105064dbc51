package campaign

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/campaign/memory"
)

// secret reads the 32 bytes of a key file; keyOf makes a key of 32 bytes.
func secret(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := hex.DecodeString(strings.Split(string(text), ":")[1])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func keyOf(t *testing.T, secret []byte) store.Key {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	text := fmt.Sprintf("cairn-key-1:%x:%08x\n", secret, crc32.ChecksumIEEE(secret))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := store.LoadKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// tryKey answers an error if a key that is none of the repository's is accepted, or refused without saying so.
func tryKey(ctx context.Context, m *memory.Store, key store.Key) error {
	r, err := store.Open(ctx, m, key, store.Options{ReadOnly: true})
	if err == nil {
		return errors.Join(errors.New("the repository opens"), r.Close())
	}
	if !refused(err) {
		return fmt.Errorf("refused with an error of another kind: %w", err)
	}
	if _, err := store.Drill(ctx, m, key); err == nil {
		return errors.New("the drill succeeds")
	}
	if _, err := store.AddKey(ctx, m, key, key, ""); err == nil {
		return errors.New("it can add a key")
	}
	return nil
}

// TestCampaignWrongKey tries keys that are not the repository's: random ones, the right one with one bit changed, and
// the right one of a stranger whose wrapped key set was put into this repository, as it was and made to fit.
func TestCampaignWrongKey(t *testing.T) {
	rnd := random(seeded.Seed(t), 7)
	v := newVictim(t)
	dir := t.TempDir()
	if _, err := store.NewKeyFile(filepath.Join(dir, "right")); err != nil {
		t.Fatal(err)
	}
	right := secret(t, filepath.Join(dir, "right"))
	own := memory.New("own")
	furnish(t, own, keyOf(t, right), 9)
	each := count(30, 100, 2000)
	injected, lost := 0, 0
	try := func(what string, m *memory.Store, key store.Key) {
		injected++
		if err := tryKey(t.Context(), m, key); err != nil {
			lost++
			t.Errorf("%s: %v", what, err)
		}
	}
	for range each {
		p := make([]byte, 32)
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		try("a random key", own, keyOf(t, p))
	}
	for i := range each {
		p := bytes.Clone(right)
		p[i%32] ^= 1 << (i / 32 % 8)
		try(fmt.Sprintf("bit %d of the key changed", i), own, keyOf(t, p))
	}
	for i := range each {
		m := own.Clone()
		name := v.m.Names("keys/")[0]
		wrapped := v.m.Content(name)
		if i%2 == 1 { // claim that it is this repository's
			from, to := hex.EncodeToString(v.id[:]), strings.Split(string(own.Content("config")), `"repository":"`)[1][:32]
			wrapped = bytes.ReplaceAll(wrapped, []byte(from), []byte(to))
		}
		if i%3 == 0 { // in the place of the right one
			m.Set(own.Names("keys/")[0], wrapped)
		} else {
			m.Set(name, wrapped)
		}
		try("a stranger's wrapping", m, v.key)
	}
	report(t, "wrong-key", injected, injected, lost)
	r, err := store.Open(t.Context(), own, keyOf(t, right), store.Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("the right key: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
