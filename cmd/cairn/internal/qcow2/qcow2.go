// Package qcow2 writes new qcow2 images, version 3, from scratch and without QEMU.
//
// It is a writer only: it reads no image, makes no snapshots, no backing files, no compression, no encryption. Its
// one invariant: guest ranges are mapped in ascending order and every cluster of the file is used exactly once, so
// every refcount is one and the refcounts can be computed at the end from the number of clusters alone.
//
// Layout: header, L1 table, then L2 tables each followed by the data clusters mapped while it was the current one,
// then the refcount blocks, then the refcount table. Ranges that are never mapped read as zeros and take no space.
package qcow2

import (
	"encoding/binary"
	"io"

	"github.com/cairn-backup/cairn/internal/fault"
)

// The one geometry this package writes: QEMU's own default.
const (
	ClusterBits  = 16
	ClusterBytes = 1 << ClusterBits

	l2Entries       = ClusterBytes / 8
	l2Span          = l2Entries * ClusterBytes // guest bytes that one L2 table maps: 512 MiB
	refcountOrder   = 4                        // 16-bit refcounts
	refcountsABlock = ClusterBytes / 2
	headerBytes     = 104
	copied          = 1 << 63 // "refcount is exactly one" in L1 and L2 entries
	// MaxSize is the largest virtual size: QEMU refuses an L1 table above 32 MiB.
	MaxSize = (32 << 20) / 8 * int64(l2Span)
)

// Writer writes one image. Map and Finish are for one goroutine; the data itself may be written to the places that
// Map names from any goroutine, at any time before the file is used.
type Writer struct {
	file    io.WriterAt
	size    int64 // virtual size, a multiple of 512
	l1      []uint64
	l2      []byte // the current L2 table
	l2Index int64  // which it is; -1 before the first
	l2Place int64  // where it goes
	next    int64  // first free cluster of the file
	mapped  int64  // guest offset up to which ranges were mapped
}

// New starts an image of size bytes in file, which must read as zeros where nothing is written. A size that is not a
// multiple of 512 is rounded up, as disks have whole sectors.
func New(file io.WriterAt, size int64) (*Writer, error) {
	if size < 0 || size > MaxSize {
		return nil, fault.New(fault.Invalid, "write qcow2", "", "virtual size %d is outside 0..%d", size, int64(MaxSize))
	}
	size = (size + 511) &^ 511
	entries := (size + l2Span - 1) / l2Span
	return &Writer{
		file: file, size: size, l1: make([]uint64, entries), l2: make([]byte, ClusterBytes), l2Index: -1,
		next: 1 + clusters(entries*8),
	}, nil
}

// Map gives the guest range that starts at off a place in the file. It covers as much of n bytes as lies in one
// piece and returns the place and that length; call it again for the rest. off is a multiple of ClusterBytes, so is
// n unless the range ends with the image, and ranges come in ascending order.
func (w *Writer) Map(off, n int64) (place, length int64, err error) {
	switch {
	case off%ClusterBytes != 0 || n <= 0 || off+n > w.size || (n%ClusterBytes != 0 && off+n < w.size-511):
		return 0, 0, fault.New(fault.Invalid, "write qcow2", "", "range %d+%d does not lie on clusters of a disk of %d bytes", off, n, w.size)
	case off < w.mapped:
		return 0, 0, fault.New(fault.Invalid, "write qcow2", "", "range at %d comes after %d was mapped", off, w.mapped)
	}
	if index := off / l2Span; index != w.l2Index {
		if err := w.flushL2(); err != nil {
			return 0, 0, err
		}
		w.l2Index, w.l2Place = index, w.next*ClusterBytes
		w.next++
	}
	length = min(n, (w.l2Index+1)*l2Span-off)
	place = w.next * ClusterBytes
	first := off % l2Span / ClusterBytes
	for i := range clusters(length) {
		binary.BigEndian.PutUint64(w.l2[(first+i)*8:], uint64(place+i*ClusterBytes)|copied)
	}
	w.next += clusters(length)
	w.mapped = off + clusters(length)*ClusterBytes
	return place, length, nil
}

func (w *Writer) flushL2() error {
	if w.l2Index < 0 {
		return nil
	}
	if _, err := w.file.WriteAt(w.l2, w.l2Place); err != nil {
		return fault.Context("write qcow2 L2 table", "", err)
	}
	w.l1[w.l2Index] = uint64(w.l2Place) | copied
	clear(w.l2)
	return nil
}

// Finish writes the tables and, last, the header, and returns the length the file must have: extend it to that if
// it is shorter. The Writer is of no use afterwards.
func (w *Writer) Finish() (fileBytes int64, err error) {
	if err := w.flushL2(); err != nil {
		return 0, err
	}
	blocks, tableClusters := refcountGeometry(w.next)
	total := w.next + blocks + tableClusters
	table := make([]byte, tableClusters*ClusterBytes)
	for i := range blocks {
		place := (w.next + i) * ClusterBytes
		binary.BigEndian.PutUint64(table[i*8:], uint64(place))
		if _, err := w.file.WriteAt(refcountBlock(total-i*refcountsABlock), place); err != nil {
			return 0, fault.Context("write qcow2 refcounts", "", err)
		}
	}
	tablePlace := (w.next + blocks) * ClusterBytes
	if _, err := w.file.WriteAt(table, tablePlace); err != nil {
		return 0, fault.Context("write qcow2 refcount table", "", err)
	}
	l1 := make([]byte, 8*len(w.l1))
	for i, e := range w.l1 {
		binary.BigEndian.PutUint64(l1[i*8:], e)
	}
	if _, err := w.file.WriteAt(l1, ClusterBytes); err != nil {
		return 0, fault.Context("write qcow2 L1 table", "", err)
	}
	if _, err := w.file.WriteAt(w.header(tablePlace, tableClusters), 0); err != nil {
		return 0, fault.Context("write qcow2 header", "", err)
	}
	return total * ClusterBytes, nil
}

func (w *Writer) header(tablePlace, tableClusters int64) []byte {
	h := make([]byte, headerBytes+8) // eight zero bytes end the header extensions
	copy(h, "QFI\xfb")
	be := binary.BigEndian
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], ClusterBits)
	be.PutUint64(h[24:], uint64(w.size))
	be.PutUint32(h[36:], uint32(len(w.l1)))
	be.PutUint64(h[40:], ClusterBytes) // the L1 table; of no entries where the disk has no bytes
	be.PutUint64(h[48:], uint64(tablePlace))
	be.PutUint32(h[56:], uint32(tableClusters))
	be.PutUint32(h[96:], refcountOrder)
	be.PutUint32(h[100:], headerBytes)
	return h
}

// refcountBlock returns a block that counts one for the first n clusters it covers.
func refcountBlock(n int64) []byte {
	b := make([]byte, ClusterBytes)
	for i := range min(n, refcountsABlock) {
		b[2*i+1] = 1
	}
	return b
}

// refcountGeometry returns how many refcount blocks and table clusters a file of used clusters needs, themselves
// counted in.
func refcountGeometry(used int64) (blocks, table int64) {
	for {
		total := used + blocks + table
		needBlocks := (total + refcountsABlock - 1) / refcountsABlock
		needTable := max(clusters(needBlocks*8), 1)
		if needBlocks == blocks && needTable == table {
			return blocks, table
		}
		blocks, table = needBlocks, needTable
	}
}

func clusters(n int64) int64 { return (n + ClusterBytes - 1) / ClusterBytes }
