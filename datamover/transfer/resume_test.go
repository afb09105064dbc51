package transfer_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/store"
)

// TestBackupGoesOn begins transfers whose image has parts already: these are neither read nor written, everything else
// is. What was read is counted as if one transfer had done it all.
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
		if res.BytesKept != want || res.BytesRead != 32*mib || res.BytesSkipped != 0 {
			t.Errorf("%d bytes kept, want %d; %d read and %d skipped in all", res.BytesKept, want, res.BytesRead, res.BytesSkipped)
		}
		if n := int64(len(image.filled)) * chunk; n != 32*mib-want {
			t.Errorf("%d bytes given to the image, want %d", n, 32*mib-want)
		}
	}
}

// TestGoingOnCounts: of what the image has, only data counts as read, by whole chunks, and progress counts like the result.
func TestGoingOnCounts(t *testing.T) {
	disk := nbd.NewMemory(16*mib, nil) // holes but for what is written
	for _, at := range []int64{0, 3*mib + 512, 8 * mib} {
		if _, err := disk.WriteAt(bytes.Repeat([]byte{1}, mib), at); err != nil {
			t.Fatal(err)
		}
	}
	had := []store.Range{{Offset: 0, Length: 2 * mib}, {Offset: 3 * mib, Length: 2 * mib}, {Offset: 8*mib + mib/2, Length: 4 * mib}}
	var counted []transfer.Result
	for _, had := range [][]store.Range{nil, had} {
		image := newPlane(16 * mib)
		image.had = had
		var last transfer.Progress
		res, err := transfer.Backup(t.Context(), memoryDisk{disk}, image, transfer.Options{Progress: func(p transfer.Progress) { last = p }})
		if err != nil {
			t.Fatal(err)
		}
		if last.BytesRead != res.BytesRead || last.BytesSkipped != res.BytesSkipped {
			t.Errorf("the last progress %+v is not the result %+v", last, res)
		}
		res.Elapsed = 0
		counted = append(counted, res)
	}
	if kept := counted[1].BytesKept; kept != mib+mib+chunk+mib/2 {
		t.Errorf("%d bytes were kept", kept)
	}
	counted[1].BytesKept = 0
	if counted[0] != counted[1] || counted[0].BytesRead != 3*mib+chunk {
		t.Errorf("in one go %+v, going on %+v", counted[0], counted[1])
	}
}
