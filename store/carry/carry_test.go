package carry

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
)

// blocksOnly asks for the first blocks of each chunk, and calls nested before it answers about the second chunk of a Write.
type blocksOnly struct {
	present uint64
	looks   int
	nested  func() error
}

func (d *blocksOnly) Look(_ context.Context, chunks []Chunk) error {
	for i := range chunks {
		chunks[i].Store = true
	}
	if d.looks++; d.looks == 2 && d.nested != nil {
		return d.nested()
	}
	return nil
}

func (d *blocksOnly) Place(_ context.Context, placings []Placing) error {
	for i := range placings {
		placings[i].Present = d.present
	}
	return nil
}

// TestFlushPutsSmallFramesTogether has as many Writes under way at once as there are sizes, and so as many frames.
func TestFlushPutsSmallFramesTogether(t *testing.T) {
	const size = 64 << 10
	for _, tc := range []struct {
		name   string
		frame  int
		blocks []int // of each Write's two chunks
		want   []int // blocks in each frame
	}{
		{"one", 16, []int{3}, []int{6}},
		{"all fit into one", 16, []int{1, 3, 2}, []int{12}},
		{"two", 16, []int{5, 1, 5}, []int{12, 10}},
		{"full ones stay", 16, []int{8, 8, 1}, []int{16, 16, 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hasher := chunk.NewContent(chunk.NewKeys([32]byte{1}))
			rnd := rand.New(rand.NewPCG(1, 1))
			stored := map[chunk.Hash][]byte{}
			var frames []int
			w := New(Options{Hasher: hasher, ChunkBytes: size, FrameBytes: tc.frame * chunk.BlockBytes, Group: 1,
				Store: func(_ context.Context, plain []byte, items []pack.Item) error {
					frames = append(frames, len(plain)/chunk.BlockBytes)
					for _, it := range items {
						stored[it.ID] = bytes.Clone(plain[it.Offset : it.Offset+it.Length])
					}
					return nil
				}})
			disk := make([]byte, 2*size*len(tc.blocks))
			for i := range disk {
				disk[i] = byte(rnd.Uint32())
			}
			var write func(n int) error
			write = func(n int) error {
				d := &blocksOnly{present: 1<<tc.blocks[n] - 1}
				if n+1 < len(tc.blocks) {
					d.nested = func() error { return write(n + 1) }
				}
				return w.Write(t.Context(), d, int64(2*n), disk[2*n*size:2*(n+1)*size])
			}
			if err := write(0); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			total := 0
			for _, n := range frames {
				total += n
			}
			wantTotal := 0
			for _, n := range tc.want {
				wantTotal += n
			}
			if len(frames) != len(tc.want) || total != wantTotal {
				t.Errorf("frames of %v blocks, want %v in any order", frames, tc.want)
			}
			for n := range 2 * len(tc.blocks) {
				p := disk[n*size : (n+1)*size]
				if want := p[:tc.blocks[n/2]*chunk.BlockBytes]; !bytes.Equal(stored[hasher.Chunk(p)], want) {
					t.Errorf("chunk %d is stored as other bytes", n)
				}
			}
		})
	}
}
