package imageiotransport

import (
	"bytes"
	"sync"
)

// journal keeps what was written since the last flush, in order.
type journal struct {
	mu      sync.Mutex
	entries []entry
	bytes   int64
	since   int64 // the link's clock when the first entry was made
}

// entry is one write; data is nil for zeros.
type entry struct {
	offset, length int64
	data           []byte
}

// maxEntries bounds the journal where entries are small or zeros.
const maxEntries = 4096

// add notes a write at a time of the link's clock.
func (j *journal) add(e entry, now int64) {
	e.data = bytes.Clone(e.data)
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.entries) == 0 {
		j.since = now
	}
	j.entries = append(j.entries, e)
	j.bytes += int64(len(e.data))
}

func (j *journal) full(limit int64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.bytes >= limit || len(j.entries) >= maxEntries
}

// list returns the entries, and when the first of them was made.
func (j *journal) list() ([]entry, int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.entries[:len(j.entries):len(j.entries)], j.since
}

func (j *journal) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries, j.bytes = nil, 0
}
