package store

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
)

// TestCodecsSideBySide writes to one repository with each codec in turn; whoever opens it reads all of it.
func TestCodecsSideBySide(t *testing.T) {
	rnd := rand.New(rand.NewPCG(31, 1))
	g := newRig(t)
	codecs := map[string]pack.Codec{"": pack.Zstd, "zstd": pack.Zstd, "s2": pack.S2, "none": pack.None, "auto": pack.Zstd}
	points, disks := map[string]RestorePoint{}, map[string][]byte{}
	for name, want := range codecs {
		g.close()
		var err error
		if g.repo, err = Open(t.Context(), g.b, g.key, Options{Codec: name}); err != nil {
			t.Fatal(err)
		}
		before := map[string]bool{}
		for _, p := range g.repo.idx.Packs() {
			before[pack.Name(p.ID)] = true
		}
		disks[name] = randomDisk(rnd, 3<<20)
		var text []byte // long enough for a frame of its own, which every codec shrinks
		for n := 0; len(text) < 2<<20; n++ {
			text = fmt.Appendf(text, "line %d, written with codec %q\n", n, name)
		}
		disks[name] = append(disks[name], text[:2<<20]...)
		points[name] = g.backup(disks[name], nil, nil)
		seen := map[pack.Codec]int{}
		for _, p := range g.repo.idx.Packs() {
			if before[pack.Name(p.ID)] || p.Kind != pack.Data {
				continue
			}
			rd, err := g.repo.pack(t.Context(), p.ID)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range rd.Directory().Frames {
				seen[f.Codec]++
			}
		}
		if seen[want] == 0 || len(seen) > 2 || len(seen) == 2 && seen[pack.None] == 0 {
			t.Errorf("codec %q: frames by codec %v", name, seen)
		}
	}
	g.reopen()
	for name, p := range points {
		g.mustHold(p, disks[name])
		g.mustStream("codec "+name, p.Images[0].Ref, disks[name])
	}
	g.close()
	if _, err := Open(t.Context(), g.b, g.key, Options{Codec: "lzma"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("Open with an unknown codec = %v", err)
	}
}
