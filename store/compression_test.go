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
	codecs := map[string]pack.Codec{"": pack.Zstd, "standard": pack.Zstd, "high": pack.Zstd, "fast": pack.S2, "none": pack.None, "auto": pack.Zstd}
	points, disks := map[string]RestorePoint{}, map[string][]byte{}
	for name, want := range codecs {
		g.close()
		var err error
		if g.repo, err = Open(t.Context(), g.b, g.key, Options{Compression: name}); err != nil {
			t.Fatal(err)
		}
		before := map[string]bool{}
		for _, p := range g.repo.idx.Packs() {
			before[pack.Name(p.ID)] = true
		}
		disks[name] = randomDisk(rnd, 3<<20)
		var text []byte // long enough for a frame of its own, which every codec shrinks
		for n := 0; len(text) < 2<<20; n++ {
			text = fmt.Appendf(text, "line %d, written with compression %q\n", n, name)
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
			t.Errorf("compression %q: frames by codec %v", name, seen)
		}
	}
	g.reopen()
	for name, p := range points {
		g.mustHold(p, disks[name])
		g.mustStream("compression "+name, p.Images[0].Ref, disks[name])
	}
	g.close()
	if _, err := Open(t.Context(), g.b, g.key, Options{Compression: "lzma"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("Open with an unknown compression = %v", err)
	}
}

// TestSetCompression changes the compression of a repository that is open: what is written afterwards is smaller, in larger
// frames, and shares what there is; an image under way goes on in the frames it began with.
func TestSetCompression(t *testing.T) {
	g := newRig(t)
	disk := make([]byte, 16<<20)
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, part := range [][]byte{disk[:8<<20], disk[8<<20:]} { // repeats itself, further apart than smaller frames are long
		fill(rnd, part[:3<<19+1])
		for at := 3<<19 + 1; at < len(part); {
			at += copy(part[at:], part[:3<<19+1])
		}
	}
	half := len(disk) / 2
	back := func(disk []byte) RestorePoint {
		s := g.begin()
		w := must(s.NewImage(t.Context(), ImageOptions{SizeBytes: int64(len(disk))}))
		for off := 0; off < len(disk); off += w.FrameBytes() {
			must(0, w.Write(t.Context(), int64(off), disk[off:off+w.FrameBytes()]))
		}
		return g.publish(s, must(w.Finish(t.Context())))
	}
	first := back(disk[:half])
	if err := g.repo.SetCompression("high"); err != nil {
		t.Fatal(err)
	}
	second := back(disk[half:])
	again := back(disk[:half])
	if again.Images[0].Ref != first.Images[0].Ref {
		t.Error("equal content has another identity")
	}
	stored, largest := map[bool]int64{}, map[bool]uint32{} // by whether it is of the second
	for _, p := range g.repo.idx.Packs() {
		if p.Kind != pack.Data {
			continue
		}
		rd, err := g.repo.pack(t.Context(), p.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range rd.Directory().Frames {
			high := f.Plain > uint32(pack.Standard.FrameBytes())
			stored[high] += int64(f.Stored)
			largest[high] = max(largest[high], f.Plain)
		}
	}
	t.Logf("stored %v, largest frames %v", stored, largest)
	if largest[true] != uint32(pack.High.FrameBytes()) || largest[false] != uint32(pack.Standard.FrameBytes()) || stored[true] >= stored[false] {
		t.Errorf("stored %v, largest frames %v; want the high half in less, in frames of %d bytes", stored, largest, pack.High.FrameBytes())
	}
	g.mustHold(first, disk[:half])
	g.mustHold(second, disk[half:])
	if err := g.repo.SetCompression("gzip"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("an unknown compression: %v", err)
	}
}
