package manifest

import (
	"bytes"
	"testing"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/store/seal"
)

func FuzzBoundaries(f *testing.F) {
	keys, repository, id := seal.NewKeySet(1), seal.ID{1}, seal.ID{2}
	good, err := Encode(keys, seal.AES256GCM, repository, id, []byte(`{"format":1}`))
	if err != nil {
		f.Fatal(err)
	}
	boundary.Add(f, good, boundary.Binary(good))
	f.Fuzz(func(t *testing.T, p []byte) {
		boundary.Bounded(t, len(p), 16, func() {
			if _, err := Decode(keys, repository, id, p); err == nil && !bytes.Equal(p, good) {
				t.Error("a manifest that was changed is accepted")
			}
			_ = Scrub(p)
		})
	})
}
