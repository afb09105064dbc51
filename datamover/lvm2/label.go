package lvm2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"github.com/cairn-backup/cairn/internal/fault"
)

const (
	sectorBytes   = 512
	labelSectors  = 4
	mdaHeader     = 512
	maxText       = 16 << 20 // of a volume group's text; thousands of volumes take a few MiB
	maxAreas      = 64       // of one kind on one device; lvm2 makes at most two
	mdaMagic      = " LVM2 x[5A%r0N*>"
	initialCRC    = 0xf597a6cf
	flagIgnored   = 1
	uuidCharacter = 32
)

const op = "read LVM"

func corrupt(subject, format string, args ...any) error {
	return fault.New(fault.Corrupt, op, subject, format, args...).Explain(
		"The LVM metadata on the platform's storage is damaged, or it was being written while it was read.",
		"Start the task again; if it happens again, check the volume group with `vgck` on a host of the platform.")
}

// checksum is lvm2's: CRC-32 without the customary inversions.
func checksum(p []byte, initial uint32) uint32 {
	return ^crc32.Update(^initial, crc32.IEEETable, p)
}

// Device is something that may hold a physical volume. Its ReadAt may be called from several goroutines.
type Device interface {
	io.ReaderAt
	Size() int64
	// Name says in messages which device it is.
	Name() string
}

// area is a range of a device.
type area struct{ offset, size int64 }

// label is what the first sectors of a physical volume say.
type label struct {
	uuid  string // as in the text, with hyphens
	size  int64
	areas []area // of metadata
}

// readLabel returns nil where a device holds no physical volume.
func readLabel(d Device) (*label, error) {
	var head [labelSectors * sectorBytes]byte
	n, err := d.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.Context(op+" label of", d.Name(), err)
	}
	for s := range n / sectorBytes {
		sector := head[s*sectorBytes:][:sectorBytes]
		if !bytes.Equal(sector[:8], []byte("LABELONE")) || !bytes.Equal(sector[24:32], []byte("LVM2 001")) {
			continue
		}
		le := binary.LittleEndian
		if le.Uint64(sector[8:]) != uint64(s) || le.Uint32(sector[16:]) != checksum(sector[20:], initialCRC) {
			return nil, corrupt(d.Name(), "the label in sector %d has a wrong checksum", s)
		}
		offset := le.Uint32(sector[20:])
		if offset < 32 || offset > sectorBytes-uuidCharacter-8 {
			return nil, corrupt(d.Name(), "the label's header is at %d", offset)
		}
		return parsePV(d, sector[offset:])
	}
	return nil, nil
}

// parsePV reads the physical volume's header: UUID, size, data areas up to an offset of zero, metadata areas likewise.
// What follows (the extension with its bootloader areas) is of no concern to a reader.
func parsePV(d Device, p []byte) (*label, error) {
	le := binary.LittleEndian
	l := &label{uuid: hyphenate(string(p[:uuidCharacter])), size: int64(min(le.Uint64(p[uuidCharacter:]), 1<<62))}
	if l.uuid == "" {
		return nil, corrupt(d.Name(), "the physical volume has no UUID")
	}
	p = p[uuidCharacter+8:]
	for list := range 2 {
		for n := 0; ; n++ {
			if len(p) < 16 || n > maxAreas {
				return nil, corrupt(d.Name(), "the list of areas does not end")
			}
			offset, size := le.Uint64(p), le.Uint64(p[8:])
			p = p[16:]
			if offset == 0 {
				break
			}
			if list == 0 { // data
				continue
			}
			if offset%sectorBytes != 0 || size < 2*mdaHeader || offset > uint64(d.Size()) || size > uint64(d.Size())-offset {
				return nil, corrupt(d.Name(), "a metadata area of %d bytes at %d on a device of %d", size, offset, d.Size())
			}
			l.areas = append(l.areas, area{int64(offset), int64(size)})
		}
	}
	return l, nil
}

// readArea returns the text of a metadata area; nil when it holds none or is not in use.
func readArea(d Device, a area) ([]byte, error) {
	var h [mdaHeader]byte
	if _, err := d.ReadAt(h[:], a.offset); err != nil {
		return nil, fault.Context(op+" metadata area of", d.Name(), err)
	}
	le := binary.LittleEndian
	switch {
	case le.Uint32(h[:]) != checksum(h[4:], initialCRC):
		return nil, corrupt(d.Name(), "the metadata area at %d has a wrong checksum", a.offset)
	case string(h[4:20]) != mdaMagic || le.Uint32(h[20:]) != 1:
		return nil, corrupt(d.Name(), "the metadata area at %d is of an unknown kind", a.offset)
	case le.Uint64(h[24:]) != uint64(a.offset) || le.Uint64(h[32:]) != uint64(a.size):
		return nil, corrupt(d.Name(), "the metadata area at %d says it is another one", a.offset)
	}
	// The first place is what is committed; the second, which is being written, does not count yet.
	offset, size := le.Uint64(h[40:]), le.Uint64(h[48:])
	want, flags := le.Uint32(h[56:]), le.Uint32(h[60:])
	if offset == 0 || flags&flagIgnored != 0 {
		return nil, nil
	}
	if offset < mdaHeader || offset >= uint64(a.size) || size == 0 || size > uint64(a.size)-mdaHeader || size > maxText {
		return nil, corrupt(d.Name(), "a text of %d bytes at %d of a metadata area of %d", size, offset, a.size)
	}
	text := make([]byte, size)
	first := min(int64(size), a.size-int64(offset))
	if _, err := d.ReadAt(text[:first], a.offset+int64(offset)); err != nil {
		return nil, fault.Context(op+" metadata of", d.Name(), err)
	}
	if rest := text[first:]; len(rest) > 0 { // the ring begins after its header
		if _, err := d.ReadAt(rest, a.offset+mdaHeader); err != nil {
			return nil, fault.Context(op+" metadata of", d.Name(), err)
		}
	}
	if checksum(text, initialCRC) != want {
		return nil, corrupt(d.Name(), "the metadata in the area at %d has a wrong checksum", a.offset)
	}
	return text, nil
}

// hyphenate writes a UUID of 32 characters as lvm2 shows it, in groups of 6-4-4-4-4-4-6; "" where it is none.
func hyphenate(s string) string {
	if len(s) != uuidCharacter {
		return ""
	}
	out := make([]byte, 0, 38)
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '!' && c != '#' {
			return ""
		}
		switch i {
		case 6, 10, 14, 18, 22, 26:
			out = append(out, '-')
		}
		out = append(out, c)
	}
	return string(out)
}
