package store

import (
	"bytes"
	"context"
	"encoding/hex"
	"testing"

	"filippo.io/age"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/store/campaign/memory"
)

// FuzzAgeWrapping gives anything at all to the identity as what is wrapped for it: only what was wrapped opens.
func FuzzAgeWrapping(f *testing.F) {
	ctx := context.Background()
	m := memory.New("fuzz")
	if err := Create(ctx, m, Key{}, CreateOptions{Name: "fuzz"}); err != nil {
		f.Fatal(err)
	}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	added, err := AddRecipient(ctx, m, Key{}, key.Recipient().String(), "fuzz")
	if err != nil {
		f.Fatal(err)
	}
	_, _, repository, err := readConfig(ctx, m)
	if err != nil {
		f.Fatal(err)
	}
	w, err := parseWrapping(m.Content(wrappingName(added.ID)))
	if err != nil {
		f.Fatal(err)
	}
	good, err := hex.DecodeString(w.Sealed)
	if err != nil {
		f.Fatal(err)
	}
	i := &identity{identities: []age.Identity{key}, recipients: []string{key.Recipient().String()}}
	if _, err := i.unwrap(&w, repository); err != nil {
		f.Fatalf("the wrapping as it was made: %v", err)
	}
	boundary.Add(f, good, boundary.Binary(good))
	f.Add([]byte("age-encryption.org/v1\n--- \n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		changed := w
		changed.Sealed = hex.EncodeToString(p)
		boundary.Bounded(t, len(p), textFactor, func() {
			if _, err := i.unwrap(&changed, repository); err == nil && !bytes.Equal(p, good) {
				t.Error("a changed wrapping opens")
			}
		})
	})
}
