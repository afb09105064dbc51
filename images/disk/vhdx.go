package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
)

// Places in a VHDX file, by Microsoft's specification [MS-VHDX] 2.2.
const (
	vhdxHeader1, vhdxHeader2 = 64 << 10, 128 << 10
	vhdxRegions              = 192 << 10
	vhdxHeaderSize           = 4096
)

var (
	vhdxMetadata = GUID{0x8b, 0x7c, 0xa2, 0x06, 0x47, 0x90, 0x4b, 0x9a, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e}
	vhdxPage83   = GUID{0xbe, 0xca, 0x12, 0xab, 0xb2, 0xe6, 0x45, 0x23, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46}
)

// fixVHDX sets the identifiers of file, data and disk, and empties the log, which a file that was closed in order has no
// use for.
func fixVHDX(name string, id GUID) error {
	var logAt int64
	var logSize int
	for i, at := range []int64{vhdxHeader1, vhdxHeader2} {
		err := edit(name, at, vhdxHeaderSize, func(h []byte) error {
			if !bytes.HasPrefix(h, []byte("head")) {
				return errors.New("a header is missing")
			}
			if !allZero(h[48:64]) {
				return errors.New("the log is in use")
			}
			binary.LittleEndian.PutUint64(h[8:], uint64(i+1)) // of the headers, which now agree, the higher one counts
			copy(h[16:], id.onDisk())
			copy(h[32:], id.onDisk())
			logSize, logAt = int(binary.LittleEndian.Uint32(h[68:])), int64(binary.LittleEndian.Uint64(h[72:]))
			binary.LittleEndian.PutUint32(h[4:], 0)
			binary.LittleEndian.PutUint32(h[4:], crc32.Checksum(h, crc32.MakeTable(crc32.Castagnoli)))
			return nil
		})
		if err != nil {
			return err
		}
	}
	if logSize > 64<<20 || logAt < 1<<20 {
		return errors.New("the log stands where none can be")
	}
	if err := edit(name, logAt, logSize, func(p []byte) error { clear(p); return nil }); err != nil {
		return err
	}
	at, err := findPage83(name)
	if err != nil {
		return err
	}
	return edit(name, at, 16, func(p []byte) error { copy(p, id.onDisk()); return nil })
}

// findPage83 returns where the disk's own identifier stands.
func findPage83(name string) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	p := make([]byte, 64<<10)
	if _, err := f.ReadAt(p, vhdxRegions); err != nil {
		return 0, err
	}
	region := bytes.Index(p, vhdxMetadata.onDisk())
	if region < 0 || region+24 > len(p) {
		return 0, errors.New("there is no region of metadata")
	}
	base := int64(binary.LittleEndian.Uint64(p[region+16:]))
	if _, err := f.ReadAt(p, base); err != nil {
		return 0, err
	}
	item := bytes.Index(p, vhdxPage83.onDisk())
	if item < 0 || item+20 > len(p) {
		return 0, errors.New("there is no identifier of the disk")
	}
	return base + int64(binary.LittleEndian.Uint32(p[item+16:])), nil
}
