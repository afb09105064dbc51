package qcow2_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/datamover/qcow2"
	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

// memory is an image in memory.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

// sample reads an image of testdata; all were made by qemu-img 7.2.
func sample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".qcow2.gz"))
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var samples = []string{"v2", "zstd", "extended", "bitmap", "overlay"}

// windows are the places of an image whose fields matter: header, L1 table, an L2 table, the directory of bitmaps.
func windows(p []byte) [][2]int {
	be := binary.BigEndian
	l1 := int(be.Uint64(p[40:]))
	out := [][2]int{{0, 200}, {l1, 32}}
	if l2 := int(be.Uint64(p[l1:]) & 0x00fffffffffffe00); l2 != 0 {
		out = append(out, [2]int{l2, 64})
	}
	if i := bytes.Index(p[:512], []byte{0x23, 0x85, 0x28, 0x75}); i > 0 {
		out = append(out, [2]int{int(be.Uint64(p[i+24:])), 48})
	}
	return out
}

// probe uses all of an image that can be used, within limits.
func probe(t *testing.T, p []byte) {
	base := memory(bytes.Repeat([]byte{0xaa}, 8<<10))
	img, err := qcow2.Open(memory(p), qcow2.Options{
		Backing:    func(int, string, string) (qcow2.Layer, error) { return qcow2.Layer{File: base, Raw: true}, nil },
		CacheBytes: 64 << 10,
	})
	if err != nil {
		if fault.KindOf(err) == fault.Internal {
			t.Errorf("an error of no kind: %v", err)
		}
		return
	}
	at, buf := int64(0), make([]byte, 3000)
	n := 0
	for e, err := range img.Extents(t.Context(), 0, min(img.Size(), 8<<20)) {
		if err != nil {
			break
		}
		if e.Offset != at || e.Length <= 0 || e.Length > img.Size()-at {
			t.Fatalf("extent %+v after %d of %d", e, at, img.Size())
		}
		at += e.Length
		_, _ = img.ReadAt(buf, e.Offset)
		if n++; n > 100 {
			break
		}
	}
	_, _ = img.ReadAt(buf, max(0, img.Size()-700))
	list, _ := img.Bitmaps()
	for _, b := range list[:min(4, len(list))] {
		n := 0
		for r, err := range img.DirtyRanges(t.Context(), b) {
			if n++; err != nil || n > 100 {
				break
			}
			if r.Offset < 0 || r.Length <= 0 || r.Length > img.Size()-r.Offset {
				t.Fatalf("range %+v of %d", r, img.Size())
			}
		}
	}
	_ = img.Unchanged()
}

// FuzzTables patches a sample: that way a seed is as small as the field it changes.
func FuzzTables(f *testing.F) {
	var all [][]byte
	for i, name := range samples {
		all = append(all, sample(f, name))
		for _, w := range windows(all[i]) {
			for p := range boundary.Binary(all[i][w[0]:min(len(all[i]), w[0]+w[1])]) {
				f.Add(byte(i), uint32(w[0]), p)
			}
		}
	}
	f.Fuzz(func(t *testing.T, which byte, at uint32, patch []byte) {
		p := bytes.Clone(all[int(which)%len(all)])
		copy(p[int(at)%len(p):], patch)
		probe(t, p)
	})
}

// FuzzImage takes whole images.
func FuzzImage(f *testing.F) {
	for _, name := range samples {
		if p := sample(f, name); len(p) < 16<<10 {
			f.Add(p)
		}
	}
	f.Fuzz(func(t *testing.T, p []byte) { probe(t, p) })
}

// TestOpenAllocatesWithinItsInput opens images whose numbers promise more than there is.
func TestOpenAllocatesWithinItsInput(t *testing.T) {
	n := 0
	for _, name := range samples {
		base := sample(t, name)
		for p := range boundary.Binary(base[:120]) {
			p = append(p, base[120:]...)
			boundary.Bounded(t, len(p), 8, func() {
				img, err := qcow2.Open(memory(p), qcow2.Options{Backing: func(int, string, string) (qcow2.Layer, error) {
					return qcow2.Layer{File: memory{}, Raw: true}, nil
				}})
				if err == nil {
					_, _ = img.Bitmaps()
				}
			})
			n++
		}
	}
	t.Logf("%d headers", n)
}
