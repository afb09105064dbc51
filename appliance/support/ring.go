package support

import (
	"bytes"
	"sync"
)

// Ring is a writer that keeps the newest lines of what was written to it, at most so many bytes. It may be used from several goroutines.
type Ring struct {
	mu    sync.Mutex
	limit int
	lines [][]byte
	bytes int
	rest  []byte // of a line that has not ended yet
}

// NewRing makes a ring that keeps up to limit bytes. A line that is longer is not kept.
func NewRing(limit int) *Ring { return &Ring{limit: limit} }

// Write implements io.Writer; it never fails.
func (r *Ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for rest := p; len(rest) > 0; {
		end := bytes.IndexByte(rest, '\n') + 1
		if end == 0 {
			end = len(rest)
		}
		if len(r.rest) <= r.limit { // of a line that is too long already no more is kept
			r.rest = append(r.rest, rest[:end]...)
		}
		if rest[end-1] == '\n' {
			r.keep(r.rest)
			r.rest = nil
		}
		rest = rest[end:]
	}
	return len(p), nil
}

func (r *Ring) keep(line []byte) {
	if len(line) > r.limit {
		return
	}
	r.lines = append(r.lines, line)
	r.bytes += len(line)
	drop := 0
	for ; r.bytes > r.limit; drop++ {
		r.bytes -= len(r.lines[drop])
		r.lines[drop] = nil
	}
	r.lines = r.lines[drop:]
}

// Bytes returns the lines that are kept, the oldest first.
func (r *Ring) Bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Join(r.lines, nil)
}
