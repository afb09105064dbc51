package store

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/store/pack"
)

// TestResumedImageCounts: an image that one mover begins, another goes on with, and a third ends under the next owner counts what a
// mover counts that carries it all: nothing twice that was lost on its way, and all that is durable. Begun anew it keeps what it has stored.
func TestResumedImageCounts(t *testing.T) {
	t.Log("seed 67")
	disk := make([]byte, 6<<20) // no chunk is like another one, so that nothing is stored by reference
	_, _ = rand.NewChaCha8([32]byte{67}).Read(disk)
	clear(disk[1<<20 : 2<<20])
	copy(disk[4<<20:5<<20], disk[2<<20:3<<20])

	one := newRig(t)
	whole := one.carryOn(one.resumable(), disk, nil, 1000)
	want := whole.c.Stats()
	if got := one.packBytes(); want.BytesStored != got || want.ChunksNew == 0 {
		t.Fatalf("in one go: %+v, and %d bytes of packs", want, got)
	}

	g := newRig(t)
	s := g.resumable()
	p := g.carryOn(s, disk, nil, 10)
	for n, end := range []int{15, 40, 70} {
		asked := p.asked
		if err := p.write(t.Context(), disk, 0, end); err != nil { // on its way, and lost
			t.Fatal(err)
		}
		if p.asked == asked {
			t.Errorf("nothing was on its way up to chunk %d", end)
		}
		if n > 0 {
			g.reopen()
			var err error
			if s, err = g.repo.Resume(t.Context(), s.ID()); err != nil {
				t.Fatal(err)
			}
		}
		p = g.carryOn(s, disk, nil, end+5)
	}
	if err := p.write(t.Context(), disk, 0, 1000); err != nil {
		t.Fatal(err)
	}
	if err := p.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	want.BytesStored = g.packBytes() // by other packs than in one go
	if diff := cmp.Diff(p.c.Stats(), want); diff != "" {
		t.Errorf("after being taken up three times (-got +want):\n%s", diff)
	}

	w, err := s.Image(t.Context(), "sda", ImageOptions{SizeBytes: int64(len(disk)), Anew: true})
	if err != nil {
		t.Fatal(err)
	}
	anew := ImageStats{BytesNew: want.BytesNew, BytesStored: want.BytesStored, ChunksNew: want.ChunksNew, ChunksRefs: want.ChunksRefs}
	if diff := cmp.Diff(w.Stats(), anew); diff != "" {
		t.Errorf("begun anew (-got +want):\n%s", diff)
	}
	g.reopen()
	if s, err = g.repo.Resume(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	p = g.carryOn(s, disk, nil, 1000)
	if diff := cmp.Diff(p.c.Stats(), want); diff != "" {
		t.Errorf("begun anew, and taken up (-got +want):\n%s", diff)
	}
	g.end(s, p, disk)
}

func (g *rig) resumable() *Session {
	g.t.Helper()
	s, err := g.repo.Begin(g.t.Context(), SessionOptions{Series: "vm", Resumable: true})
	if err != nil {
		g.t.Fatal(err)
	}
	return s
}

// packBytes is what all packs take.
func (g *rig) packBytes() (n int64) {
	g.t.Helper()
	for info, err := range g.b.List(g.t.Context(), pack.Folder) {
		if err != nil {
			g.t.Fatal(err)
		}
		n += info.Size
	}
	return n
}
