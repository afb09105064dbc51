package store

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/carry"
	"github.com/cairn-backup/cairn/store/pack"
)

// newCarrier begins an image of size bytes that another process carries.
func newCarrier(t *testing.T, r *Repository, size int64) *Carrier {
	t.Helper()
	s, err := r.Begin(t.Context(), SessionOptions{Series: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Abort(context.Background()) })
	w, err := s.Image(t.Context(), "sda", ImageOptions{SizeBytes: size})
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCarrierAsksForSoMuch asks about chunks and delivers none.
func TestCarrierAsksForSoMuch(t *testing.T) {
	g := newRig(t)
	defer g.close()
	c := newCarrier(t, g.repo, (hardClaims+maxAsk)*testChunk)
	var err error
	asked := 0
	for err == nil && asked <= hardClaims {
		chunks := make([]carry.Chunk, maxAsk)
		for i := range chunks {
			chunks[i].Number = int64(asked + i)
			binary.LittleEndian.PutUint64(chunks[i].ID[:], uint64(asked+i+1))
		}
		if err = c.Look(t.Context(), chunks); err == nil {
			asked += len(chunks)
		}
	}
	if asked != hardClaims || fault.KindOf(err) != fault.Transient {
		t.Errorf("after %d chunks: %v", asked, err)
	}
}

// TestSameChunkInTwoPacks hands in two packs with one chunk at once: one of them is what was asked for.
func TestSameChunkInTwoPacks(t *testing.T) {
	g := newRig(t)
	defer g.close()
	rnd := rand.New(rand.NewPCG(71, 1))
	const rounds = 40
	disk := make([]byte, rounds*testChunk)
	fill(rnd, disk)
	c := newCarrier(t, g.repo, int64(len(disk)))
	both := [2]*porter{newPorter(g.repo, c), newPorter(g.repo, c)}
	both[1].key = 1 << 32
	for n := range rounds {
		var made [2]*pack.Directory
		for i, p := range both {
			if err := p.write(t.Context(), disk, n, n+1); err != nil {
				t.Fatal(err)
			}
			var err error
			if made[i], err = p.w.Finish(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.w = nil
		}
		var errs [2]error
		var wg sync.WaitGroup
		for i, d := range made {
			wg.Go(func() { errs[i] = c.PackDone(t.Context(), d.Header.ID, d.Size()) })
			if n%2 == 0 { // one after the other
				wg.Wait()
			}
		}
		wg.Wait()
		refused := 0
		for _, err := range errs {
			if err != nil && fault.KindOf(err) != fault.Denied {
				t.Fatal(err)
			}
			if err != nil {
				refused++
			}
		}
		if refused != 1 {
			t.Fatalf("round %d: %v", n, errs)
		}
	}
	if _, err := c.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// dying is a context that ends after it was asked so many times.
type dying struct {
	context.Context
	left atomic.Int64
}

func (d *dying) Err() error {
	if d.left.Add(-1) < 0 {
		return context.Canceled
	}
	return d.Context.Err()
}

// TestPackDoneCutOff ends the call that makes a pack known at each of its steps.
func TestPackDoneCutOff(t *testing.T) {
	g := newRig(t)
	defer g.close()
	disk := make([]byte, 8*testChunk)
	fill(rand.New(rand.NewPCG(72, 1)), disk)
	c := newCarrier(t, g.repo, int64(len(disk)))
	p := newPorter(g.repo, c)
	if err := p.write(t.Context(), disk, 0, 8); err != nil {
		t.Fatal(err)
	}
	d, err := p.w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cut := 0
	for {
		ctx := &dying{Context: t.Context()}
		ctx.left.Store(int64(cut))
		if err = c.PackDone(ctx, d.Header.ID, d.Size()); err == nil {
			break
		}
		if cut++; !errors.Is(err, context.Canceled) && fault.KindOf(err) != fault.Canceled {
			t.Fatalf("cut off after %d looks: %v", cut-1, err)
		}
	}
	if cut == 0 {
		t.Error("nothing was cut off")
	}
	if _, err := c.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}
