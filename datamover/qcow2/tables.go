package qcow2

import (
	"encoding/binary"
	"math/bits"

	"github.com/cairn-backup/cairn/internal/fault"
)

// kind says what a range of one layer is.
type kind uint8

const (
	unallocated kind = iota
	zero
	data
	compressed
)

// run is a range of one layer in one kind. For data, host is where it lies; for compressed, where the compressed bytes
// begin and packed how many there are at most.
type run struct {
	kind         kind
	length       int64
	host, packed int64
}

const (
	offsetMask     = 0x00ff_ffff_ffff_fe00
	flagCompressed = 1 << 62
	flagZero       = 1 << 0
	subclusters    = 32
	// sliceBytes is how much of an L2 table is read and held at once.
	sliceBytes = 64 << 10
)

// lookup returns the run that begins at off, of at most n bytes and within what one slice of an L2 table maps. With
// contiguous, a run of data ends where its place in the file jumps, and a compressed run is one cluster.
func (m *Image) lookup(off, n int64, contiguous bool) (run, error) {
	span := m.l2Span()
	index := off / span
	n = min(n, m.Header.Size-off)
	entry := m.l1[index]
	place := int64(entry & offsetMask)
	if place == 0 {
		return run{kind: unallocated, length: min(n, (index+1)*span-off)}, nil
	}
	if place&(m.ClusterBytes()-1) != 0 {
		return run{}, corrupt("L1 entry %d points to %d, which is no cluster", index, place)
	}
	size := min(sliceBytes, m.ClusterBytes())
	perSlice := size / m.entryBytes()
	cluster := off % span >> m.ClusterBits
	slice := cluster / perSlice
	table, err := m.slice(place+slice*size, size)
	if err != nil {
		return run{}, err
	}
	var out run
	within := off & (m.ClusterBytes() - 1)
	for i := cluster % perSlice; i < perSlice && out.length < n; i++ {
		next, err := m.entry(table[i*m.entryBytes():], within)
		if err != nil {
			return run{}, fault.Context("map", "", err)
		}
		if out.length == 0 {
			out = next
		} else if !out.joins(next, contiguous) {
			break
		} else {
			out.length += next.length
		}
		if within+next.length < m.ClusterBytes() || contiguous && out.kind == compressed {
			break
		}
		within = 0
	}
	out.length = min(out.length, n)
	return out, nil
}

// joins reports whether next continues r.
func (r run) joins(next run, contiguous bool) bool {
	return r.kind == next.kind && (!contiguous || r.kind != data || r.host+r.length == next.host)
}

// entry decodes the L2 entry of a cluster from a place within it, up to the cluster's end or less.
func (m *Image) entry(p []byte, within int64) (run, error) {
	e := binary.BigEndian.Uint64(p)
	var bitmap uint64
	if m.ExtendedL2 {
		bitmap = binary.BigEndian.Uint64(p[8:])
	}
	out := run{length: m.ClusterBytes() - within}
	if e&flagCompressed != 0 {
		return m.compressedEntry(e, bitmap, out)
	}
	host := int64(e & offsetMask)
	if host&(m.ClusterBytes()-1) != 0 {
		return run{}, corrupt("an L2 entry points to %d, which is no cluster", host)
	}
	if m.ExtendedL2 {
		out.kind, out.length = subclusterRun(bitmap, within, m.ClusterBytes())
	} else {
		switch {
		case e&flagZero != 0 && m.Version < 3:
			return run{}, corrupt("a zero cluster in an image of version 2")
		case e&flagZero != 0:
			out.kind = zero
		case host != 0:
			out.kind = data
		}
	}
	if out.kind != data {
		return out, nil
	}
	if host == 0 || host >= m.fileBytes {
		return run{}, corrupt("an L2 entry points to %d in a file of %d bytes", host, m.fileBytes)
	}
	out.host = host + within
	return out, nil
}

// compressedEntry decodes offset and number of sectors; the data may end anywhere in the last of them.
func (m *Image) compressedEntry(e, bitmap uint64, out run) (run, error) {
	if bitmap != 0 {
		return run{}, corrupt("a compressed cluster has sub-clusters")
	}
	shift := 62 - (m.ClusterBits - 8)
	host := int64(e & (1<<shift - 1))
	sectors := int64(e&(flagCompressed-1)>>shift) + 1
	out.kind, out.host, out.packed = compressed, host, sectors*512-host&511
	if host == 0 || host >= m.fileBytes {
		return run{}, corrupt("a compressed cluster lies at %d in a file of %d bytes", host, m.fileBytes)
	}
	return out, nil
}

// subclusterRun finds the kind of the sub-cluster at a place in its cluster, and how far its neighbours are the same.
// Bits 0 to 31 say allocated, 32 to 63 zero; a sub-cluster cannot be both, and zero is what QEMU takes it for.
func subclusterRun(bitmap uint64, within, clusterBytes int64) (kind, int64) {
	each := clusterBytes / subclusters
	first := int(within / each)
	at := func(i int) kind {
		switch {
		case bitmap>>(32+i)&1 != 0:
			return zero
		case bitmap>>i&1 != 0:
			return data
		}
		return unallocated
	}
	k, i := at(first), first+1
	for i < subclusters && at(i) == k {
		i++
	}
	return k, int64(i)*each - within
}

// slice returns a part of an L2 table, from the cache or the file.
func (m *Image) slice(place, size int64) ([]byte, error) {
	key := cacheKey{m.depth, place}
	if p, ok := m.cache.get(key); ok {
		return p, nil
	}
	if place >= m.fileBytes {
		return nil, corrupt("an L2 table lies at %d in a file of %d bytes", place, m.fileBytes)
	}
	p := make([]byte, size)
	if err := readFull(m.file, p, place); err != nil {
		return nil, fault.Context(op+" L2 table", "", err)
	}
	if m.ExtendedL2 {
		for at := 8; at < len(p); at += 16 {
			if b := binary.BigEndian.Uint64(p[at:]); bits.OnesCount64(b&(b>>32)) != 0 {
				return nil, corrupt("a sub-cluster is both allocated and zero")
			}
		}
	}
	m.cache.put(key, p)
	return p, nil
}
