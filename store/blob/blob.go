// Package blob is what the repository engine asks of a place that keeps objects: a directory, later an object store.
//
// It knows nothing of chunks or keys. Its invariant: an object is visible under its name only when it is complete
// and durable, and it is never replaced.
package blob

import (
	"context"
	"io"
	"iter"
)

// Info describes one object.
type Info struct {
	Name string // slash-separated, relative to the store
	Size int64
}

// Store keeps immutable objects under slash-separated names. All methods may be called from several goroutines.
// Errors carry kinds: NotFound, Exists, Transient (full, unreachable), Denied, Canceled.
type Store interface {
	// Create starts a new object. Nothing is visible before Commit. It may answer Exists at once or at Commit.
	Create(ctx context.Context, name string) (Writer, error)
	// ReadAt fills p from offset off; fewer bytes than len(p) are an error (Corrupt: the object is too short).
	ReadAt(ctx context.Context, name string, p []byte, off int64) error
	// Stat returns the size of an object.
	Stat(ctx context.Context, name string) (Info, error)
	// List yields every object whose name starts with the folder prefix ("packs/"), in no particular order. After an
	// error it stops, and what came before must not be taken for the whole.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]
	// Rename moves an object to a name that is free, durably.
	Rename(ctx context.Context, from, to string) error
	// Delete removes an object, durably.
	Delete(ctx context.Context, name string) error
	// Acquire makes the caller the only owner among those who call it, makes everything visible durable and removes
	// what unfinished Creates left. Conflict says who holds it.
	Acquire(ctx context.Context) (release func() error, err error)
	// Location says where the store is, for messages.
	Location() string
	// Close releases what the store holds; objects stay.
	Close() error
}

// Writer writes one new object. It is used by one goroutine at a time. A failed Write or Commit is final for the
// object: Abort it and write its content under another name.
type Writer interface {
	io.Writer
	// Commit makes the object durable, then visible, then the name durable. Exists if the name is taken.
	Commit(ctx context.Context) error
	// Abort throws away what was written; after a Commit it does nothing.
	Abort() error
}

// Put stores a small object in one go.
func Put(ctx context.Context, s Store, name string, data []byte) error {
	w, err := s.Create(ctx, name)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		_ = w.Abort()
		return err
	}
	if err := w.Commit(ctx); err != nil {
		_ = w.Abort()
		return err
	}
	return nil
}

// Get reads a whole object of at most limit bytes.
func Get(ctx context.Context, s Store, name string, limit int64) ([]byte, error) {
	info, err := s.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	if info.Size > limit {
		return nil, tooLong(name, info.Size, limit)
	}
	p := make([]byte, info.Size)
	if err := s.ReadAt(ctx, name, p, 0); err != nil {
		return nil, err
	}
	return p, nil
}
