package tree

import (
	"encoding/binary"
	"testing"
)

func TestHeight(t *testing.T) {
	const c = 64 << 10
	tests := []struct {
		size int64
		want uint8
	}{
		{0, 0}, {1, 1}, {c, 1}, {256 * c, 1}, {256*c + 1, 2}, {65536 * c, 2}, {65536*c + 1, 3}, {256 * 65536 * c, 3}, {1 << 62, 6},
	}
	for _, tt := range tests {
		if got := Height(tt.size, c); got != tt.want {
			t.Errorf("Height(%d) = %d, want %d", tt.size, got, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	n := &Node{Level: 1}
	n.Children[0][0], n.Children[255][3] = 1, 2
	p := n.Append(nil)
	f.Add(p, uint8(1))
	for at := range 64 {
		for _, v := range []byte{0, 1, 0x7f, 0x80, 0xff} {
			q := append([]byte(nil), p...)
			q[at] = v
			f.Add(q, uint8(1))
		}
	}
	f.Fuzz(func(t *testing.T, p []byte, level uint8) {
		n, err := Parse(p, level)
		if err == nil && string(n.Append(nil)) != string(p) {
			t.Error("one node has two encodings")
		}
	})
}

func FuzzParseHead(f *testing.F) {
	p := Head{Size: 1 << 30, ChunkBytes: 64 << 10, Height: 2}.Append(nil)
	f.Add(p)
	for at := 0; at+8 <= len(p); at += 4 {
		for _, v := range []uint64{0, 1, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
			q := append([]byte(nil), p...)
			binary.LittleEndian.PutUint64(q[at:], v)
			f.Add(q)
		}
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := ParseHead(p)
		if err == nil && string(h.Append(nil)) != string(p) {
			t.Error("one head has two encodings")
		}
	})
}
