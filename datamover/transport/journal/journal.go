// Package journal remembers what was written to a disk since it was flushed last, for transports that must write it again
// when a connection or a server is lost.
//
// It writes nothing itself. Its invariant: entries come out in the order in which they went in, with the data that they had then.
package journal

import (
	"bytes"
	"sync"
)

// Journal keeps writes, in order. The zero value is empty. It may be used from several goroutines.
type Journal struct {
	mu      sync.Mutex
	entries []Entry
	bytes   int64
}

// Entry is one write; Data is nil for zeros. At is a time of its user's own clock.
type Entry struct {
	Offset, Length int64
	Data           []byte
	At             int64
}

// maxEntries bounds the journal where entries are small or zeros.
const maxEntries = 4096

// Add notes a write. It copies the data.
func (j *Journal) Add(e Entry) {
	e.Data = bytes.Clone(e.Data)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, e)
	j.bytes += int64(len(e.Data))
}

// Full says whether at least limit bytes are in it, or as many entries as it may have.
func (j *Journal) Full(limit int64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.bytes >= limit || len(j.entries) >= maxEntries
}

// List returns the entries, the oldest first.
func (j *Journal) List() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.entries[:len(j.entries):len(j.entries)]
}

// Forget empties it.
func (j *Journal) Forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries, j.bytes = nil, 0
}
