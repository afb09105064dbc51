// Package tree encodes images: trees of fan-out 256 whose leaves name chunks.
//
// It does no I/O. Its invariant: one content has one encoding. A subtree of zeros only is never a node but a cleared
// bit in the node above it, so equal disks have equal roots and zeros cost nothing.
package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cairn-backup/cairn/store/chunk"
)

// FanOut is the number of children of a node.
const FanOut = 256

const (
	nodeVersion = 1
	nodeHead    = 40
	// NodeBytes is the largest encoded node.
	NodeBytes = nodeHead + FanOut*32
	// HeadBytes is the length of an encoded image head.
	HeadBytes = 64
	maxHeight = 7
)

var headMagic = [8]byte{'C', 'A', 'I', 'R', 'N', 'I', 'M', 'G'}

// Node is an inner node or a leaf (level 0, whose children are chunks). A zero hash is a child of zeros only.
type Node struct {
	Level    uint8
	Children [FanOut]chunk.Hash
}

// IsZero reports whether nothing but zeros lies under n.
func (n *Node) IsZero() bool { return n.Children == [FanOut]chunk.Hash{} }

// Append encodes n.
func (n *Node) Append(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, nodeHead)...)
	head := dst[start:]
	head[0], head[1] = nodeVersion, n.Level
	for i := range n.Children {
		if !n.Children[i].IsZero() {
			head[8+i/8] |= 1 << (i % 8)
		}
	}
	for i := range n.Children {
		if !n.Children[i].IsZero() {
			dst = append(dst, n.Children[i][:]...)
		}
	}
	return dst
}

// Parse decodes a node of the given level.
func Parse(p []byte, level uint8) (*Node, error) {
	if len(p) < nodeHead {
		return nil, fmt.Errorf("node of %d bytes", len(p))
	}
	if p[0] != nodeVersion || p[1] != level || [6]byte(p[2:]) != [6]byte{} {
		return nil, fmt.Errorf("node of version %d, level %d where level %d belongs", p[0], p[1], level)
	}
	n := &Node{Level: level}
	count := 0
	for _, b := range p[8:nodeHead] {
		count += bits.OnesCount8(b)
	}
	if count == 0 || len(p) != nodeHead+count*32 {
		return nil, fmt.Errorf("node of %d bytes with %d children", len(p), count)
	}
	at := p[nodeHead:]
	for i := range n.Children {
		if p[8+i/8]&(1<<(i%8)) == 0 {
			continue
		}
		copy(n.Children[i][:], at)
		if n.Children[i].IsZero() {
			return nil, errors.New("node with an empty child")
		}
		at = at[32:]
	}
	return n, nil
}

// Head is what an image's root hash is the hash of.
type Head struct {
	Size       int64
	ChunkBytes uint32
	Height     uint8      // levels of nodes: the top node is of level Height-1; 0 for an empty image
	Top        chunk.Hash // the zero hash if the image is all zeros
}

// Height returns how many levels of nodes an image needs.
func Height(size int64, chunkBytes int) uint8 {
	n := Chunks(size, chunkBytes)
	if n == 0 {
		return 0
	}
	h := uint8(1)
	for n > FanOut {
		n = n/FanOut + min(1, n%FanOut)
		h++
	}
	return h
}

// Chunks returns how many chunks an image has.
func Chunks(size int64, chunkBytes int) int64 {
	return size/int64(chunkBytes) + min(1, size%int64(chunkBytes))
}

// Leaves returns how many leaves as many chunks have.
func Leaves(chunks int64) int64 { return chunks/FanOut + min(1, chunks%FanOut) }

// Range returns which bytes of the disk a run of chunks covers, as far as the disk goes. Neither does it overflow where
// the last chunk ends behind the largest size there is.
func (h Head) Range(first, count int64) (off, length int64) {
	size := int64(h.ChunkBytes)
	off = first * size
	length = h.Size - off
	if count < Chunks(length, int(size)) {
		length = count * size
	}
	return off, length
}

// Append encodes h.
func (h Head) Append(dst []byte) []byte {
	var p [HeadBytes]byte
	copy(p[0:], headMagic[:])
	p[8] = nodeVersion
	p[9] = h.Height
	binary.LittleEndian.PutUint32(p[12:], h.ChunkBytes)
	binary.LittleEndian.PutUint64(p[16:], uint64(h.Size))
	copy(p[32:], h.Top[:])
	return append(dst, p[:]...)
}

// ParseHead decodes an image head.
func ParseHead(p []byte) (h Head, err error) {
	if len(p) != HeadBytes || [8]byte(p) != headMagic || p[8] != nodeVersion {
		return h, errors.New("no image head")
	}
	h.Height = p[9]
	h.ChunkBytes = binary.LittleEndian.Uint32(p[12:])
	h.Size = int64(binary.LittleEndian.Uint64(p[16:]))
	copy(h.Top[:], p[32:])
	if p[10] != 0 || p[11] != 0 || [8]byte(p[24:]) != [8]byte{} {
		return h, errors.New("image head with reserved bytes in use")
	}
	if h.Size < 0 || !chunk.ValidSize(int(h.ChunkBytes)) || h.Height > maxHeight || h.Height != Height(h.Size, int(h.ChunkBytes)) {
		return h, fmt.Errorf("image head with size %d, chunks of %d, height %d", h.Size, h.ChunkBytes, h.Height)
	}
	return h, nil
}

// Span returns how many chunks lie under each child of a node of a level; equally, how many leaves under the node.
func Span(level uint8) int64 { return 1 << (8 * uint(level)) }
