package erasure

import (
	"context"
	"errors"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/campaign/memory"
)

// disk is a member in memory that can fail, and lie about what it was given to keep.
type disk struct {
	*memory.Store
	fails string // "": well; "all": nothing works; "data": it keeps descriptions of the set, and nothing else; "names": all but shards' names
	lie   func(name string, p []byte) (kept []byte, keep bool)
}

var errDisk = errors.New("no answer")

func (d *disk) failing(name string) error {
	if d.fails == "all" || d.fails == "data" && !strings.HasPrefix(name, setFolder) || d.fails == "names" && strings.HasPrefix(name, objectFolder) {
		return fault.Wrap(fault.Transient, "use disk", name, errDisk)
	}
	return nil
}

func (d *disk) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := d.failing(name); err != nil {
		return nil, err
	}
	w, err := d.Store.Create(ctx, name)
	if d.lie == nil || err != nil {
		return w, err
	}
	return &lyingWriter{Writer: w, d: d, name: name}, nil
}

func (d *disk) Rename(ctx context.Context, from, to string) error {
	if err := errors.Join(d.failing(from), d.failing(to)); err != nil {
		return err
	}
	return d.Store.Rename(ctx, from, to)
}

func (d *disk) Delete(ctx context.Context, name string) error {
	if err := d.failing(name); err != nil {
		return err
	}
	return d.Store.Delete(ctx, name)
}

type lyingWriter struct {
	blob.Writer
	d    *disk
	name string
	p    []byte
}

func (w *lyingWriter) Write(p []byte) (int, error) {
	w.p = append(w.p, p...)
	return len(p), nil
}

func (w *lyingWriter) Commit(ctx context.Context) error {
	p, keep := w.d.lie(w.name, w.p)
	if !keep {
		return nil
	}
	if _, err := w.Writer.Write(p); err != nil {
		return err
	}
	return w.Writer.Commit(ctx)
}
