package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

var (
	headMagic = [8]byte{'C', 'A', 'I', 'R', 'N', 'P', 'A', 'K'}
	endMagic  = [8]byte{'C', 'A', 'I', 'R', 'N', 'E', 'N', 'D'}
	le        = binary.LittleEndian
)

// ErrNewer is matched by errors about packs of a later format version.
var ErrNewer = errors.New("written by a newer version of Cairn")

// AppendHeader encodes h.
func AppendHeader(dst []byte, h Header) []byte {
	var p [HeaderBytes]byte
	copy(p[0:], headMagic[:])
	le.PutUint16(p[8:], Version)
	le.PutUint16(p[10:], HeaderBytes)
	p[12] = byte(h.cipher())
	p[13] = byte(h.Kind)
	copy(p[16:], h.Repository[:])
	copy(p[32:], h.ID[:])
	le.PutUint32(p[48:], h.KeyID)
	copy(p[56:], h.Salt[:])
	return append(dst, p[:]...)
}

// ParseHeader decodes a header. It is not authenticated by itself: opening the directory proves it.
func ParseHeader(p []byte) (h Header, err error) {
	if len(p) < HeaderBytes {
		return h, fmt.Errorf("header of %d bytes", len(p))
	}
	p = p[:HeaderBytes]
	if [8]byte(p) != headMagic {
		return h, errors.New("no pack header")
	}
	if v := le.Uint16(p[8:]); v > Version {
		return h, fmt.Errorf("pack format %d: %w", v, ErrNewer)
	} else if v != Version {
		return h, fmt.Errorf("pack format %d", v)
	}
	h.Kind, h.Cipher = Kind(p[13]), seal.Cipher(p[12])
	if le.Uint16(p[10:]) != HeaderBytes || !h.Cipher.Known() || (h.Kind != Data && h.Kind != Meta) {
		return h, errors.New("header with unknown length, cipher or kind")
	}
	if !allZero(p[14:16]) || !allZero(p[52:56]) || !allZero(p[88:]) {
		return h, errors.New("header with reserved bytes in use")
	}
	copy(h.Repository[:], p[16:])
	copy(h.ID[:], p[32:])
	h.KeyID = le.Uint32(p[48:])
	copy(h.Salt[:], p[56:])
	return h, nil
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// trailer ends a pack.
type trailer struct {
	directory uint64 // offset of the sealed directory
	dirLen    uint32
	printsLen uint32 // of the sealed fingerprints, which follow the directory
	pack      seal.ID
	hash      [32]byte // BLAKE3, without a key, of every byte before this field
}

const trailerHashAt = 32 // in the trailer

func appendTrailer(dst []byte, t trailer) []byte {
	var p [TrailerBytes]byte
	le.PutUint64(p[0:], t.directory)
	le.PutUint32(p[8:], t.dirLen)
	le.PutUint32(p[12:], t.printsLen)
	copy(p[16:], t.pack[:])
	copy(p[32:], t.hash[:])
	le.PutUint16(p[64:], Version)
	copy(p[72:], endMagic[:])
	return append(dst, p[:]...)
}

func parseTrailer(p []byte, size int64) (t trailer, err error) {
	if len(p) != TrailerBytes {
		return t, fmt.Errorf("trailer of %d bytes", len(p))
	}
	if [8]byte(p[72:]) != endMagic {
		return t, errors.New("no pack trailer: it is cut short or not a pack")
	}
	if v := le.Uint16(p[64:]); v != Version || !allZero(p[66:72]) {
		return t, fmt.Errorf("trailer of version %d with reserved bytes %x", v, p[66:72])
	}
	t.directory = le.Uint64(p[0:])
	t.dirLen = le.Uint32(p[8:])
	t.printsLen = le.Uint32(p[12:])
	copy(t.pack[:], p[16:])
	copy(t.hash[:], p[32:])
	// Subtract rather than add, so that no sum can overflow.
	rest := size - TrailerBytes - int64(t.dirLen) - int64(t.printsLen)
	if t.dirLen < seal.Overhead || t.printsLen < seal.Overhead || rest < HeaderBytes || t.directory != uint64(rest) {
		return t, fmt.Errorf("trailer puts a directory of %d+%d bytes at %d in a pack of %d", t.dirLen, t.printsLen, t.directory, size)
	}
	return t, nil
}

const (
	dirHeadBytes   = 16
	frameBytes     = 16
	entryBytes     = 48
	chunkTailBytes = 18
)

// appendDirectory encodes the plaintext of a directory.
func appendDirectory(dst []byte, blocks int, frames []FrameInfo, entries []Entry) []byte {
	dst = le.AppendUint32(dst, uint32(len(frames)))
	dst = le.AppendUint32(dst, uint32(len(entries)))
	dst = append(dst, byte(blocks), 0, 0, 0, 0, 0, 0, 0)
	for _, f := range frames {
		dst = le.AppendUint32(dst, f.Offset)
		dst = le.AppendUint32(dst, f.Stored)
		dst = le.AppendUint32(dst, f.Plain)
		dst = append(dst, byte(f.Codec), 0, 0, 0)
	}
	for i := range entries {
		dst = appendEntry(dst, &entries[i])
	}
	return dst
}

func appendEntry(dst []byte, e *Entry) []byte {
	dst = append(dst, byte(e.Type), 0, 0, 0)
	dst = append(dst, e.ID[:]...)
	dst = le.AppendUint32(dst, e.Frame)
	dst = le.AppendUint32(dst, e.Offset)
	dst = le.AppendUint32(dst, e.Length)
	if e.Type != Chunk {
		return dst
	}
	targets, at := distinctTargets(e.Refs)
	dst = le.AppendUint64(dst, e.Present)
	dst = le.AppendUint64(dst, e.Zeros)
	dst = append(dst, byte(len(targets)), 0)
	for _, t := range targets {
		dst = append(dst, t[:]...)
	}
	for i, r := range e.Refs {
		dst = append(dst, at[i], r.Block)
	}
	return dst
}

// distinctTargets returns each target once, in order of first use, and for each ref the index of its target.
func distinctTargets(refs []Ref) (targets []chunk.Hash, at []uint8) {
next:
	for _, r := range refs {
		for i, t := range targets {
			if t == r.Target {
				at = append(at, uint8(i))
				continue next
			}
		}
		at = append(at, uint8(len(targets)))
		targets = append(targets, r.Target)
	}
	return targets, at
}

// cursor takes fixed-size fields off a byte string and remembers whether there were enough.
type cursor struct {
	p     []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if c.short || n > len(c.p) {
		c.short = true
		return make([]byte, n)
	}
	out := c.p[:n]
	c.p = c.p[n:]
	return out
}

// parseDirectory decodes the plaintext of a directory; dataEnd is where the pack's frames end.
func parseDirectory(p []byte, dataEnd int64) (*Directory, error) {
	c := &cursor{p: p}
	head := c.take(dirHeadBytes)
	if c.short || !allZero(head[9:]) {
		return nil, errors.New("directory with a bad head")
	}
	frames, entries := int64(le.Uint32(head)), int64(le.Uint32(head[4:]))
	d := &Directory{Blocks: int(head[8])}
	if d.Blocks < 1 || d.Blocks > chunk.MaxBlocks {
		return nil, fmt.Errorf("directory for chunks of %d blocks", d.Blocks)
	}
	if frames*frameBytes+entries*entryBytes > int64(len(c.p)) {
		return nil, fmt.Errorf("directory of %d bytes with %d frames and %d entries", len(p), frames, entries)
	}
	d.Frames = make([]FrameInfo, frames)
	for i := range d.Frames {
		if err := parseFrame(c.take(frameBytes), dataEnd, &d.Frames[i]); err != nil {
			return nil, fmt.Errorf("frame %d: %w", i, err)
		}
	}
	d.Entries = make([]Entry, entries)
	for i := range d.Entries {
		if err := d.parseEntry(c, &d.Entries[i]); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
	}
	if c.short || len(c.p) != 0 {
		return nil, errors.New("directory is cut short or too long")
	}
	return d, nil
}

func parseFrame(p []byte, dataEnd int64, f *FrameInfo) error {
	*f = FrameInfo{Offset: le.Uint32(p), Stored: le.Uint32(p[4:]), Plain: le.Uint32(p[8:]), Codec: Codec(p[12])}
	if f.Offset < HeaderBytes || int64(f.Offset)+int64(f.Stored) > dataEnd || f.Stored < seal.Overhead ||
		f.Plain > MaxFrame || f.Stored > MaxFrame+seal.Overhead || f.Codec > S2 || !allZero(p[13:]) {
		return fmt.Errorf("impossible place or size: %+v", *f)
	}
	return nil
}

func (d *Directory) parseEntry(c *cursor, e *Entry) error {
	p := c.take(entryBytes)
	e.Type = EntryType(p[0])
	copy(e.ID[:], p[4:])
	e.Frame, e.Offset, e.Length = le.Uint32(p[36:]), le.Uint32(p[40:]), le.Uint32(p[44:])
	if c.short || e.Type < Chunk || e.Type > Document || !allZero(p[1:4]) {
		return fmt.Errorf("unknown type %d", e.Type)
	}
	if int64(e.Frame) >= int64(len(d.Frames)) || int64(e.Offset)+int64(e.Length) > int64(d.Frames[e.Frame].Plain) {
		return fmt.Errorf("bytes %d+%d of frame %d are not there", e.Offset, e.Length, e.Frame)
	}
	if e.Type != Chunk {
		return nil
	}
	return d.parseChunk(c, e)
}

func (d *Directory) parseChunk(c *cursor, e *Entry) error {
	p := c.take(chunkTailBytes)
	e.Present, e.Zeros = le.Uint64(p), le.Uint64(p[8:])
	all := ^uint64(0) >> (64 - d.Blocks)
	if e.Present&^all != 0 || e.Zeros&^all != 0 || e.Present&e.Zeros != 0 || p[17] != 0 {
		return fmt.Errorf("blocks %x present, %x zero of %d", e.Present, e.Zeros, d.Blocks)
	}
	if int(e.Length) != bits.OnesCount64(e.Present)*chunk.BlockBytes {
		return fmt.Errorf("%d bytes for blocks %x", e.Length, e.Present)
	}
	targets := make([]chunk.Hash, p[16])
	if len(targets) > MaxTargets {
		return fmt.Errorf("refers to %d chunks", len(targets))
	}
	for i := range targets {
		copy(targets[i][:], c.take(32))
	}
	n := d.Blocks - bits.OnesCount64(e.Present|e.Zeros)
	if n == 0 || c.short {
		return nil
	}
	e.Refs = make([]Ref, n)
	for i := range e.Refs {
		r := c.take(2)
		if int(r[0]) >= len(targets) || int(r[1]) >= d.Blocks {
			return fmt.Errorf("reference to block %d of target %d", r[1], r[0])
		}
		e.Refs[i] = Ref{Target: targets[r[0]], Block: r[1]}
	}
	return nil
}
