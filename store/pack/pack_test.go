package pack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// memory is a pack in memory, as a Sink and a Source.
type memory struct{ p []byte }

func (m *memory) Write(p []byte) (int, error)  { m.p = append(m.p, p...); return len(p), nil }
func (m *memory) Commit(context.Context) error { return nil }
func (m *memory) Abort() error                 { return nil }

func (m *memory) ReadAt(_ context.Context, _ string, p []byte, off int64) error {
	if off < 0 || off > int64(len(m.p)) || copy(p, m.p[off:]) < len(p) {
		return errors.New("short")
	}
	return nil
}

var testHead = Header{Kind: Data, Repository: seal.ID{1}, ID: seal.ID{2}, KeyID: 1, Salt: seal.Salt{3}}

func secrets(uint32) ([32]byte, error) { return [32]byte{9}, nil }

func coder(t testing.TB, codec Codec) *Coder {
	t.Helper()
	c, err := NewCoder(map[Codec]Compression{Zstd: Standard, S2: Fast, None: Off}[codec])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// build writes a pack of two frames: one of a whole chunk, one of a chunk with one block, zeros and references.
func build(t testing.TB, codec Codec) (*memory, [][]byte) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	whole := bytes.Repeat([]byte("0123456789abcdef"), 16<<10/16)
	part := make([]byte, chunk.BlockBytes)
	for i := range part {
		part[i] = byte(rnd.Uint32())
	}
	m := &memory{}
	w, err := NewWriter(m, testHead, [32]byte{9}, 4, coder(t, codec), NewBufferPool(1<<16))
	if err != nil {
		t.Fatal(err)
	}
	prints := []chunk.Fingerprint{{1}, {2}, {3}, {4}}
	items := []Item{{Entry: Entry{Type: Chunk, ID: chunk.Hash{7}, Length: 16 << 10, Present: 15}, Prints: prints}}
	if _, err := w.AddFrame(whole, items); err != nil {
		t.Fatal(err)
	}
	refs := []Ref{{Target: chunk.Hash{7}, Block: 3}, {Target: chunk.Hash{6}, Block: 0}}
	items = []Item{{Entry: Entry{Type: Chunk, ID: chunk.Hash{8}, Length: 4096, Present: 2, Zeros: 4, Refs: refs}, Prints: prints}}
	if _, err := w.AddFrame(part, items); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(context.Background()); err != nil {
		t.Fatal(err)
	}
	return m, [][]byte{whole, part}
}

func readAll(m *memory, c *Coder) (d *Directory, frames [][]byte, err error) {
	ctx := context.Background()
	r, err := Open(ctx, m, testHead.Repository, testHead.ID, int64(len(m.p)), secrets)
	if err != nil {
		return nil, nil, err
	}
	for i := range r.Directory().Frames {
		p, err := r.Frame(ctx, uint32(i), c, &Buffers{})
		if err != nil {
			return nil, nil, err
		}
		frames = append(frames, p)
	}
	if _, err := r.Prints(ctx); err != nil {
		return nil, nil, err
	}
	return r.Directory(), frames, nil
}

func TestRoundTrip(t *testing.T) {
	for _, codec := range []Codec{None, Zstd, S2} {
		m, want := build(t, codec)
		d, frames, err := readAll(m, coder(t, None))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, frames); diff != "" {
			t.Errorf("codec %d: frames (-want +got):\n%s", codec, diff)
		}
		if got := []Codec{d.Frames[0].Codec, d.Frames[1].Codec}; got[0] != codec || got[1] != None {
			t.Errorf("codec %d: frames have %v; random data is not to be compressed", codec, got)
		}
		wantEntry := Entry{Type: Chunk, ID: chunk.Hash{8}, Frame: 1, Length: 4096, Present: 2, Zeros: 4, Refs: []Ref{
			{Target: chunk.Hash{7}, Block: 3}, {Target: chunk.Hash{6}, Block: 0},
		}}
		if diff := cmp.Diff(wantEntry, d.Entries[1]); diff != "" {
			t.Errorf("codec %d: entry (-want +got):\n%s", codec, diff)
		}
		if err := Scrub(t.Context(), m, "pack", int64(len(m.p))); err != nil {
			t.Errorf("codec %d: scrub: %v", codec, err)
		}
	}
}

func TestEveryFlipOfAPackIsDetected(t *testing.T) {
	m, _ := build(t, Zstd)
	c := coder(t, None)
	for at := range m.p {
		bad := &memory{bytes.Clone(m.p)}
		bad.p[at] ^= 1 << (at % 8)
		inHash := at >= len(m.p)-TrailerBytes+trailerHashAt && at < len(m.p)-TrailerBytes+trailerHashAt+32
		if _, _, err := readAll(bad, c); err == nil && !inHash {
			t.Fatalf("flip at %d of %d is not detected", at, len(m.p))
		}
		if err := Scrub(t.Context(), bad, "pack", int64(len(bad.p))); err == nil {
			t.Fatalf("scrub does not see the flip at %d of %d", at, len(m.p))
		}
	}
	t.Logf("%d flips", len(m.p))
}

func TestEveryCutOfAPackIsDetected(t *testing.T) {
	m, _ := build(t, Zstd)
	for n := range m.p {
		if _, _, err := readAll(&memory{m.p[:n]}, nil); err == nil {
			t.Fatalf("pack cut at %d of %d is not detected", n, len(m.p))
		}
	}
}

func TestNoNonceRepeats(t *testing.T) {
	// Many goroutines add frames; each frame's number, which is its nonce, must be its own.
	m := &memory{}
	w, err := NewWriter(m, testHead, [32]byte{9}, 4, coder(t, None), NewBufferPool(1<<10))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				items := []Item{{Entry: Entry{Type: Chunk, ID: chunk.Hash{byte(g), byte(i)}, Zeros: 15}}}
				if _, err := w.AddFrame([]byte{byte(g), byte(i)}, items); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	d, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]bool{}
	for _, e := range d.Entries {
		if seen[e.Frame] {
			t.Errorf("frame %d twice", e.Frame)
		}
		seen[e.Frame] = true
	}
	if len(seen) != 400 || len(d.Frames) != 400 {
		t.Errorf("%d frames of 400", len(seen))
	}
}

// boundaries are values that break sums and comparisons which are not careful.
var boundaries = []uint64{0, 1, 15, 16, 127, 128, 255, 256, 1<<15 - 1, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1 << 63, math.MaxUint64}

// seedBoundaries adds p with every 4- and 8-byte field set to each boundary value.
func seedBoundaries(f *testing.F, p []byte) {
	f.Add(p)
	for at := 0; at+4 <= len(p); at += 4 {
		for _, v := range boundaries {
			q := bytes.Clone(p)
			if at+8 <= len(q) && at%8 == 0 {
				binary.LittleEndian.PutUint64(q[at:], v)
			} else {
				binary.LittleEndian.PutUint32(q[at:], uint32(v))
			}
			f.Add(q)
		}
	}
}

func FuzzParseDirectory(f *testing.F) {
	m, _ := build(f, Zstd)
	r, err := Open(context.Background(), m, testHead.Repository, testHead.ID, int64(len(m.p)), secrets)
	if err != nil {
		f.Fatal(err)
	}
	d := r.Directory()
	seedBoundaries(f, appendDirectory(nil, d.Blocks, d.Frames, d.Entries))
	f.Fuzz(func(t *testing.T, p []byte) {
		d, err := parseDirectory(p, 1<<20)
		if err != nil {
			return
		}
		if again := appendDirectory(nil, d.Blocks, d.Frames, d.Entries); len(again) > len(p) {
			t.Errorf("%d bytes decode to what takes %d", len(p), len(again))
		}
		for _, e := range d.Entries {
			if uint64(e.Offset)+uint64(e.Length) > uint64(d.Frames[e.Frame].Plain) {
				t.Errorf("entry beyond its frame: %+v", e)
			}
		}
	})
}

func FuzzOpen(f *testing.F) {
	m, _ := build(f, Zstd)
	seedBoundaries(f, m.p[len(m.p)-TrailerBytes:])
	seedBoundaries(f, m.p[:HeaderBytes])
	c := coder(f, None)
	f.Fuzz(func(t *testing.T, p []byte) {
		bad := &memory{bytes.Clone(m.p)}
		if len(p) == HeaderBytes {
			copy(bad.p, p)
		} else {
			copy(bad.p[len(bad.p)-min(len(p), len(bad.p)):], p)
		}
		if bytes.Equal(bad.p[:len(bad.p)-TrailerBytes+trailerHashAt], m.p[:len(m.p)-TrailerBytes+trailerHashAt]) {
			return
		}
		if _, _, err := readAll(bad, c); err == nil {
			t.Error("a pack that was changed opens")
		}
	})
}

func FuzzDecode(f *testing.F) {
	c := coder(f, Zstd)
	coded, _, err := c.Encode(nil, nil, bytes.Repeat([]byte("abc"), 5000))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(coded, byte(Zstd), 15000)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f}, byte(S2), 15000)
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, byte(Zstd), MaxFrame)
	f.Fuzz(func(t *testing.T, p []byte, codec byte, n int) {
		if n < 0 || n > MaxFrame {
			return
		}
		if out, err := c.Decode(nil, p, Codec(codec), n); err == nil && len(out) != n {
			t.Errorf("%d bytes, not %d", len(out), n)
		}
	})
}
