package qcow2

import (
	"context"
	"encoding/binary"
	"iter"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Limits of bitmaps (QEMU's own).
const (
	maxBitmaps          = 65535
	maxDirectoryBytes   = 4 << 20 // QEMU allows 64 MiB, for 65535 names of 1023 bytes
	maxBitmapTable      = 0x8000000 / 8
	minGranularityBits  = 9
	maxGranularityBits  = 31
	bitmapInUse         = 1 << 0
	bitmapAuto          = 1 << 1
	bitmapDirtyTracking = 1
)

// bitmapExtension says where the directory of bitmaps is.
type bitmapExtension struct {
	count         uint32
	offset, bytes int64
}

func (h *Header) parseBitmapExtension(p []byte) error {
	if h.autoclear&autoclearBitmaps == 0 {
		return nil // written by a program that knows no bitmaps since: they are out of date
	}
	if len(p) != 24 {
		return corrupt("a bitmaps extension of %d bytes", len(p))
	}
	be := binary.BigEndian
	count, size, offset := be.Uint32(p), be.Uint64(p[8:]), be.Uint64(p[16:])
	if count == 0 || count > maxBitmaps || size == 0 || size > maxDirectoryBytes || offset == 0 || offset > 1<<56 || offset%uint64(h.ClusterBytes()) != 0 {
		return corrupt("a directory of %d bitmaps in %d bytes at %d", count, size, offset)
	}
	h.bitmaps = &bitmapExtension{count: count, offset: int64(offset), bytes: int64(size)}
	return nil
}

// Bitmap is a persistent bitmap of an image.
type Bitmap struct {
	Name             string
	GranularityBytes int64
	InUse            bool // was not stored when the image was closed: it is of no use
	Auto             bool // tracks writes whenever the image is open
	dirty            bool // of the type that tracks writes
	tableOffset      int64
	tableEntries     int64
}

// Bitmaps reads the directory of the image's own bitmaps; those of layers below are not in it.
func (m *Image) Bitmaps() ([]Bitmap, error) {
	if m.bitmaps == nil {
		return nil, nil
	}
	if m.bitmaps.offset > m.fileBytes || m.bitmaps.bytes > m.fileBytes-m.bitmaps.offset {
		return nil, corrupt("a directory of bitmaps of %d bytes at %d in a file of %d", m.bitmaps.bytes, m.bitmaps.offset, m.fileBytes)
	}
	p := make([]byte, m.bitmaps.bytes)
	if err := readFull(m.file, p, m.bitmaps.offset); err != nil {
		return nil, fault.Context(op+" bitmaps", "", err)
	}
	var out []Bitmap
	for range m.bitmaps.count {
		b, used, err := m.parseBitmap(p)
		if err != nil {
			return nil, err
		}
		out, p = append(out, b), p[used:]
	}
	return out, nil
}

// parseBitmap reads one entry of the directory and returns its length.
func (m *Image) parseBitmap(p []byte) (Bitmap, uint64, error) {
	if len(p) < 24 {
		return Bitmap{}, 0, corrupt("the directory of bitmaps ends early")
	}
	be := binary.BigEndian
	offset, entries, flags := be.Uint64(p), be.Uint32(p[8:]), be.Uint32(p[12:])
	granularity, nameBytes, extra := p[17], uint64(be.Uint16(p[18:])), uint64(be.Uint32(p[20:]))
	used := (24 + extra + nameBytes + 7) &^ 7
	if used > uint64(len(p)) || nameBytes == 0 || nameBytes > maxNameBytes {
		return Bitmap{}, 0, corrupt("an entry of %d bytes in the directory of bitmaps", used)
	}
	if granularity < minGranularityBits || granularity > maxGranularityBits || entries > maxBitmapTable || offset > 1<<56 || offset%uint64(m.ClusterBytes()) != 0 {
		return Bitmap{}, 0, corrupt("a bitmap of granularity 2^%d with a table of %d entries at %d", granularity, entries, offset)
	}
	name := string(p[24+extra:][:nameBytes])
	return Bitmap{
		Name: strings.ToValidUTF8(name, "?"), GranularityBytes: 1 << granularity, InUse: flags&bitmapInUse != 0, Auto: flags&bitmapAuto != 0,
		dirty: p[16] == bitmapDirtyTracking, tableOffset: int64(offset), tableEntries: int64(entries),
	}, used, nil
}

// Range is a range of bytes.
type Range struct{ Offset, Length int64 }

// DirtyRanges yields the ranges that a bitmap marks, ascending and joined. A bitmap in use is refused: what it holds is
// not what was written.
func (m *Image) DirtyRanges(ctx context.Context, b Bitmap) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) {
		fail := func(err error) { yield(Range{}, err) }
		switch {
		case b.InUse:
			fail(fault.New(fault.Conflict, op, b.Name, "the bitmap was not stored when the image was closed").Explain(
				"The record of changed blocks was lost, for the VM's process ended without closing the image.",
				"Nothing needs to be done: a full backup is made, and changes are recorded anew from there."))
			return
		case !b.dirty:
			fail(unsupported("bitmap %q does not track writes", b.Name))
			return
		}
		var last Range
		for r, err := range m.bitmapRuns(ctx, b) {
			if err != nil {
				fail(err)
				return
			}
			if last.Length > 0 && last.Offset+last.Length == r.Offset {
				last.Length += r.Length
				continue
			}
			if last.Length > 0 && !yield(last, nil) {
				return
			}
			last = r
		}
		if last.Length > 0 {
			yield(last, nil)
		}
	}
}

// bitmapRuns yields marked ranges, not joined across clusters of the bitmap.
func (m *Image) bitmapRuns(ctx context.Context, b Bitmap) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) {
		span := m.ClusterBytes() * 8 * b.GranularityBytes // of the disk, that a cluster of the bitmap covers
		need := (m.Header.Size + span - 1) / span
		if b.tableEntries < need {
			yield(Range{}, corrupt("bitmap %q has a table of %d entries, %d are needed", b.Name, b.tableEntries, need))
			return
		}
		bits := make([]byte, m.ClusterBytes())
		for i := range need {
			err := ctx.Err()
			var marked bool
			if err == nil {
				marked, err = m.bitmapCluster(b, i, bits)
			}
			if err != nil {
				yield(Range{}, err)
				return
			}
			if marked && !yieldBits(bits, i*span, b.GranularityBytes, m.Header.Size, yield) {
				return
			}
		}
	}
}

// bitmapCluster reads one cluster of a bitmap into bits and reports whether it may have marks.
func (m *Image) bitmapCluster(b Bitmap, i int64, bits []byte) (bool, error) {
	var p [8]byte
	if err := readFull(m.file, p[:], b.tableOffset+i*8); err != nil {
		return false, fault.Context(op+" bitmap", b.Name, err)
	}
	e := binary.BigEndian.Uint64(p[:])
	place := int64(e & offsetMask)
	switch {
	case e&^(offsetMask|1) != 0 || place != 0 && (e&1 != 0 || place&(m.ClusterBytes()-1) != 0):
		return false, corrupt("bitmap %q has a table entry %#x", b.Name, e)
	case place != 0:
		return true, readFull(m.file, bits, place)
	case e&1 != 0:
		for j := range bits {
			bits[j] = 0xff
		}
		return true, nil
	}
	return false, nil
}

// yieldBits yields the ranges of marked bits, each standing for a number of bytes from base on.
func yieldBits(bits []byte, base, each, size int64, yield func(Range, error) bool) bool {
	var open Range
	for i, octet := range bits {
		at := base + int64(i)*8*each
		if at >= size {
			break
		}
		for bit := range 8 {
			from := at + int64(bit)*each
			if octet>>bit&1 != 0 && from < size {
				if open.Length == 0 {
					open.Offset = from
				}
				open.Length = min(from+each, size) - open.Offset
				continue
			}
			if open.Length > 0 && !yield(open, nil) {
				return false
			}
			open = Range{}
		}
	}
	return open.Length == 0 || yield(open, nil)
}
