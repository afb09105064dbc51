package erasure

import (
	"bytes"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/cairn-backup/cairn/internal/boundary"
)

func shardOfFuzz() shardHeader {
	return shardHeader{K: 4, N: 6, Shard: 5, Group: 1, Chunk: chunkBytes, Unit: unitBytes, Created: "packs/13/13caa8be0faf9c1f414f9e04748897a7.pack"}
}

// FuzzShardHeader gives each changed header its right hash: anybody can compute that.
func FuzzShardHeader(f *testing.F) {
	base := shardOfFuzz().encode()
	boundary.Add(f, base, boundary.Binary(base[:len(base)-hashBytes]))
	f.Fuzz(func(t *testing.T, p []byte) {
		boundary.Bounded(t, len(p), 16, func() {
			_, _ = decodeHeader(p)
			if len(p) < headerBytes-hashBytes {
				return
			}
			sum := blake3.Sum256(p[:headerBytes-hashBytes])
			p = append(bytes.Clone(p[:headerBytes-hashBytes]), sum[:]...)
			if h, err := decodeHeader(p); err == nil && !bytes.Equal(h.encode(), p) {
				t.Error("a header has two encodings")
			}
		})
	})
}

func FuzzNames(f *testing.F) {
	good := part{name: "packs/13/13caa8be0faf9c1f414f9e04748897a7.pack", write: "01m80535qydthwh8bpddmzv1dh", size: 1 << 25, k: 4, shard: 5, moves: 1}
	f.Add(good.path())
	f.Add(good.pending())
	for p := range boundary.Text([]byte(good.path())) {
		f.Add(string(p))
	}
	for p := range boundary.Text([]byte(good.pending())) {
		f.Add(string(p))
	}
	f.Fuzz(func(t *testing.T, file string) {
		if p, ok := parsePart(file); ok && p.path() != file {
			t.Errorf("%q is read as %q", file, p.path())
		}
		if write, shard, ok := parsePending(file); ok {
			if (part{write: write, shard: shard}).pending() != file {
				t.Errorf("%q is read as %s, %d", file, write, shard)
			}
		}
		_, _, _ = parseMoved(file)
	})
}
