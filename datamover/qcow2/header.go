package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Limits of the format (QEMU refuses what is beyond them, too).
const (
	minClusterBits, maxClusterBits = 9, 21
	minExtendedBits                = 14 // extended L2 entries want clusters of 16 KiB
	maxL1Bytes                     = 32 << 20
	maxNameBytes                   = 1023

	headerBytesV2 = 72
	headerBytesV3 = 104
	maxHeader     = 4096 // of header, extensions and name that are looked at; a name ends before it in practice
)

// Incompatible features: an image that has others cannot be understood.
const (
	featureDirty        = 1 << 0 // refcounts may be wrong; of no concern to a reader
	featureCorrupt      = 1 << 1
	featureExternalData = 1 << 2
	featureCompression  = 1 << 3
	featureExtendedL2   = 1 << 4
	knownFeatures       = featureDirty | featureCorrupt | featureExternalData | featureCompression | featureExtendedL2

	autoclearBitmaps = 1 << 0
)

// Header extensions.
const (
	extensionEnd           = 0
	extensionBackingFormat = 0xE2792ACA
	extensionFeatureNames  = 0x6803F857
	extensionBitmaps       = 0x23852875
)

// Compression is how compressed clusters are.
type Compression uint8

// The compressions.
const (
	Zlib Compression = 0 // raw deflate
	Zstd Compression = 1
)

// Header is what the first cluster of an image says.
type Header struct {
	Version       int
	ClusterBits   int
	Size          int64 // virtual size in bytes
	Dirty         bool  // was not closed; its mapping is valid all the same
	Compression   Compression
	ExtendedL2    bool
	Snapshots     int // internal ones, which are ignored
	BackingName   string
	BackingFormat string // "" when it is not said
	l1Entries     int64
	l1Offset      int64
	bitmaps       *bitmapExtension
	featureNames  map[byte]string // of incompatible bits
	autoclear     uint64
	incompatible  uint64
}

// ClusterBytes returns the size of a cluster.
func (h *Header) ClusterBytes() int64 { return 1 << h.ClusterBits }

const op = "read qcow2"

func corrupt(format string, args ...any) error {
	return fault.New(fault.Corrupt, op, "", format, args...).Explain(
		"The disk image is damaged, or it was written to while it was read.",
		"Look at it with `qemu-img check` while the VM is off; if it is sound, start the task again.")
}

func unsupported(format string, args ...any) error {
	return fault.New(fault.Unsupported, op, "", format, args...).Explain(
		"The disk image uses a feature that cannot be read straight from storage.",
		"Let the policy use another transport for this disk, which lets the hypervisor read it.")
}

// readHeader reads and checks the header, its extensions and the backing file's name.
func readHeader(file File) (*Header, error) {
	var fixed [112]byte
	n, err := file.ReadAt(fixed[:], 0)
	if n < headerBytesV2 {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, fault.New(fault.Invalid, op, "", "%d bytes hold no header", n)
		}
		return nil, fault.Context(op+" header", "", err)
	}
	h, length, err := parseFixed(fixed[:n])
	if err != nil {
		return nil, err
	}
	backingOffset, backingLength := binary.BigEndian.Uint64(fixed[8:]), binary.BigEndian.Uint32(fixed[16:])
	end := min(h.ClusterBytes(), maxHeader+int64(length))
	if backingOffset != 0 {
		if backingLength == 0 || backingLength > maxNameBytes || backingOffset < uint64(length) || backingOffset > uint64(h.ClusterBytes())-uint64(backingLength) {
			return nil, corrupt("the name of the backing file has %d bytes at %d", backingLength, backingOffset)
		}
		end = min(end, int64(backingOffset))
		name := make([]byte, backingLength)
		if err := readFull(file, name, int64(backingOffset)); err != nil {
			return nil, fault.Context(op+" backing name", "", err)
		}
		h.BackingName = string(name)
	}
	area := make([]byte, max(0, end-int64(length)))
	n, err = file.ReadAt(area, int64(length))
	if n < len(area) && err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.Context(op+" header extensions", "", err)
	}
	if err := h.parseExtensions(area[:n]); err != nil {
		return nil, err
	}
	return h, h.refuse()
}

// parseFixed reads the fields of the header and returns its length.
func parseFixed(p []byte) (*Header, int, error) {
	be := binary.BigEndian
	if string(p[:4]) != "QFI\xfb" {
		return nil, 0, fault.New(fault.Invalid, op, "", "it does not begin as a qcow2 image").Explain(
			"The volume does not hold a disk image in the format that the platform names.",
			"Check the disk's format on the platform; a volume that was converted needs a new inventory.")
	}
	version := be.Uint32(p[4:])
	if version != 2 && version != 3 {
		return nil, 0, unsupported("version %d", version)
	}
	bits := be.Uint32(p[20:])
	if bits < minClusterBits || bits > maxClusterBits {
		return nil, 0, corrupt("clusters of 2^%d bytes", bits)
	}
	h := &Header{Version: int(version), ClusterBits: int(bits), Snapshots: int(min(be.Uint32(p[60:]), 1<<30))}
	length := headerBytesV2
	if version == 3 {
		if len(p) < headerBytesV3 {
			return nil, 0, corrupt("a header of version 3 in %d bytes", len(p))
		}
		h.incompatible, h.autoclear = be.Uint64(p[72:]), be.Uint64(p[88:])
		l := be.Uint32(p[100:])
		if l < headerBytesV3 || int64(l) > h.ClusterBytes() || l%8 != 0 {
			return nil, 0, corrupt("a header of %d bytes", l)
		}
		length = int(l)
		if length > headerBytesV3 && len(p) > headerBytesV3 {
			h.Compression = Compression(p[104])
		}
	}
	h.Dirty = h.incompatible&featureDirty != 0
	h.ExtendedL2 = h.incompatible&featureExtendedL2 != 0
	if method := be.Uint32(p[32:]); method != 0 {
		return nil, 0, unsupported("it is encrypted (method %d)", method)
	}
	if h.ExtendedL2 && bits < minExtendedBits {
		return nil, 0, corrupt("sub-clusters in clusters of 2^%d bytes", bits)
	}
	return h, length, h.parseTables(be.Uint64(p[24:]), be.Uint32(p[36:]), be.Uint64(p[40:]))
}

// parseTables checks the virtual size against the L1 table.
func (h *Header) parseTables(size uint64, l1Entries uint32, l1Offset uint64) error {
	span := uint64(h.l2Span())
	if size > maxL1Bytes/8*span || size > 1<<62 {
		return corrupt("a virtual size of %d bytes needs an L1 table larger than %d bytes", size, maxL1Bytes)
	}
	h.Size = int64(size)
	h.l1Entries = int64((size + span - 1) / span)
	if int64(l1Entries) < h.l1Entries {
		return corrupt("an L1 table of %d entries for a virtual size of %d bytes", l1Entries, size)
	}
	if h.l1Entries > 0 && (l1Offset == 0 || l1Offset%uint64(h.ClusterBytes()) != 0 || l1Offset > 1<<56) {
		return corrupt("an L1 table at %d", l1Offset)
	}
	h.l1Offset = int64(min(l1Offset, 1<<56))
	return nil
}

// entryBytes is the size of an L2 entry.
func (h *Header) entryBytes() int64 {
	if h.ExtendedL2 {
		return 16
	}
	return 8
}

// l2Span is how much of the disk one L2 table maps.
func (h *Header) l2Span() int64 { return h.ClusterBytes() / h.entryBytes() * h.ClusterBytes() }

// parseExtensions walks the extensions. An area that ends without an end mark is complete: so QEMU reads it.
func (h *Header) parseExtensions(p []byte) error {
	for len(p) >= 8 {
		kind, length := binary.BigEndian.Uint32(p), uint64(binary.BigEndian.Uint32(p[4:]))
		p = p[8:]
		if kind == extensionEnd {
			return nil
		}
		if length > uint64(len(p)) {
			return corrupt("header extension %#x of %d bytes where %d are left", kind, length, len(p))
		}
		data := p[:length]
		switch kind {
		case extensionBackingFormat:
			h.BackingFormat = string(data)
		case extensionFeatureNames:
			h.parseFeatureNames(data)
		case extensionBitmaps:
			if err := h.parseBitmapExtension(data); err != nil {
				return err
			}
		}
		p = p[min(uint64(len(p)), (length+7)&^7):]
	}
	return nil
}

// parseFeatureNames keeps the names of incompatible features: 48 bytes each, of type, bit and name.
func (h *Header) parseFeatureNames(p []byte) {
	h.featureNames = map[byte]string{}
	for ; len(p) >= 48; p = p[48:] {
		if p[0] == 0 && p[1] < 64 {
			name, _, _ := strings.Cut(string(p[2:48]), "\x00")
			h.featureNames[p[1]] = strings.ToValidUTF8(name, "?")
		}
	}
}

// refuse says what cannot be read.
func (h *Header) refuse() error {
	if unknown := h.incompatible &^ knownFeatures; unknown != 0 {
		var names []string
		for bit := range byte(64) {
			if unknown&(1<<bit) != 0 {
				name := fmt.Sprintf("bit %d", bit)
				if said := h.featureNames[bit]; said != "" {
					name += fmt.Sprintf(" (%q)", said)
				}
				names = append(names, name)
			}
		}
		return unsupported("unknown incompatible features: %s", strings.Join(names, ", "))
	}
	if h.incompatible&featureExternalData != 0 {
		return unsupported("its data lies in an external file")
	}
	if h.incompatible&featureCorrupt != 0 {
		return fault.New(fault.Corrupt, op, "", "QEMU has marked the image as corrupt").Explain(
			"QEMU found wrong metadata in the disk image and marked it, so its content cannot be trusted.",
			"Stop the VM, look at the image with `qemu-img check`, repair it or restore it, then start the task again.")
	}
	if h.Compression > Zstd {
		return unsupported("compression type %d", h.Compression)
	}
	if (h.Compression != Zlib) != (h.incompatible&featureCompression != 0) {
		return corrupt("compression type %d does not fit the feature bits", h.Compression)
	}
	return nil
}

// readFull reads exactly len(p) bytes; an end of file is corruption.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return corrupt("the file ends at %d, %d bytes at %d are needed", off+int64(n), len(p), off)
	}
	return err
}
