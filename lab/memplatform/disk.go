package memplatform

import (
	"context"
	"fmt"
	"io"
	"maps"
	"sync"

	"github.com/cairn-backup/cairn/datamover/nbd"
)

const clusterBytes = 64 << 10

// disk is a sparse disk. Its clusters are never changed in place, only replaced, so that a snapshot is a copy of the
// map. A VM's disk is guarded by Platform.mu as well; a volume being restored only by its own lock.
type disk struct {
	mu       sync.RWMutex
	size     int64
	clusters map[int64][]byte
	dirty    map[string]map[int64]bool // by checkpoint: what was written since
}

func newDisk(size int64) *disk {
	return &disk{size: size, clusters: map[int64][]byte{}, dirty: map[string]map[int64]bool{}}
}

// snapshot returns the disk as it is now; what is dirty since a checkpoint comes with it.
func (d *disk) snapshot(since string) *frozenDisk {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return &frozenDisk{disk: &disk{size: d.size, clusters: maps.Clone(d.clusters)}, changed: maps.Clone(d.dirty[since])}
}

func (d *disk) used() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return int64(len(d.clusters)) * clusterBytes
}

// touch notes a range as dirty for all checkpoints.
func (d *disk) touch(off, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := off / clusterBytes; c*clusterBytes < off+n; c++ {
		for _, set := range d.dirty {
			set[c] = true
		}
	}
}

func (d *disk) resize(size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size = size
	d.dirty = map[string]map[int64]bool{}
	maps.DeleteFunc(d.clusters, func(c int64, _ []byte) bool { return c*clusterBytes >= size })
}

// Size implements nbd.Backend.
func (d *disk) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.size
}

// ReadAt implements nbd.Backend.
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	n := int(max(min(int64(len(p)), d.size-off), 0))
	for done := 0; done < n; {
		c, at := (off+int64(done))/clusterBytes, (off+int64(done))%clusterBytes
		part := p[done:min(n, done+int(clusterBytes-at))]
		if data := d.clusters[c]; data != nil {
			copy(part, data[at:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements nbd.Backend.
func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || off+int64(len(p)) > d.size {
		return 0, fmt.Errorf("write of %d bytes at %d: beyond the disk's %d: %w", len(p), off, d.size, nbd.ENOSPC)
	}
	for done := 0; done < len(p); {
		c, at := (off+int64(done))/clusterBytes, (off+int64(done))%clusterBytes
		data := make([]byte, clusterBytes)
		copy(data, d.clusters[c])
		done += copy(data[at:], p[done:])
		d.clusters[c] = data
	}
	return len(p), nil
}

// Zero implements nbd.Backend.
func (d *disk) Zero(_ context.Context, off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := off / clusterBytes; c*clusterBytes < off+n; c++ {
		from, to := max(off-c*clusterBytes, 0), min(off+n-c*clusterBytes, clusterBytes)
		old := d.clusters[c]
		delete(d.clusters, c)
		if old != nil && (from > 0 || to < clusterBytes) {
			data := make([]byte, clusterBytes)
			copy(data, old)
			clear(data[from:to])
			d.clusters[c] = data
		}
	}
	return nil
}

// Flush implements nbd.Backend.
func (d *disk) Flush(context.Context) error { return nil }

// Extents implements nbd.Backend.
func (d *disk) Extents(_ context.Context, _ string, off, n int64) ([]nbd.Extent, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return extents(off, n, func(c int64) uint32 {
		if d.clusters[c] == nil {
			return nbd.StateHole | nbd.StateZero
		}
		return 0
	}), nil
}

// frozenDisk is a disk at one instant, with what has changed since a checkpoint.
type frozenDisk struct {
	*disk
	changed map[int64]bool
}

// Extents implements nbd.Backend.
func (f *frozenDisk) Extents(ctx context.Context, name string, off, n int64) ([]nbd.Extent, error) {
	if name == nbd.BaseAllocation {
		return f.disk.Extents(ctx, name, off, n)
	}
	return extents(off, n, func(c int64) uint32 {
		if f.changed[c] {
			return nbd.StateDirty
		}
		return 0
	}), nil
}

// extents describes a range by the state of its clusters.
func extents(off, n int64, state func(cluster int64) uint32) []nbd.Extent {
	var out []nbd.Extent
	for end := off + n; off < end; {
		c := off / clusterBytes
		length := min((c+1)*clusterBytes, end) - off
		if s := state(c); len(out) > 0 && out[len(out)-1].Flags == s {
			out[len(out)-1].Length += length
		} else {
			out = append(out, nbd.Extent{Length: length, Flags: s})
		}
		off += length
	}
	return out
}
