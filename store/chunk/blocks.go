package chunk

import (
	"bytes"
	"fmt"
)

// Blocks puts the hash of each block of p into out, which has one place for each. Join makes a chunk's id of them, so
// that a chunk whose blocks lie apart can be proven without being put together.
func (h *Hasher) Blocks(p []byte, out []Hash) {
	if len(p) != len(out)*BlockBytes {
		panic(fmt.Sprintf("%d bytes for %d blocks", len(p), len(out)))
	}
	s := h.sets.Get().(*set)
	defer h.sets.Put(s)
	for i := range out {
		b := p[i*BlockBytes : (i+1)*BlockBytes]
		if bytes.Equal(b, zeroChunk[:BlockBytes]) {
			out[i] = h.zero
			continue
		}
		out[i] = sum(s.block, b)
	}
}

// ZeroBlock returns the hash of a block of zeros.
func (h *Hasher) ZeroBlock() Hash { return h.zero }

// Join returns the id of the chunk with these block hashes.
func (h *Hasher) Join(blocks []Hash) Hash {
	s := h.sets.Get().(*set)
	defer h.sets.Put(s)
	if len(blocks) > MaxBlocks {
		panic(fmt.Sprintf("chunk of %d blocks", len(blocks)))
	}
	for i := range blocks {
		copy(s.hashes[i*32:], blocks[i][:])
	}
	return sum(s.chunk, s.hashes[:len(blocks)*32])
}
