package qcow2

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/cairn-backup/cairn/internal/fault"
)

// maxWindow bounds what a zstd frame makes its decoder allocate: no cluster is larger than 2 MiB, and QEMU's encoder
// never asks for more than 8 MiB.
const maxWindow = 8 << 20

// decoders are kept between clusters; both kinds are costly to make.
type decoders struct {
	flate, zstd, clusters sync.Pool
}

var pool decoders

// readCompressed unpacks the cluster of a run and copies from within it.
func (m *Image) readCompressed(p []byte, within int64, r run) error {
	packed := make([]byte, min(r.packed, m.fileBytes-r.host))
	if n, err := m.file.ReadAt(packed, r.host); n < len(packed) {
		if err == nil || errors.Is(err, io.EOF) {
			return corrupt("the file ends within a compressed cluster at %d", r.host)
		}
		return fault.Context(op+" compressed cluster", "", err)
	}
	cluster, _ := pool.clusters.Get().(*[]byte)
	if cluster == nil || int64(cap(*cluster)) < m.ClusterBytes() {
		p := make([]byte, m.ClusterBytes())
		cluster = &p
	}
	defer pool.clusters.Put(cluster)
	need := (*cluster)[:within+int64(len(p))] // what follows is not wanted
	var err error
	if m.Compression == Zstd {
		err = unpackZstd(need, packed)
	} else {
		err = unpackFlate(need, packed)
	}
	if err != nil {
		return corrupt("the compressed cluster at %d: %w", r.host, err)
	}
	copy(p, need[within:])
	return nil
}

// unpackFlate fills p from a raw deflate stream; what follows is not looked at.
func unpackFlate(p, packed []byte) error {
	r, ok := pool.flate.Get().(io.ReadCloser)
	if !ok {
		r = flate.NewReader(nil)
	}
	defer pool.flate.Put(r)
	if err := r.(flate.Resetter).Reset(bytes.NewReader(packed), nil); err != nil {
		return err
	}
	_, err := io.ReadFull(r, p)
	return err
}

// unpackZstd fills p from a zstd stream; what follows is not looked at.
func unpackZstd(p, packed []byte) error {
	d, ok := pool.zstd.Get().(*zstd.Decoder)
	if !ok {
		var err error
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return err
		}
	}
	defer pool.zstd.Put(d)
	if err := d.Reset(bytes.NewReader(packed)); err != nil {
		return err
	}
	_, err := io.ReadFull(d, p)
	return err
}
