package file

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/cairn-backup/cairn/internal/fault"
)

// writer is one temporary file on its way to a name.
type writer struct {
	store      *Store
	name       string
	tmp, final string
	f          File
	failed     error
	closed     bool
}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	if w.failed != nil {
		return 0, w.failed
	}
	n, err := w.f.Write(p)
	if err != nil {
		w.failed = w.store.fail("write object", w.name, err)
		return n, w.failed
	}
	return n, nil
}

// Commit implements blob.Writer.
func (w *writer) Commit(ctx context.Context) error {
	if w.failed != nil {
		return w.failed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.closed {
		return fault.New(fault.Internal, "commit object", w.name, "written already")
	}
	if err := w.commit(); err != nil {
		w.failed = w.store.fail("commit object", w.name, err)
		return w.failed
	}
	return nil
}

func (w *writer) commit() error {
	// After a failed fsync the kernel may forget that the pages are dirty: a second one would lie. So: once.
	if err := w.f.Sync(); err != nil {
		return err
	}
	w.closed = true
	if err := w.f.Close(); err != nil {
		return err
	}
	fault.Point("store.file.synced")
	if err := w.store.fs.Link(w.tmp, w.final); err != nil {
		return err
	}
	fault.Point("store.file.linked")
	if err := w.store.fs.SyncDir(filepath.Dir(w.final)); err != nil {
		// The object can be seen and may vanish in a power cut: take it back before anybody relies on it.
		_ = w.store.fs.Remove(w.final)
		return err
	}
	fault.Point("store.file.entry-durable")
	// What remains in tmp is a second name of the same file; Acquire removes it if this does not.
	_ = w.store.fs.Remove(w.tmp)
	w.tmp = ""
	return nil
}

// Abort implements blob.Writer.
func (w *writer) Abort() error {
	if !w.closed {
		w.closed = true
		_ = w.f.Close()
	}
	if w.failed == nil {
		w.failed = fault.New(fault.Canceled, "write object", w.name, "given up")
	}
	if w.tmp == "" {
		return nil
	}
	tmp := w.tmp
	w.tmp = ""
	// The next owner, if there is one already, has removed it.
	if err := w.store.fs.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return w.store.fail("abort object", w.name, err)
	}
	return nil
}
