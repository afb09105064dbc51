package chunk

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"io"
	"log/slog"
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

// Keys are what the content of disks is hashed with. Who has them can test whether the repository has a content that he
// has himself; they open nothing.
type Keys struct{ Chunk, Fingerprint, Mask [32]byte }

// Format keeps the keys out of messages, whatever the verb.
func (k Keys) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "hash keys [redacted]") }

// LogValue keeps the keys out of logs.
func (k Keys) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// NewKeys derives the keys from the repository's id key.
func NewKeys(idKey [32]byte) (k Keys) {
	derive(idKey, "chunk", k.Chunk[:])
	derive(idKey, "fingerprint", k.Fingerprint[:])
	derive(idKey, "fingerprint mask", k.Mask[:])
	return k
}

func derive(idKey [32]byte, purpose string, key []byte) {
	blake3.DeriveKey(contextPrefix+purpose, idKey[:], key)
}

// Content computes the hashes of disks' content. It may be used from several goroutines.
type Content struct {
	chunks sync.Pool   // of *blake3.Hasher: keyed hashers are costly to make and cheap to reset
	gmac   cipher.AEAD // with a nonce that never changes: a universal hash, not to be shown before it is masked
	mask   cipher.Block
	nonce  [12]byte
}

// NewContent makes what hashes with these keys.
func NewContent(k Keys) *Content {
	first := must(blake3.NewKeyed(k.Chunk[:]))
	return &Content{
		chunks: sync.Pool{New: func() any { return first.Clone() }},
		gmac:   must(cipher.NewGCM(must(aes.NewCipher(k.Fingerprint[:])))),
		mask:   must(aes.NewCipher(k.Mask[:])),
	}
}

// Hasher computes all keyed hashes of one repository. It may be used from several goroutines.
type Hasher struct {
	*Content
	sets sync.Pool
}

// set is what one goroutine hashes other things with.
type set struct{ node, image, document, manifest *blake3.Hasher }

// NewHasher derives the keys of all hashes from the repository's id key.
func NewHasher(idKey [32]byte) *Hasher {
	keyed := func(purpose string) *blake3.Hasher {
		var key [32]byte
		derive(idKey, purpose, key[:])
		return must(blake3.NewKeyed(key[:]))
	}
	first := &set{node: keyed("node"), image: keyed("image"), document: keyed("document"), manifest: keyed("manifest")}
	h := &Hasher{Content: NewContent(NewKeys(idKey))}
	h.sets.New = func() any {
		return &set{
			node: first.node.Clone(), image: first.image.Clone(), document: first.document.Clone(), manifest: first.manifest.Clone(),
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
func (h *Content) Chunk(p []byte) Hash {
	blocks(p)
	c := h.chunks.Get().(*blake3.Hasher)
	defer h.chunks.Put(c)
	return sum(c, p)
}

// Prints puts the fingerprint of each block of p into dst, which has a place for each, and returns the bitmap of zero
// blocks. The length of p must be a multiple of BlockBytes, at most MaxBytes.
func (h *Content) Prints(p []byte, dst []Fingerprint) (zeros uint64) {
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
