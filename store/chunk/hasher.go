package chunk

import (
	"bytes"
	"fmt"
	"math/bits"
	"sync"

	"github.com/zeebo/blake3"
)

// Sizes. A chunk has at most MaxBlocks blocks, so that a bitmap of them fits into 64 bits.
const (
	BlockBytes    = 4 << 10
	DefaultBytes  = 64 << 10
	MinBytes      = 16 << 10
	MaxBytes      = 256 << 10
	MaxBlocks     = MaxBytes / BlockBytes
	contextPrefix = "cairn-backup 2026-11 "
)

// ValidSize reports whether n can be a repository's chunk size.
func ValidSize(n int) bool { return n >= MinBytes && n <= MaxBytes && bits.OnesCount(uint(n)) == 1 }

// Fingerprint is the first 16 bytes of a block's keyed hash: enough to find equal blocks by, the chunk's id proves
// them. That of a zero block is all zeros.
type Fingerprint [16]byte

var zeroChunk [MaxBytes]byte

// IsZero reports whether p, at most MaxBytes long, is all zeros.
func IsZero(p []byte) bool { return bytes.Equal(p, zeroChunk[:len(p)]) }

// Hasher computes the keyed hashes of one repository. It may be used from several goroutines.
type Hasher struct {
	zero Hash // hash of a zero block
	sets sync.Pool
}

// set is what one goroutine hashes with: keyed hashers are costly to make and cheap to reset.
type set struct {
	block, chunk, node, image, document, manifest *blake3.Hasher
	hashes                                        [MaxBlocks * 32]byte
}

// NewHasher derives the keys of all hashes from the repository's id key.
func NewHasher(idKey [32]byte) *Hasher {
	keyed := func(purpose string) *blake3.Hasher {
		var key [32]byte
		blake3.DeriveKey(contextPrefix+purpose, idKey[:], key[:])
		h, err := blake3.NewKeyed(key[:])
		if err != nil {
			panic(err) // only a key of another length can fail
		}
		return h
	}
	first := &set{
		block: keyed("block"), chunk: keyed("chunk"), node: keyed("node"), image: keyed("image"),
		document: keyed("document"), manifest: keyed("manifest"),
	}
	h := &Hasher{zero: sum(first.block, zeroChunk[:BlockBytes])}
	h.sets.New = func() any {
		return &set{
			block: first.block.Clone(), chunk: first.chunk.Clone(), node: first.node.Clone(), image: first.image.Clone(),
			document: first.document.Clone(), manifest: first.manifest.Clone(),
		}
	}
	return h
}

func sum(h *blake3.Hasher, p []byte) (out Hash) {
	h.Reset()
	_, _ = h.Write(p) // never fails
	h.Sum(out[:0])
	return out
}

// Chunk returns the id of a chunk and the bitmap of its zero blocks; prints, if not nil, gets a fingerprint for each
// block. The length of p must be a multiple of BlockBytes, at most MaxBytes.
func (h *Hasher) Chunk(p []byte, prints []Fingerprint) (id Hash, zeros uint64) {
	n := len(p) / BlockBytes
	if n*BlockBytes != len(p) || n > MaxBlocks {
		panic(fmt.Sprintf("chunk of %d bytes", len(p)))
	}
	s := h.sets.Get().(*set)
	defer h.sets.Put(s)
	for i := range n {
		b := p[i*BlockBytes : (i+1)*BlockBytes]
		out := s.hashes[i*32 : (i+1)*32]
		if bytes.Equal(b, zeroChunk[:BlockBytes]) {
			copy(out, h.zero[:])
			zeros |= 1 << i
			if prints != nil {
				prints[i] = Fingerprint{}
			}
			continue
		}
		s.block.Reset()
		_, _ = s.block.Write(b)
		s.block.Sum(out[:0])
		if prints != nil {
			copy(prints[i][:], out)
		}
	}
	return sum(s.chunk, s.hashes[:n*32]), zeros
}

// Node returns the id of an encoded tree node.
func (h *Hasher) Node(p []byte) Hash {
	return h.object(p, func(s *set) *blake3.Hasher { return s.node })
}

// Image returns the root of an encoded image head.
func (h *Hasher) Image(p []byte) Hash {
	return h.object(p, func(s *set) *blake3.Hasher { return s.image })
}

// Document returns the id of a document's piece.
func (h *Hasher) Document(p []byte) Hash {
	return h.object(p, func(s *set) *blake3.Hasher { return s.document })
}

// Manifest returns the hash by which a manifest names the one before it.
func (h *Hasher) Manifest(p []byte) Hash {
	return h.object(p, func(s *set) *blake3.Hasher { return s.manifest })
}

func (h *Hasher) object(p []byte, pick func(*set) *blake3.Hasher) Hash {
	s := h.sets.Get().(*set)
	defer h.sets.Put(s)
	return sum(pick(s), p)
}
