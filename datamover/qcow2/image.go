package qcow2

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"github.com/cairn-backup/cairn/internal/fault"
)

// File holds an image: a file, a logical volume, a device. It may be longer than the image. Its ReadAt is called from
// as many goroutines as the image's.
type File interface {
	io.ReaderAt
	Size() int64
}

// Layer is a backing layer as the caller knows it.
type Layer struct {
	File File
	Raw  bool // the file's bytes are the content; otherwise it is a qcow2 image
}

// Options of Open. The zero value opens an image without backing layers.
type Options struct {
	// Backing returns the layer below the image at depth (0 is the one that Open was given), which calls it name and,
	// where it says so, of a format ("raw", "qcow2"). The name is the image's claim: it must be looked up among what is
	// known and never opened. Nil refuses images that have a backing file.
	Backing func(depth int, name, format string) (Layer, error)
	// CacheBytes bounds the mapping tables held for the whole chain; 0 means 16 MiB. Each layer holds its L1 table in
	// addition.
	CacheBytes int
	// MaxDepth bounds the number of layers; 0 means 256.
	MaxDepth int
}

// Image is an open image with all its layers. Its methods may be called from several goroutines. It closes nothing.
type Image struct {
	Header
	file File
	// fileBytes is the file's size when it was opened: asking is a system call for some.
	fileBytes int64
	depth     int
	l1        []uint64
	l1Sum     uint32
	cache     *cache
	backing   content // nil: what is not allocated reads as zeros
}

// content is a layer that can be read and asked.
type content interface {
	readAt(p []byte, off int64) error // within the size
	status(off, n int64) (Extent, error)
	size() int64
	layers() int
}

// Open reads the headers and L1 tables of an image and of the layers below it.
func Open(file File, o Options) (*Image, error) {
	if o.CacheBytes <= 0 {
		o.CacheBytes = 16 << 20
	}
	if o.MaxDepth <= 0 {
		o.MaxDepth = 256
	}
	return open(file, o, newCache(o.CacheBytes), 0)
}

func open(file File, o Options, c *cache, depth int) (*Image, error) {
	h, err := readHeader(file)
	if err != nil {
		return nil, err
	}
	m := &Image{Header: *h, file: file, fileBytes: file.Size(), depth: depth, cache: c}
	if m.l1, m.l1Sum, err = m.readL1(); err != nil {
		return nil, err
	}
	if h.BackingName == "" {
		return m, nil
	}
	if o.Backing == nil {
		return nil, fault.New(fault.Invalid, op, "", "it has a backing file %q, and no layer below it is known", h.BackingName)
	}
	if depth+1 >= o.MaxDepth {
		return nil, fault.New(fault.Invalid, op, "", "the chain has more than %d layers", o.MaxDepth)
	}
	layer, err := o.Backing(depth, h.BackingName, h.BackingFormat)
	if err != nil {
		return nil, err
	}
	if said := h.BackingFormat; said != "" && (said == "raw") != layer.Raw {
		return nil, fault.New(fault.Conflict, op, "", "it says that %q has the format %q, and that is not what is known of it", h.BackingName, said)
	}
	if layer.Raw {
		m.backing = rawLayer{layer.File, depth + 1}
		return m, nil
	}
	below, err := open(layer.File, o, c, depth+1)
	if err != nil {
		return nil, fault.Context("open backing layer", h.BackingName, err)
	}
	m.backing = below
	return m, nil
}

// readL1 reads as much of the L1 table as the virtual size needs.
func (m *Image) readL1() ([]uint64, uint32, error) {
	if m.l1Offset > m.fileBytes || m.l1Entries*8 > m.fileBytes-m.l1Offset {
		return nil, 0, corrupt("an L1 table of %d entries at %d in a file of %d bytes", m.l1Entries, m.l1Offset, m.fileBytes)
	}
	l1, sum := make([]uint64, 0, m.l1Entries), uint32(0)
	buf := make([]byte, min(64<<10, m.l1Entries*8))
	for int64(len(l1)) < m.l1Entries {
		part := buf[:min(int64(len(buf)), (m.l1Entries-int64(len(l1)))*8)]
		if err := readFull(m.file, part, m.l1Offset+int64(len(l1))*8); err != nil {
			return nil, 0, fault.Context(op+" L1 table", "", err)
		}
		sum = crc32.Update(sum, crc32.IEEETable, part)
		for ; len(part) > 0; part = part[8:] {
			l1 = append(l1, binary.BigEndian.Uint64(part))
		}
	}
	return l1, sum, nil
}

// Size returns the virtual size in bytes.
func (m *Image) Size() int64 { return m.Header.Size }

func (m *Image) size() int64 { return m.Header.Size }

// Layers returns how many layers the chain has, this one included.
func (m *Image) Layers() int { return m.layers() }

func (m *Image) layers() int {
	if m.backing == nil {
		return 1
	}
	return 1 + m.backing.layers()
}

// Backing returns the qcow2 image below this one; nil when there is none or it is raw.
func (m *Image) Backing() *Image {
	below, _ := m.backing.(*Image)
	return below
}

// Unchanged reads header and L1 table of every qcow2 layer again and fails if one of them is not as it was when the
// image was opened: then somebody writes to it. It cannot see a cluster written in its place.
func (m *Image) Unchanged() error {
	h, err := readHeader(m.file)
	if err != nil {
		return err
	}
	now := &Image{Header: *h, file: m.file, fileBytes: m.file.Size()}
	if _, now.l1Sum, err = now.readL1(); err != nil {
		return err
	}
	if now.Header.Size != m.Header.Size || now.l1Offset != m.l1Offset || now.l1Sum != m.l1Sum ||
		now.BackingName != m.BackingName || now.incompatible != m.incompatible || now.ClusterBits != m.ClusterBits {
		return fault.New(fault.Conflict, op, "", "the image's mapping changed while it was read")
	}
	if below := m.Backing(); below != nil {
		return below.Unchanged()
	}
	return nil
}

// ReadAt implements io.ReaderAt on the virtual disk.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.Invalid, op, "", "offset %d", off)
	}
	n := max(0, min(int64(len(p)), m.Header.Size-off))
	if n > 0 {
		if err := m.readAt(p[:n], off); err != nil {
			return 0, err
		}
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (m *Image) readAt(p []byte, off int64) error {
	for len(p) > 0 {
		r, err := m.lookup(off, int64(len(p)), true)
		if err != nil {
			return err
		}
		part := p[:r.length]
		switch r.kind {
		case zero:
			clear(part)
		case data:
			err = m.readData(part, r.host)
		case compressed:
			err = m.readCompressed(part, off&(m.ClusterBytes()-1), r)
		case unallocated:
			err = m.readBacking(part, off)
		}
		if err != nil {
			return err
		}
		p, off = p[r.length:], off+r.length
	}
	return nil
}

// readData reads host bytes. A file may end within its last cluster; the rest of that reads as zeros.
func (m *Image) readData(p []byte, host int64) error {
	n, err := m.file.ReadAt(p, host)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) && host+int64(n) >= m.fileBytes {
		clear(p[n:])
		return nil
	}
	return err
}

// readBacking reads from the layer below; what is beyond its end is zeros.
func (m *Image) readBacking(p []byte, off int64) error {
	n := 0
	if m.backing != nil {
		n = int(max(0, min(int64(len(p)), m.backing.size()-off)))
	}
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return m.backing.readAt(p[:n], off)
}

// rawLayer is a layer whose bytes are the content.
type rawLayer struct {
	file  File
	depth int
}

func (r rawLayer) size() int64 { return r.file.Size() }

func (r rawLayer) layers() int { return 1 }

func (r rawLayer) readAt(p []byte, off int64) error { return readFull(r.file, p, off) }

func (r rawLayer) status(off, n int64) (Extent, error) {
	return Extent{Offset: off, Length: n, State: Data, Depth: r.depth}, nil
}
