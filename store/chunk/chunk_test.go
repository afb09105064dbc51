package chunk

import (
	"crypto/aes"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/zeebo/blake3"
)

func TestChunkIsAFunctionOfKeyAndContent(t *testing.T) {
	h, other := NewHasher([32]byte{1}), NewHasher([32]byte{2})
	p := make([]byte, DefaultBytes)
	p[5*BlockBytes] = 1
	prints := make([]Fingerprint, 16)
	id, zeros := h.Chunk(p), h.Prints(p, prints)
	if zeros != 0xffff&^(1<<5) {
		t.Errorf("zeros = %x", zeros)
	}
	for i, f := range prints {
		if (f == Fingerprint{}) != (i != 5) {
			t.Errorf("fingerprint %d = %x", i, f)
		}
	}
	if h.Chunk(p) != id {
		t.Error("the same chunk has two ids")
	}
	if other.Chunk(p) == id {
		t.Error("two keys give one id")
	}
	foreign := make([]Fingerprint, 16)
	if other.Prints(p, foreign); foreign[5] == prints[5] {
		t.Error("two keys give one fingerprint")
	}
	if h.Node(p) == h.Image(p) || h.Node(p) == id || h.Node(p) == h.Document(p) || h.Document(p) == h.Manifest(p) {
		t.Error("two purposes give one hash")
	}
	p[0], p[5*BlockBytes] = 1, 0
	if h.Chunk(p) == id {
		t.Error("a block elsewhere gives the same id")
	}
	moved := make([]Fingerprint, 16)
	if h.Prints(p, moved); moved[0] != prints[5] {
		t.Error("a block elsewhere gives another fingerprint")
	}
}

func TestHasherInManyGoroutines(t *testing.T) {
	h := NewHasher([32]byte{1})
	p := make([]byte, MinBytes)
	p[1] = 1
	want := h.Chunk(p)
	prints := make([]Fingerprint, 4)
	h.Prints(p, prints)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if h.Chunk(p) != want {
					t.Error("another id in another goroutine")
				}
				got := make([]Fingerprint, 4)
				if h.Prints(p, got); got[0] != prints[0] {
					t.Error("another fingerprint in another goroutine")
				}
			}
		})
	}
	wg.Wait()
}

func TestHashText(t *testing.T) {
	want := Hash{1, 2, 0xff}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Hash
	if err := json.Unmarshal(text, &got); err != nil || got != want {
		t.Errorf("%s reads as %v, %v", text, got, err)
	}
	for _, bad := range []string{`""`, `"00"`, `"zz"`, `"` + want.String() + `0"`} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s is read as a hash", bad)
		}
	}
}

func TestValidSize(t *testing.T) {
	for n, want := range map[int]bool{0: false, -65536: false, 8 << 10: false, 16 << 10: true, 48 << 10: false, 256 << 10: true, 512 << 10: false} {
		if got := ValidSize(n); got != want {
			t.Errorf("ValidSize(%d) = %v", n, got)
		}
	}
}

// times multiplies in the field of GHASH, bit by bit, as NIST SP 800-38D (6.3) has it.
func times(x, y [16]byte) (z [16]byte) {
	v := y
	for i := range 128 {
		if x[i/8]>>(7-i%8)&1 == 1 {
			for j := range z {
				z[j] ^= v[j]
			}
		}
		odd := v[15] & 1
		hi, lo := binary.BigEndian.Uint64(v[:]), binary.BigEndian.Uint64(v[8:])
		binary.BigEndian.PutUint64(v[:], hi>>1)
		binary.BigEndian.PutUint64(v[8:], lo>>1|hi<<63)
		v[0] ^= 0xe1 * odd
	}
	return z
}

// TestFingerprintIsWhatTheFormatSays computes it from GHASH and AES alone.
func TestFingerprintIsWhatTheFormatSays(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 2026))
	idKey := [32]byte{3, 1, 4}
	encrypt := func(purpose string, in [16]byte) (out [16]byte) {
		var key [32]byte
		blake3.DeriveKey("cairn-backup 2026-11 "+purpose, idKey[:], key[:])
		block, err := aes.NewCipher(key[:])
		if err != nil {
			t.Fatal(err)
		}
		block.Encrypt(out[:], in[:])
		return out
	}
	p := make([]byte, MaxBytes)
	for i := range p {
		if i/BlockBytes%4 != 3 {
			p[i] = byte(rnd.Uint32())
		}
	}
	got := make([]Fingerprint, MaxBlocks)
	zeros := NewHasher(idKey).Prints(p, got)
	if zeros != 0x8888888888888888 {
		t.Errorf("zeros = %x", zeros)
	}
	factor := encrypt("fingerprint", [16]byte{})
	for _, i := range []int{0, 1, 3, 62} {
		var want [16]byte
		if i%4 != 3 {
			b := p[i*BlockBytes : (i+1)*BlockBytes]
			length := [16]byte{6: BlockBytes * 8 >> 8} // in bits, of the additional data; then of no text
			for _, part := range append(parts(b), length) {
				for j := range want {
					want[j] ^= part[j]
				}
				want = times(want, factor)
			}
			first := encrypt("fingerprint", [16]byte{15: 1})
			for j := range want {
				want[j] ^= first[j]
			}
			want = encrypt("fingerprint mask", want)
		}
		if got[i] != want {
			t.Errorf("block %d: fingerprint %x, want %x", i, got[i], want)
		}
	}
}

func parts(p []byte) (out [][16]byte) {
	for ; len(p) > 0; p = p[16:] {
		out = append(out, [16]byte(p))
	}
	return out
}

func TestHashingAllocatesNothing(t *testing.T) {
	h := NewHasher([32]byte{1})
	p, prints := make([]byte, DefaultBytes), make([]Fingerprint, DefaultBytes/BlockBytes)
	p[0], p[BlockBytes] = 1, 2
	h.Chunk(p)
	if n := testing.AllocsPerRun(100, func() { h.Prints(p, prints) }); n != 0 {
		t.Errorf("%v allocations for the fingerprints of a chunk", n)
	}
}
