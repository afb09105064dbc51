package qcow2_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/datamover/qcow2"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestRefused(t *testing.T) {
	be := binary.BigEndian
	tests := []struct {
		name   string
		image  string
		change func(p []byte)
		kind   fault.Kind
		words  string
	}{
		{"another format", "v2", func(p []byte) { p[0] = 'K' }, fault.Invalid, "does not begin as"},
		{"version 4", "zstd", func(p []byte) { be.PutUint32(p[4:], 4) }, fault.Unsupported, "version 4"},
		{"encrypted", "zstd", func(p []byte) { be.PutUint32(p[32:], 2) }, fault.Unsupported, "encrypted"},
		{"external data", "zstd", func(p []byte) { p[79] |= 4 }, fault.Unsupported, "external file"},
		{"marked corrupt", "zstd", func(p []byte) { p[79] |= 2 }, fault.Corrupt, "marked the image"},
		{"unknown feature", "zstd", func(p []byte) { p[72] |= 0x80 }, fault.Unsupported, "bit 63"},
		{"unknown compression", "zstd", func(p []byte) { p[104] = 9 }, fault.Unsupported, "compression type 9"},
		{"compression without its feature", "zstd", func(p []byte) { p[79] = 0 }, fault.Corrupt, "compression type 1"},
		{"cluster too small", "v2", func(p []byte) { be.PutUint32(p[20:], 8) }, fault.Corrupt, "2^8"},
		{"cluster too large", "v2", func(p []byte) { be.PutUint32(p[20:], 22) }, fault.Corrupt, "2^22"},
		{"huge disk", "v2", func(p []byte) { be.PutUint64(p[24:], 1<<63) }, fault.Corrupt, "virtual size"},
		{"short L1 table", "v2", func(p []byte) { be.PutUint32(p[36:], 0) }, fault.Corrupt, "L1 table of 0"},
		{"L1 table beyond the end", "v2", func(p []byte) { be.PutUint64(p[40:], 1<<40) }, fault.Corrupt, "L1 table"},
		{"L1 table between clusters", "v2", func(p []byte) { p[47] = 8 }, fault.Corrupt, "L1 table at"},
		{"backing name too long", "overlay", func(p []byte) { be.PutUint32(p[16:], 1<<20) }, fault.Corrupt, "name of the backing"},
		{"header length", "zstd", func(p []byte) { be.PutUint32(p[100:], 1<<30) }, fault.Corrupt, "header of"},
		{"backing file unknown", "overlay", func([]byte) {}, fault.Invalid, `"base"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := sample(t, tt.image)
			tt.change(p)
			_, err := qcow2.Open(memory(p), qcow2.Options{})
			if err == nil || fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("error %v of kind %v, want %v and %q", err, fault.KindOf(err), tt.kind, tt.words)
			}
		})
	}
}

// TestDamagedMapping damages what only a read meets.
func TestDamagedMapping(t *testing.T) {
	be := binary.BigEndian
	l1 := func(p []byte) []byte { return p[be.Uint64(p[40:]):] }
	l2 := func(p []byte) []byte { return p[be.Uint64(l1(p))&0x00fffffffffffe00:] }
	tests := []struct {
		name   string
		image  string
		change func(p []byte)
	}{
		{"L1 entry between clusters", "extended", func(p []byte) { l1(p)[6] |= 2 }},
		{"L1 entry beyond the end", "v2", func(p []byte) { be.PutUint64(l1(p), 1<<40) }},
		{"data beyond the end", "v2", func(p []byte) { be.PutUint64(l2(p), 1<<40) }},
		{"data between clusters", "extended", func(p []byte) { l2(p)[6] |= 2 }},
		{"zero cluster in version 2", "v2", func(p []byte) { l2(p)[7] |= 1 }},
		{"compressed beyond the end", "v2", func(p []byte) { be.PutUint64(l2(p), 1<<62|1<<40) }},
		{"compressed rubbish", "v2", func(p []byte) { be.PutUint64(l2(p), 1<<62|512) }},
		{"zstd rubbish", "zstd", func(p []byte) { be.PutUint64(l2(p), 1<<62|512) }},
		{"sub-cluster allocated and zero", "extended", func(p []byte) { be.PutUint64(l2(p)[8:], 1<<63|1<<31) }},
		{"sub-clusters of nothing", "extended", func(p []byte) { be.PutUint64(l2(p), 0) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := sample(t, tt.image)
			tt.change(p)
			img, err := qcow2.Open(memory(p), qcow2.Options{})
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 16<<10)
			if _, err = img.ReadAt(buf, 0); fault.KindOf(err) != fault.Corrupt {
				t.Errorf("error %v, want one of kind corrupt", err)
			}
		})
	}
}

// TestBackingIsAsked makes sure that nothing is opened by an image's own words.
func TestBackingIsAsked(t *testing.T) {
	asked := ""
	_, err := qcow2.Open(memory(sample(t, "overlay")), qcow2.Options{Backing: func(depth int, name, format string) (qcow2.Layer, error) {
		asked = fmt.Sprint(depth, " ", name, " ", format)
		return qcow2.Layer{File: memory(sample(t, "v2"))}, nil
	}})
	if fault.KindOf(err) != fault.Conflict || asked != "0 base raw" {
		t.Errorf("asked for %q; a qcow2 image where the header says raw: %v", asked, err)
	}
	refusal := errors.New("not in the task")
	if _, err := qcow2.Open(memory(sample(t, "overlay")), qcow2.Options{Backing: func(int, string, string) (qcow2.Layer, error) {
		return qcow2.Layer{}, refusal
	}}); !errors.Is(err, refusal) {
		t.Errorf("error %v, want the resolver's", err)
	}
}

// TestChainThatNeverEnds gives an image that names itself.
func TestChainThatNeverEnds(t *testing.T) {
	p := sample(t, "overlay")
	for at := 104; at < 400; at++ { // the extension that says "raw"
		if binary.BigEndian.Uint32(p[at:]) == 0xE2792ACA {
			copy(p[at:], []byte{0xff, 0xff, 0xff, 0xff})
			break
		}
	}
	_, err := qcow2.Open(memory(p), qcow2.Options{Backing: func(int, string, string) (qcow2.Layer, error) {
		return qcow2.Layer{File: memory(p)}, nil
	}})
	if err == nil || !strings.Contains(err.Error(), "more than 256 layers") {
		t.Errorf("error %v", err)
	}
}

func TestUnchangedSeesAChange(t *testing.T) {
	p := memory(sample(t, "zstd"))
	img, err := qcow2.Open(p, qcow2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p[binary.BigEndian.Uint64(p[40:])+3]++
	if err := img.Unchanged(); fault.KindOf(err) != fault.Conflict {
		t.Errorf("after a change of the L1 table: %v", err)
	}
}

// ranges returns what a bitmap marks.
func ranges(ctx context.Context, t *testing.T, img *qcow2.Image, name string) (out []qcow2.Range) {
	t.Helper()
	list, err := img.Bitmaps()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range list {
		if b.Name != name {
			continue
		}
		for r, err := range img.DirtyRanges(ctx, b) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
		return out
	}
	t.Fatalf("no bitmap %q in %+v", name, list)
	return nil
}

func TestBitmapOfSample(t *testing.T) {
	img, err := qcow2.Open(memory(sample(t, "bitmap")), qcow2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []qcow2.Range{{Offset: 1024, Length: 2048}, {Offset: 20480, Length: 512}}
	if diff := cmp.Diff(want, ranges(t.Context(), t, img, "b0")); diff != "" {
		t.Errorf("b0 (-want +got):\n%s", diff)
	}
	if got := ranges(t.Context(), t, img, "b1"); got != nil {
		t.Errorf("b1, of which nothing was written: %v", got)
	}
}

// TestBitmapAgainstQEMU writes at random places and asks QEMU what its bitmap holds.
func TestBitmapAgainstQEMU(t *testing.T) {
	requireQEMU(t)
	for seed := range uint64(6) {
		m := newMaker(t, seed)
		name := filepath.Join(m.dir, "image")
		bits := 9 + m.rnd.IntN(8)
		size := int64(1+m.rnd.IntN(64<<20/512)) * 512
		m.do("qemu-img", "create", "-q", "-f", "qcow2", "-o", fmt.Sprintf("cluster_size=%d", 1<<bits), name, fmt.Sprint(size))
		m.do("qemu-img", "bitmap", "--add", "-g", fmt.Sprint(512<<m.rnd.IntN(9)), name, "b")
		m.write(layer{path: name}, size, bits, false, true)
		img, err := qcow2.Open(openFile(t, name), qcow2.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(dirtyByQEMU(t, name), ranges(t.Context(), t, img, "b")); diff != "" {
			t.Errorf("seed %d (-want +got):\n%s", seed, diff)
		}
	}
}

// TestBitmapInUse leaves a bitmap as a process that was killed does.
func TestBitmapInUse(t *testing.T) {
	p := sample(t, "bitmap")
	at := windows(p)[len(windows(p))-1][0]
	p[at+15] |= 1
	img, err := qcow2.Open(memory(p), qcow2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := img.Bitmaps()
	if err != nil || len(list) != 2 || !list[0].InUse {
		t.Fatalf("bitmaps %+v, %v", list, err)
	}
	for _, err := range img.DirtyRanges(t.Context(), list[0]) {
		if fault.KindOf(err) != fault.Conflict {
			t.Errorf("a bitmap in use: %v", err)
		}
	}
	p[95] &^= 1 // a program that knows no bitmaps has written
	if img, err = qcow2.Open(memory(p), qcow2.Options{}); err != nil {
		t.Fatal(err)
	}
	if list, err = img.Bitmaps(); err != nil || list != nil {
		t.Errorf("bitmaps that are out of date: %+v, %v", list, err)
	}
}
