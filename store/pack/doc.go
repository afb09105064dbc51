// Package pack reads and writes packs: immutable files of sealed frames that describe themselves.
//
// It does not know which chunks are wanted or where packs lie. Its invariant: whatever a pack says, it says
// authenticated; a length or offset from disk is checked against what holds it before it is used.
package pack

import (
	"encoding/hex"
	"fmt"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// Version is the format version of packs written by this package.
const Version = 1

// Sizes of fixed parts and limits that readers enforce.
const (
	HeaderBytes  = 128
	TrailerBytes = 80
	MaxFrame     = 4 << 20   // of plaintext
	MaxPack      = 512 << 20 // of a whole pack
	MaxTargets   = 16        // foreign chunks one stored chunk refers to
)

// Kind separates packs of disk data from packs of tree nodes and documents, which are read for other reasons.
type Kind uint8

// The kinds of packs.
const (
	Data Kind = 1
	Meta Kind = 2
)

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Meta:
		return "meta"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// EntryType says what an entry is.
type EntryType uint8

// The types of entries.
const (
	Chunk    EntryType = 1
	Node     EntryType = 2
	Image    EntryType = 3
	Document EntryType = 4
)

// Header is the start of a pack.
type Header struct {
	Kind       Kind
	Cipher     seal.Cipher // 0, when a pack is written, is AES-256-GCM
	Repository seal.ID
	ID         seal.ID
	KeyID      uint32
	Salt       seal.Salt
}

func (h *Header) cipher() seal.Cipher {
	if h.Cipher == 0 {
		return seal.AES256GCM
	}
	return h.Cipher
}

// Subkey derives what the pack is sealed with from the data key.
func (h *Header) Subkey(secret [32]byte) (seal.Subkey, error) {
	return seal.NewSubkey(h.cipher(), secret, h.KeyID, Version, h.Repository, h.ID, h.Salt)
}

func (h *Header) box(key seal.Subkey) (*seal.Box, error) {
	return key.Box(h.cipher(), h.KeyID, Version, h.Repository, h.ID)
}

// FrameInfo says where a frame lies in its pack and how it is coded.
type FrameInfo struct {
	Offset uint32 // of the sealed frame, from the start of the pack
	Stored uint32 // length of the sealed frame
	Plain  uint32 // length of the frame's plaintext, decompressed
	Codec  Codec
}

// Entry is one stored object: a chunk, tree node, image head or piece of a document.
type Entry struct {
	Type   EntryType
	ID     chunk.Hash
	Frame  uint32 // index of the frame its bytes lie in
	Offset uint32 // in the frame's plaintext
	Length uint32 // of its bytes there

	// Of a chunk only. Blocks neither present nor zero are found in other chunks, in ascending order of block.
	Present uint64 // bitmap of blocks whose bytes are here
	Zeros   uint64 // bitmap of blocks that are all zeros
	Refs    []Ref
}

// Ref says where a block that is not present lies: block Block of a stored copy of Target that has it present.
type Ref struct {
	Target chunk.Hash
	Block  uint8
}

// Directory is the sealed description of a pack.
type Directory struct {
	Header  Header
	Blocks  int // per chunk
	Frames  []FrameInfo
	Entries []Entry
	// Prints are the fingerprints of the blocks of all entries, Blocks for each, where they are known: of a data pack
	// just written, or to be indexed.
	Prints []chunk.Fingerprint
	size   int64
	end    int64 // of the frames, of a pack that was opened
	prints span
	places places
}

type span struct{ offset, length int64 }

// Size returns the length of the whole pack.
func (d *Directory) Size() int64 { return d.size }

// Cost is about how much memory the directory takes.
func (d *Directory) Cost() int64 {
	n := int64(len(d.Frames)*18 + len(d.Entries)*116 + 256)
	for i := range d.Entries {
		n += int64(len(d.Entries[i].Refs)) * 33
	}
	return n
}

// Name returns the name of a pack's object.
func Name(id seal.ID) string {
	s := hex.EncodeToString(id[:])
	return Folder + s[:2] + "/" + s + Suffix
}

// Folder and Suffix frame the names of packs.
const (
	Folder = "packs/"
	Suffix = ".pack"
)

// ParseName is the inverse of Name.
func ParseName(name string) (id seal.ID, err error) {
	const want = len(Folder) + 3 + 32 + len(Suffix)
	if len(name) == want {
		if _, err := hex.Decode(id[:], []byte(name[len(Folder)+3:want-len(Suffix)])); err == nil && Name(id) == name {
			return id, nil
		}
	}
	return seal.ID{}, fmt.Errorf("%q is not the name of a pack", name)
}
