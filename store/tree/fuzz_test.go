package tree

import (
	"bytes"
	"testing"

	"github.com/cairn-backup/cairn/internal/boundary"
)

func FuzzNodeBoundaries(f *testing.F) {
	n := &Node{Level: 1}
	n.Children[0][3], n.Children[9][0], n.Children[255][31] = 1, 2, 3
	base := n.Append(nil)
	boundary.Add(f, base, boundary.Binary(base))
	f.Fuzz(func(t *testing.T, p []byte) {
		boundary.Bounded(t, len(p), 8, func() {
			if n, err := Parse(p, 1); err == nil && !bytes.Equal(n.Append(nil), p) {
				t.Error("a node has two encodings")
			}
		})
	})
}

func FuzzHeadBoundaries(f *testing.F) {
	h := Head{Size: 655360, ChunkBytes: 65536, Height: 1}
	h.Top[0] = 1
	base := h.Append(nil)
	boundary.Add(f, base, boundary.Binary(base))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := ParseHead(p)
		if err != nil {
			return
		}
		if !bytes.Equal(h.Append(nil), p) {
			t.Error("an image head has two encodings")
		}
		if n := Chunks(h.Size, int(h.ChunkBytes)); n < 0 || h.Height > 0 && n > Span(h.Height) {
			t.Errorf("%d chunks under %d levels", n, h.Height)
		}
	})
}
