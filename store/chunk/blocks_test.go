package chunk

import (
	"math/rand/v2"
	"testing"
)

func TestBlocksJoinToTheChunk(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 2026))
	h := NewHasher([32]byte{7})
	for _, n := range []int{MinBytes, DefaultBytes, MaxBytes} {
		p := make([]byte, n)
		for i := range p {
			if i/BlockBytes%3 != 1 {
				p[i] = byte(rnd.Uint32())
			}
		}
		blocks := make([]Hash, n/BlockBytes)
		h.Blocks(p, blocks)
		if want, _ := h.Chunk(p, nil); h.Join(blocks) != want {
			t.Errorf("%d bytes: the blocks' hashes do not give the chunk's id", n)
		}
		if blocks[1] != h.ZeroBlock() || blocks[0] == h.ZeroBlock() {
			t.Errorf("%d bytes: zero block is not told apart", n)
		}
		blocks[0], blocks[2] = blocks[2], blocks[0]
		if want, _ := h.Chunk(p, nil); h.Join(blocks) == want {
			t.Error("the order of blocks does not matter")
		}
	}
}
