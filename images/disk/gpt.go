// Package disk makes disk images out of files: partitions, boot loaders, and the formats of the platforms.
//
// It uses no loop device and mounts nothing; what it needs of the machine are ordinary programs on ordinary files. Its
// invariant: the same content, time and names give the same bytes, so every UUID and every time in an image is given or
// derived, never drawn.
package disk

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"unicode/utf16"
)

// Sector is the unit of a partition table.
const Sector = 512

// GUID is a GUID in its text form's byte order.
type GUID [16]byte

// Kinds of partition (UEFI 2.10, table 5.7; the others by the Discoverable Partitions Specification).
var (
	EFISystem = GUID{0xc1, 0x2a, 0x73, 0x28, 0xf8, 0x1f, 0x11, 0xd2, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
	LinuxData = GUID{0x0f, 0xc6, 0x3d, 0xaf, 0x84, 0x83, 0x47, 0x72, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}
)

// Partition is one partition and its content.
type Partition struct {
	Name    string // at most 36 UTF-16 units
	Kind    GUID
	ID      GUID
	Content string // a file, whose size is the partition's, a multiple of 1 MiB
	BIOS    bool   // the one that a BIOS boots
}

// String returns a GUID's text form.
func (g GUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[:4], g[4:6], g[6:8], g[8:10], g[10:])
}

// onDisk returns a GUID as tables hold it: the first three groups little-endian.
func (g GUID) onDisk() []byte {
	p := make([]byte, 0, 16)
	p = binary.LittleEndian.AppendUint32(p, binary.BigEndian.Uint32(g[0:]))
	p = binary.LittleEndian.AppendUint16(p, binary.BigEndian.Uint16(g[4:]))
	p = binary.LittleEndian.AppendUint16(p, binary.BigEndian.Uint16(g[6:]))
	return append(p, g[8:]...)
}

const (
	entrySize, entryCount = 128, 128
	tableSectors          = entrySize * entryCount / Sector
	alignment             = 1 << 20
)

// WriteImage writes a disk with a GUID partition table and its copy. boot are at most 440 bytes of code for a BIOS.
func WriteImage(name string, disk GUID, boot []byte, parts []Partition) (err error) {
	if len(boot) > 440 || len(parts) > entryCount {
		return fmt.Errorf("%d bytes of boot code and %d partitions do not fit", len(boot), len(parts))
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	table := make([]byte, entrySize*entryCount)
	at := int64(alignment)
	for i, p := range parts {
		n, err := copySparse(f, at, p.Content)
		if err != nil {
			return err
		}
		if n == 0 || n%alignment != 0 {
			return fmt.Errorf("partition %s has %d bytes, no multiple of 1 MiB", p.Name, n)
		}
		p.entry(table[i*entrySize:], uint64(at/Sector), uint64((at+n)/Sector-1))
		at += n
	}
	sectors := uint64(at+alignment) / Sector
	if err := f.Truncate(at + alignment); err != nil {
		return err
	}
	for _, piece := range []struct {
		at   uint64
		data []byte
	}{
		{0, protective(boot, sectors)},
		{1, header(disk, table, 1, sectors-1, 2, sectors)},
		{2, table},
		{sectors - 1 - tableSectors, table},
		{sectors - 1, header(disk, table, sectors-1, 1, sectors-1-tableSectors, sectors)},
	} {
		if _, err := f.WriteAt(piece.data, int64(piece.at)*Sector); err != nil {
			return err
		}
	}
	return nil
}

// entry writes one line of the table. Bit 2 says that a BIOS boots it.
func (p Partition) entry(e []byte, first, last uint64) {
	copy(e, p.Kind.onDisk())
	copy(e[16:], p.ID.onDisk())
	binary.LittleEndian.PutUint64(e[32:], first)
	binary.LittleEndian.PutUint64(e[40:], last)
	if p.BIOS {
		binary.LittleEndian.PutUint64(e[48:], 1<<2)
	}
	for i, u := range utf16.Encode([]rune(p.Name)) {
		binary.LittleEndian.PutUint16(e[56+2*i:], u)
	}
}

func header(disk GUID, table []byte, self, other, tableAt, sectors uint64) []byte {
	h := make([]byte, Sector)
	copy(h, "EFI PART")
	binary.LittleEndian.PutUint32(h[8:], 0x10000)
	binary.LittleEndian.PutUint32(h[12:], 92)
	binary.LittleEndian.PutUint64(h[24:], self)
	binary.LittleEndian.PutUint64(h[32:], other)
	binary.LittleEndian.PutUint64(h[40:], 2+tableSectors)
	binary.LittleEndian.PutUint64(h[48:], sectors-2-tableSectors)
	copy(h[56:], disk.onDisk())
	binary.LittleEndian.PutUint64(h[72:], tableAt)
	binary.LittleEndian.PutUint32(h[80:], entryCount)
	binary.LittleEndian.PutUint32(h[84:], entrySize)
	binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(table))
	binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	return h
}

// protective is the boot sector: code, and one entry over the whole disk that keeps old programs away. It is marked
// active, which some BIOSes ask for.
func protective(boot []byte, sectors uint64) []byte {
	m := make([]byte, Sector)
	copy(m, boot)
	e := m[446:]
	copy(e, []byte{0x80, 0, 2, 0, 0xee, 0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(sectors-1, 0xffffffff)))
	m[510], m[511] = 0x55, 0xaa
	return m
}

// copySparse copies a file to an offset and leaves out what is zero.
func copySparse(to io.WriterAt, at int64, name string) (int64, error) {
	return eachData(name, func(off int64, p []byte) error {
		_, err := to.WriteAt(p, at+off)
		return err
	})
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
