package transfer_test

import (
	"math/rand/v2"
	"testing"

	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/store"
)

// TestBackupGoesOn begins transfers whose image has parts already: these are neither read nor written, everything else
// is.
func TestBackupGoesOn(t *testing.T) {
	const seed = 7
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, seed))
	for range 30 {
		src := full(t, 32*mib)
		image := newPlane(32 * mib)
		want := int64(0)
		for at := int64(0); at < 32*mib; {
			n := min(32*mib-at, chunk*(1+rnd.Int64N(60)))
			if rnd.IntN(2) == 0 {
				image.had = append(image.had, store.Range{Offset: at, Length: n})
				want += n
			}
			at += n
		}
		res, err := transfer.Backup(t.Context(), src, image, transfer.Options{FullRead: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range image.had {
			for at := r.Offset; at < r.Offset+r.Length; at += chunk {
				if _, ok := image.filled[at/chunk]; ok {
					t.Fatalf("chunk at %d is written again", at)
				}
			}
		}
		if got := res.BytesSkipped; got < want {
			t.Errorf("%d bytes skipped, want at least %d", got, want)
		}
		if n := int64(len(image.filled)) * chunk; n != 32*mib-want {
			t.Errorf("%d bytes given to the image, want %d", n, 32*mib-want)
		}
	}
}
