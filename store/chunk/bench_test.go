package chunk

import (
	"math/rand/v2"
	"testing"

	"github.com/zeebo/blake3"
)

// BenchmarkHash hashes chunks of 64 KiB: as an id, as fingerprints, and, to compare with, as BLAKE3 of each block and
// of these hashes.
func BenchmarkHash(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4<<20)
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	h := NewHasher([32]byte{1})
	prints := make([]Fingerprint, DefaultBytes/BlockBytes)
	keyed := must(blake3.NewKeyed(make([]byte, 32)))
	sums := make([]byte, DefaultBytes/BlockBytes*32)
	for name, hash := range map[string]func(c []byte){
		"id":           func(c []byte) { h.Chunk(c) },
		"fingerprints": func(c []byte) { h.Prints(c, prints) },
		"both":         func(c []byte) { h.Chunk(c); h.Prints(c, prints) },
		"blocks-by-blake3": func(c []byte) {
			for i := range len(c) / BlockBytes {
				keyed.Reset()
				_, _ = keyed.Write(c[i*BlockBytes : (i+1)*BlockBytes])
				keyed.Sum(sums[i*32 : i*32])
			}
			keyed.Reset()
			_, _ = keyed.Write(sums)
			keyed.Sum(sums[:0])
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(DefaultBytes)
			b.ReportAllocs()
			at := 0
			for b.Loop() {
				hash(p[at : at+DefaultBytes])
				at = (at + DefaultBytes) % len(p)
			}
		})
	}
}
