package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
)

// streamed reads an image by Stream, and checks that exactly the ranges that are not zeros come, each once.
func (g *rig) streamed(ref ImageRef) ([]byte, error) {
	g.t.Helper()
	i, err := g.repo.OpenImage(g.t.Context(), ref)
	if err != nil {
		return nil, err
	}
	defer i.Close()
	got := make([]byte, ref.SizeBytes)
	came := make([]bool, ref.SizeBytes/testChunk+1)
	var mu sync.Mutex
	err = i.Stream(g.t.Context(), 4, func(off int64, p []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if len(p) == 0 || off%testChunk != 0 || int64(len(p))%testChunk != 0 && off+int64(len(p)) != ref.SizeBytes {
			g.t.Errorf("%d bytes at %d are not whole chunks", len(p), off)
		}
		for at := off; at < off+int64(len(p)); at += testChunk {
			if came[at/testChunk] {
				g.t.Errorf("the chunk at %d came twice", at)
			}
			came[at/testChunk] = true
		}
		copy(got[off:], p)
		return nil
	})
	if err != nil {
		return got, err
	}
	for e, err := range i.Extents(g.t.Context()) {
		if err != nil {
			g.t.Fatal(err)
		}
		for at := e.Offset; at < e.Offset+e.Length; at += testChunk {
			if came[at/testChunk] == e.Zero {
				g.t.Errorf("the chunk at %d, zeros: %v, came: %v", at, e.Zero, came[at/testChunk])
			}
		}
	}
	return got, nil
}

func (g *rig) mustStream(what string, ref ImageRef, want []byte) {
	g.t.Helper()
	got, err := g.streamed(ref)
	if err != nil {
		g.t.Errorf("%s: %v", what, err)
	} else if !bytes.Equal(got, want) {
		g.t.Errorf("%s: the stream has other bytes than the disk", what)
	}
}

func TestStreamGivesTheImage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(12, 1))
	stock := make([]byte, 2<<20)
	fill(rnd, stock)
	for _, tt := range []struct {
		name string
		disk []byte
	}{
		{"nothing", nil},
		{"zeros", make([]byte, 1<<20)},
		{"random, zeros and text, odd end", randomDisk(rnd, 5<<20+777)},
		{"one chunk many times", bytes.Repeat(stock[:testChunk], 40)},
		{"of a stock of blocks", mixedDisk(rnd, stock, 6<<20)},
		{"several windows", randomDisk(rnd, smallWindow*testChunk*3+9<<20+5)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, reopen := smallPacks(t, 4<<20)
			p := g.backup(tt.disk, nil, nil)
			g.mustStream("full", p.Images[0].Ref, tt.disk)
			reopen()
			g.repo.o.windowChunks = smallWindow
			g.mustStream("opened again", p.Images[0].Ref, tt.disk)
		})
	}
}

// smallWindow is a window of 16 MiB.
const smallWindow = 16 << 20 / testChunk

// TestStreamDecodesFramesOnce counts decoded frames, which says more than a clock.
func TestStreamDecodesFramesOnce(t *testing.T) {
	rnd := rand.New(rand.NewPCG(12, 2))
	disk := make([]byte, 80<<20)
	fill(rnd, disk)
	g := newRig(t)
	write := func(disk []byte, parent *ImageRef) RestorePoint {
		t.Helper()
		s := g.begin()
		w, err := s.NewImage(t.Context(), ImageOptions{SizeBytes: int64(len(disk)), Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(disk); at += 1 << 20 {
			if err := w.Write(t.Context(), int64(at), disk[at:at+1<<20]); err != nil {
				t.Fatal(err)
			}
		}
		ref, err := w.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return g.publish(s, ref)
	}
	first := write(disk, nil)
	frames := func() (n int64) {
		for _, p := range g.repo.idx.Packs() {
			rd, err := g.repo.pack(t.Context(), p.ID)
			if err != nil {
				t.Fatal(err)
			}
			if rd.Directory().Header.Kind == pack.Data {
				n += int64(len(rd.Directory().Frames))
			}
		}
		return n
	}
	decoded := func(p RestorePoint, window int, want []byte) int64 {
		g.reopen()
		g.repo.o.windowChunks = window
		g.mustStream("full", p.Images[0].Ref, want)
		return g.repo.decoded.Load()
	}
	const ofTree = 4                                  // frames of tree nodes
	windows := []int{0, 80 << 20 / testChunk * 4 / 5} // all of the disk, most of it
	for _, window := range windows {
		if got, all := decoded(first, window, disk), frames(); got < all || got > all+ofTree {
			t.Errorf("%d frames decoded in windows of %d chunks, the image has %d", got, window, all)
		}
	}
	// Thirty days of blocks changed here and there: each day's frames hold blocks of the whole disk.
	last := first
	for range 30 {
		for range 100 {
			at := rnd.IntN(len(disk)/4096) * 4096
			fill(rnd, disk[at:at+4096])
		}
		last = write(disk, &last.Images[0].Ref)
	}
	for _, window := range windows {
		if got, all := decoded(last, window, disk), frames(); got > all+all/10+ofTree {
			t.Errorf("%d frames decoded for the last of 30 days in windows of %d chunks, the repository has %d", got, window, all)
		}
	}
}

// TestStreamTriesOtherCopies damages the pack that the stream reads from; what another pack has comes from there, and
// what none has is an error, never other bytes.
func TestStreamTriesOtherCopies(t *testing.T) {
	rnd := rand.New(rand.NewPCG(12, 3))
	disk := make([]byte, 3<<20)
	fill(rnd, disk)
	g := newRig(t)
	first := g.backup(disk, nil, nil)
	packs := g.files("packs")
	for _, name := range packs {
		if err := flipFrame(name); err != nil {
			t.Fatal(err)
		}
	}
	g.reopen()
	if _, err := g.streamed(first.Images[0].Ref); fault.KindOf(err) != fault.Corrupt {
		t.Fatalf("a damaged image gives %v", err)
	}
	if _, err := g.repo.Verify(t.Context(), first.ID, nil); err == nil {
		t.Fatal("Verify does not find the damage")
	}
	second := g.backup(disk, nil, nil) // stores again what is damaged
	if more := g.files("packs"); len(more) <= len(packs) {
		t.Fatal("nothing was stored again")
	}
	g.reopen() // the mark of the damaged packs is in memory only: they are tried first
	g.mustStream("stored twice", first.Images[0].Ref, disk)
	g.mustStream("second", second.Images[0].Ref, disk)
}

func TestStreamEnds(t *testing.T) {
	rnd := rand.New(rand.NewPCG(12, 4))
	disk := randomDisk(rnd, 8<<20)
	g := newRig(t)
	p := g.backup(disk, nil, nil)
	i, err := g.repo.OpenImage(t.Context(), p.Images[0].Ref)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	enough := errors.New("enough")
	var calls atomic.Int32
	err = i.Stream(t.Context(), 2, func(int64, []byte) error {
		if calls.Add(1) == 3 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("Stream = %v after its function failed", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = i.Stream(ctx, 2, func(int64, []byte) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Stream = %v after it was cancelled", err)
	}
}
