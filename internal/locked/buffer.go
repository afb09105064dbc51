// Package locked has a buffer that several goroutines may use, for what a process or a server writes while a test reads it.
//
// It is no log: nothing is dropped and nothing is parsed. Its invariant: String is a prefix of all that is ever written.
package locked

import (
	"bytes"
	"sync"
)

// Buffer keeps what is written to it. The zero value is empty and ready to use.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *Buffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was written so far.
func (l *Buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
