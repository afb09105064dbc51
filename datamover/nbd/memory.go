package nbd

import (
	"context"
	"io"
	"sync"
)

// memoryBlock is the granularity in which Memory allocates.
const memoryBlock = 64 << 10

// Memory is a sparse disk in memory that can be exported. It answers BaseAllocation, and any other context by its
// Dirty function.
type Memory struct {
	size  int64
	dirty func(name string, block int64) bool

	mu     sync.RWMutex
	blocks map[int64][]byte
}

// NewMemory makes a disk of zeros. dirty, which may be nil, says for each context and 64 KiB block whether it is
// dirty.
func NewMemory(size int64, dirty func(name string, block int64) bool) *Memory {
	return &Memory{size: size, dirty: dirty, blocks: map[int64][]byte{}}
}

// Size returns the size it was made with.
func (m *Memory) Size() int64 { return m.size }

// each calls f for each block a range touches, with the part of the range and the place in the block.
func each(off, n int64, f func(block, at, from, to int64)) {
	for from := int64(0); from < n; {
		block, at := (off+from)/memoryBlock, (off+from)%memoryBlock
		to := min(n, from+memoryBlock-at)
		f(block, at, from, to)
		from = to
	}
}

// ReadAt reads; unwritten ranges are zeros.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := max(0, min(int64(len(p)), m.size-off))
	each(off, n, func(block, at, from, to int64) {
		if b := m.blocks[block]; b != nil {
			copy(p[from:to], b[at:])
		} else {
			clear(p[from:to])
		}
	})
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// WriteAt writes.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := max(0, min(int64(len(p)), m.size-off))
	each(off, n, func(block, at, from, to int64) {
		if m.blocks[block] == nil {
			m.blocks[block] = make([]byte, memoryBlock)
		}
		copy(m.blocks[block][at:], p[from:to])
	})
	if n < int64(len(p)) {
		return int(n), ENOSPC
	}
	return int(n), nil
}

// Zero makes a range zeros; whole blocks are freed.
func (m *Memory) Zero(_ context.Context, off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if (off+n)/memoryBlock-off/memoryBlock > int64(len(m.blocks)) { // fewer blocks are there than the range has
		for i, b := range m.blocks {
			from, to := max(off-i*memoryBlock, 0), min(off+n-i*memoryBlock, memoryBlock)
			m.zeroBlock(i, b, from, to)
		}
		return nil
	}
	each(off, n, func(block, at, from, to int64) {
		m.zeroBlock(block, m.blocks[block], at, at+to-from)
	})
	return nil
}

func (m *Memory) zeroBlock(i int64, b []byte, from, to int64) {
	switch {
	case b == nil || from >= to:
	case from == 0 && to == memoryBlock:
		delete(m.blocks, i)
	default:
		clear(b[from:to])
	}
}

// Flush has nothing to do.
func (m *Memory) Flush(context.Context) error { return nil }

// Extents answers for whole blocks.
func (m *Memory) Extents(_ context.Context, name string, off, n int64) ([]Extent, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if name == BaseAllocation && len(m.blocks) == 0 {
		return []Extent{{Length: n, Flags: StateHole | StateZero}}, nil
	}
	var list []Extent
	each(off, n, func(block, _, from, to int64) {
		flags := uint32(0)
		switch {
		case name == BaseAllocation && m.blocks[block] == nil:
			flags = StateHole | StateZero
		case name != BaseAllocation && m.dirty != nil && m.dirty(name, block):
			flags = StateDirty
		}
		if l := len(list); l > 0 && list[l-1].Flags == flags {
			list[l-1].Length += to - from
		} else {
			list = append(list, Extent{Length: to - from, Flags: flags})
		}
	})
	return list, nil
}
