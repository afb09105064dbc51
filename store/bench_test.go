package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

const benchBytes = 128 << 20

// benchDisk is half random (incompressible), half text-like data that compresses about three times.
func benchDisk() []byte {
	rnd := rand.New(rand.NewPCG(3, 3))
	p := make([]byte, benchBytes)
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = fmt.Appendf(nil, "%x ", rnd.Uint64()>>uint(rnd.IntN(48)))
	}
	for at := 0; at < len(p); {
		if at/(256<<10)%2 == 0 {
			for end := min(len(p), at+256<<10); at < end; at += 8 {
				v := rnd.Uint64()
				for i := range 8 {
					p[at+i] = byte(v >> (8 * i))
				}
			}
			continue
		}
		for end := min(len(p), at+256<<10); at < end; {
			at += copy(p[at:end], words[rnd.IntN(len(words))])
		}
	}
	return p
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

func benchRepo(b *testing.B) *Repository {
	dir, err := file.Create(filepath.Join(b.TempDir(), "repo"))
	if err != nil {
		b.Fatal(err)
	}
	if err := Create(b.Context(), dir, Key{}, CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	r, err := Open(b.Context(), dir, Key{}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r
}

func benchWrite(b *testing.B, r *Repository, disk []byte) RestorePoint {
	ctx := context.Background()
	s, err := r.Begin(ctx, SessionOptions{Series: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	w, err := s.NewImage(ctx, ImageOptions{SizeBytes: int64(len(disk))})
	if err != nil {
		b.Fatal(err)
	}
	const segment = 1 << 20
	for at := 0; at < len(disk); at += segment {
		if err := w.Write(ctx, int64(at), disk[at:min(at+segment, len(disk))]); err != nil {
			b.Fatal(err)
		}
	}
	ref, err := w.Finish(ctx)
	if err != nil {
		b.Fatal(err)
	}
	p, err := s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}})
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func report(b *testing.B, cpu float64, bytes int64) {
	b.SetBytes(bytes)
	if used := cpuSeconds() - cpu; used > 0 {
		b.ReportMetric(float64(bytes)*float64(b.N)/1e6/used, "MB/cpu-s")
	}
}

func BenchmarkWriteFull(b *testing.B) {
	disk := benchDisk()
	var cpu float64
	for range b.N {
		b.StopTimer()
		r := benchRepo(b)
		start := cpuSeconds()
		b.StartTimer()
		benchWrite(b, r, disk)
		cpu += cpuSeconds() - start
	}
	report(b, cpuSeconds()-cpu, benchBytes)
}

func BenchmarkWriteKnown(b *testing.B) {
	disk := benchDisk()
	r := benchRepo(b)
	benchWrite(b, r, disk)
	cpu := cpuSeconds()
	for b.Loop() {
		benchWrite(b, r, disk)
	}
	report(b, cpu, benchBytes)
}

func BenchmarkRead(b *testing.B) {
	r := benchRepo(b)
	p := benchWrite(b, r, benchDisk())
	cpu := cpuSeconds()
	buf := make([]byte, 1<<20)
	for b.Loop() {
		i, err := r.OpenImage(b.Context(), p.Images[0].Ref)
		if err != nil {
			b.Fatal(err)
		}
		for at := int64(0); at < i.Size(); at += int64(len(buf)) {
			if _, err := i.ReadAt(buf, at); err != nil {
				b.Fatal(err)
			}
		}
		i.Close()
	}
	report(b, cpu, benchBytes)
}

// BenchmarkHoles writes a 64 GiB image that is empty but for 1 MiB.
func BenchmarkHoles(b *testing.B) {
	r := benchRepo(b)
	var n atomic.Int64
	for b.Loop() {
		ctx := b.Context()
		s, err := r.Begin(ctx, SessionOptions{Series: "holes"})
		if err != nil {
			b.Fatal(err)
		}
		w, err := s.NewImage(ctx, ImageOptions{SizeBytes: 64 << 30})
		if err != nil {
			b.Fatal(err)
		}
		p := make([]byte, 1<<20)
		p[n.Add(1)] = 1
		if err := w.Write(ctx, 1<<30, p); err != nil {
			b.Fatal(err)
		}
		if err := w.Zero(ctx, 1<<30+1<<20, 63<<30-1<<20); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Finish(ctx); err != nil {
			b.Fatal(err)
		}
		if err := s.Abort(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBare is the least a full write can cost: hash, compress, seal, nothing else.
func BenchmarkBare(b *testing.B) {
	disk := benchDisk()
	h := chunk.NewHasher([32]byte{1})
	prints := make([]chunk.Fingerprint, testChunk/chunk.BlockBytes)
	coder, err := pack.NewCoder(pack.Standard)
	if err != nil {
		b.Fatal(err)
	}
	defer coder.Close()
	box, err := seal.NewBox([32]byte{1}, 1, 1, seal.ID{}, seal.ID{}, seal.Salt{})
	if err != nil {
		b.Fatal(err)
	}
	dst, scratch, sealed := make([]byte, 0, 1<<20), make([]byte, 0, 1<<20), make([]byte, 0, 1<<20)
	cpu := cpuSeconds()
	for b.Loop() {
		for at := 0; at < len(disk); at += frameTarget {
			frame := disk[at : at+frameTarget]
			for c := 0; c < len(frame); c += testChunk {
				h.Chunk(frame[c : c+testChunk])
				h.Prints(frame[c:c+testChunk], prints)
			}
			coded, _, err := coder.Encode(dst, scratch, frame)
			if err != nil {
				b.Fatal(err)
			}
			sealed = box.Seal(sealed[:0], seal.Frame, uint64(at), 0, coded)
		}
	}
	report(b, cpu, benchBytes)
}

// The first space report over many days of one machine, whose chunks refer to blocks of older ones: nothing of what its
// leaves need is in the index yet.
func BenchmarkFirstSpace(b *testing.B) {
	r := benchRepo(b)
	rnd := rand.New(rand.NewPCG(1, 1))
	disk := make([]byte, 40*chunk.DefaultBytes)
	fill(rnd, disk)
	var parent *ImageRef
	for day := range 300 {
		p, err := crashBackup(b.Context(), r, disk, parent)
		if err != nil {
			b.Fatal(err)
		}
		parent = &p.Images[0].Ref
		fill(rnd, disk[day%40*chunk.DefaultBytes:][:chunk.BlockBytes])
	}
	for b.Loop() {
		b.StopTimer()
		if err := r.idx.SweepLeaves(func(index.Span) bool { return false }); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := r.Space(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
