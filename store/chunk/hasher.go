package chunk

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
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

// Fingerprint is a keyed universal hash of a block, encrypted: enough to find equal blocks by, the chunk's id proves
// them. That of a zero block, and of no other, is all zeros.
type Fingerprint [16]byte

var zeroChunk [MaxBytes]byte

// IsZero reports whether p, at most MaxBytes long, is all zeros.
func IsZero(p []byte) bool { return bytes.Equal(p, zeroChunk[:len(p)]) }

// Hasher computes the keyed hashes of one repository. It may be used from several goroutines.
type Hasher struct {
	sets  sync.Pool
	gmac  cipher.AEAD // with a nonce that never changes: a universal hash, not to be shown before it is masked
	mask  cipher.Block
	nonce [12]byte
}

// set is what one goroutine hashes with: keyed hashers are costly to make and cheap to reset.
type set struct{ chunk, node, image, document, manifest *blake3.Hasher }

// NewHasher derives the keys of all hashes from the repository's id key.
func NewHasher(idKey [32]byte) *Hasher {
	derive := func(purpose string) []byte {
		key := make([]byte, 32)
		blake3.DeriveKey(contextPrefix+purpose, idKey[:], key)
		return key
	}
	keyed := func(purpose string) *blake3.Hasher { return must(blake3.NewKeyed(derive(purpose))) }
	first := &set{
		chunk: keyed("chunk"), node: keyed("node"), image: keyed("image"), document: keyed("document"), manifest: keyed("manifest"),
	}
	h := &Hasher{
		gmac: must(cipher.NewGCM(must(aes.NewCipher(derive("fingerprint"))))),
		mask: must(aes.NewCipher(derive("fingerprint mask"))),
	}
	h.sets.New = func() any {
		return &set{
			chunk: first.chunk.Clone(), node: first.node.Clone(), image: first.image.Clone(),
			document: first.document.Clone(), manifest: first.manifest.Clone(),
		}
	}
	return h
}

// must is for what fails only with a key of another length.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func sum(h *blake3.Hasher, p []byte) (out Hash) {
	h.Reset()
	_, _ = h.Write(p) // never fails
	h.Sum(out[:0])
	return out
}

// blocks returns how many blocks p has, which must be a chunk: a multiple of BlockBytes, at most MaxBytes.
func blocks(p []byte) int {
	n := len(p) / BlockBytes
	if n*BlockBytes != len(p) || n > MaxBlocks {
		panic(fmt.Sprintf("chunk of %d bytes", len(p)))
	}
	return n
}

// Chunk returns the id of a chunk. The length of p must be a multiple of BlockBytes, at most MaxBytes.
func (h *Hasher) Chunk(p []byte) Hash {
	blocks(p)
	return h.object(p, func(s *set) *blake3.Hasher { return s.chunk })
}

// Prints puts the fingerprint of each block of p into dst, which has a place for each, and returns the bitmap of zero
// blocks. The length of p must be a multiple of BlockBytes, at most MaxBytes.
func (h *Hasher) Prints(p []byte, dst []Fingerprint) (zeros uint64) {
	n := blocks(p)
	dst = dst[:n]
	for i := range n {
		b := p[i*BlockBytes : (i+1)*BlockBytes]
		if bytes.Equal(b, zeroChunk[:BlockBytes]) {
			zeros |= 1 << i
			dst[i] = Fingerprint{}
			continue
		}
		out := dst[i][:]
		h.gmac.Seal(out[:0], h.nonce[:], nil, b)
		h.mask.Encrypt(out, out)
		if dst[i] == (Fingerprint{}) {
			dst[i][len(out)-1] = 1
		}
	}
	return zeros
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
