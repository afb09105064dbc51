package blobtest

import (
	"context"
	"iter"

	"github.com/cairn-backup/cairn/store/blob"
)

// Call is one call of a store, or of a writer that it made.
type Call struct {
	Op    string // create, write, commit, read, stat, list, rename or delete
	Name  string // of the object, its old one, or the prefix of a listing
	Off   int64  // of a read
	Bytes int    // of a read or write
}

// Faulty is a store whose calls a test sees, delays or lets fail.
type Faulty struct {
	blob.Store
	Do   func(context.Context, Call) error // before each; an error of it is the call's, which then does nothing
	Done func(context.Context, Call)       // if not nil, after each commit, rename and delete
}

// Fails is a Faulty that looks at operations and names only.
func Fails(s blob.Store, do func(op, name string) error) *Faulty {
	return &Faulty{Store: s, Do: func(_ context.Context, c Call) error { return do(c.Op, c.Name) }}
}

// changed makes a call that changes objects.
func (f *Faulty) changed(ctx context.Context, c Call, call func() error) error {
	if err := f.Do(ctx, c); err != nil {
		return err
	}
	err := call()
	if f.Done != nil {
		f.Done(ctx, c)
	}
	return err
}

// Create implements blob.Store.
func (f *Faulty) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := f.Do(ctx, Call{Op: "create", Name: name}); err != nil {
		return nil, err
	}
	w, err := f.Store.Create(ctx, name)
	if err != nil {
		return nil, err
	}
	return &faultyWriter{w, f, ctx, name}, nil
}

// ReadAt implements blob.Store.
func (f *Faulty) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := f.Do(ctx, Call{Op: "read", Name: name, Off: off, Bytes: len(p)}); err != nil {
		return err
	}
	return f.Store.ReadAt(ctx, name, p, off)
}

// Stat implements blob.Store.
func (f *Faulty) Stat(ctx context.Context, name string) (blob.Info, error) {
	if err := f.Do(ctx, Call{Op: "stat", Name: name}); err != nil {
		return blob.Info{}, err
	}
	return f.Store.Stat(ctx, name)
}

// List implements blob.Store.
func (f *Faulty) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	if err := f.Do(ctx, Call{Op: "list", Name: prefix}); err != nil {
		return func(yield func(blob.Info, error) bool) { yield(blob.Info{}, err) }
	}
	return f.Store.List(ctx, prefix)
}

// Rename implements blob.Store.
func (f *Faulty) Rename(ctx context.Context, from, to string) error {
	return f.changed(ctx, Call{Op: "rename", Name: from}, func() error { return f.Store.Rename(ctx, from, to) })
}

// Delete implements blob.Store.
func (f *Faulty) Delete(ctx context.Context, name string) error {
	return f.changed(ctx, Call{Op: "delete", Name: name}, func() error { return f.Store.Delete(ctx, name) })
}

type faultyWriter struct {
	blob.Writer
	f    *Faulty
	ctx  context.Context //nolint:containedctx // io.Writer has no other way
	name string
}

func (w *faultyWriter) Write(p []byte) (int, error) {
	if err := w.f.Do(w.ctx, Call{Op: "write", Name: w.name, Bytes: len(p)}); err != nil {
		return 0, err
	}
	return w.Writer.Write(p)
}

func (w *faultyWriter) Commit(ctx context.Context) error {
	return w.f.changed(ctx, Call{Op: "commit", Name: w.name}, func() error { return w.Writer.Commit(ctx) })
}
