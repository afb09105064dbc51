package store

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"testing"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/store/campaign/memory"
	"github.com/cairn-backup/cairn/store/chunk"
)

// FuzzPruned gives anything as a record of what was pruned, as it is and signed: unsigned none counts, and a signed
// one counts for its own repository and series only.
func FuzzPruned(f *testing.F) {
	ctx := context.Background()
	m := memory.New("fuzz")
	if err := Create(ctx, m, Key{}, CreateOptions{Name: "fuzz"}); err != nil {
		f.Fatal(err)
	}
	_, id, keys, err := loadConfig(ctx, m, Key{})
	if err != nil {
		f.Fatal(err)
	}
	r := &Repository{b: m, id: id, keys: keys, hasher: chunk.NewHasher(keys.IDs)}
	key := r.seriesKey("vm")
	private := ed25519.NewKeyFromSeed(keys.Seed[:])
	good, err := json.Marshal(prunedBody{Format: formatVersion, Repository: r.ID(), Series: key, Ranges: [][2]uint64{{1, 3}, {7, 7}}})
	if err != nil {
		f.Fatal(err)
	}
	boundary.Add(f, good, boundary.Text(good))
	f.Fuzz(func(t *testing.T, p []byte) {
		boundary.Bounded(t, len(p), 2*textFactor, func() {
			if body, ok := r.parsePruned(p, key); ok {
				t.Errorf("an unsigned record counts: %+v", body)
			}
			text, err := json.Marshal(json.RawMessage(p)) // as it is in the file
			if err != nil {
				return // no JSON
			}
			raw, err := json.Marshal(prunedFile{Body: text, Signature: hex.EncodeToString(ed25519.Sign(private, append([]byte(signPruned), text...)))})
			if err != nil {
				t.Fatal(err)
			}
			body, ok := r.parsePruned(raw, key)
			if ok && (body.Repository != r.ID() || body.Series != key) {
				t.Errorf("accepted %+v", body)
			}
			_ = joinRanges(body.Ranges)
		})
	})
}
