package imageio

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Backend is what is behind a ticket. Its methods are called from several goroutines.
type Backend interface {
	Size() int64
	// Limits are how many connections should read and write it at once.
	Limits() (readers, writers int)
	Read(ctx context.Context, p []byte, off int64) error
	Write(ctx context.Context, p []byte, off int64) error
	Zero(ctx context.Context, off, n int64) error
	// Flush makes durable what was written before.
	Flush(ctx context.Context) error
	// Extents cover the image; with dirty they say what changed, and are an error that matches errors.ErrUnsupported where nobody knows.
	Extents(ctx context.Context, dirty bool) ([]Extent, error)
	Close() error
}

// Extent is a part of an image in one state, in the form the daemon sends it.
type Extent struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	Zero   bool  `json:"zero"`
	Hole   *bool `json:"hole,omitempty"`
	Dirty  *bool `json:"dirty,omitempty"`
}

// OpenNBD opens an NBD export: a raw view of a disk, whatever its format. dirty is the metadata context with what changed, or "".
func OpenNBD(ctx context.Context, socket, export, dirty string) (Backend, error) {
	contexts := []string{nbd.BaseAllocation}
	if dirty != "" {
		contexts = append(contexts, dirty)
	}
	c, err := nbd.Dial(ctx, nbd.Config{Network: "unix", Address: socket, Export: export, Contexts: contexts})
	if err != nil {
		return nil, err
	}
	if got := len(c.Info().Contexts); got != len(contexts) {
		_ = c.Close()
		return nil, fault.New(fault.NotFound, "open export", export, "it has %d of %d metadata contexts", got, len(contexts))
	}
	return &nbdBackend{client: c, dirty: dirty}, nil
}

type nbdBackend struct {
	client *nbd.Client
	dirty  string
}

func (b *nbdBackend) Size() int64        { return b.client.Info().Size }
func (b *nbdBackend) Limits() (int, int) { return 8, 8 }
func (b *nbdBackend) Close() error       { return b.client.Close() }

func (b *nbdBackend) Read(ctx context.Context, p []byte, off int64) error {
	return b.client.Read(ctx, p, off)
}

func (b *nbdBackend) Write(ctx context.Context, p []byte, off int64) error {
	return b.client.Write(ctx, p, off, 0)
}

func (b *nbdBackend) Zero(ctx context.Context, off, n int64) error {
	return b.client.Zero(ctx, off, n, 0)
}

func (b *nbdBackend) Flush(ctx context.Context) error { return b.client.Flush(ctx) }

// Extents asks for a GiB at a time, and joins what two contexts say.
func (b *nbdBackend) Extents(ctx context.Context, dirty bool) ([]Extent, error) {
	if dirty && b.dirty == "" {
		return nil, fmt.Errorf("dirty extents: %w", errors.ErrUnsupported)
	}
	var out []Extent
	for off := int64(0); off < b.Size(); {
		status, err := b.client.BlockStatus(ctx, off, min(1<<30, b.Size()-off))
		if err != nil {
			return nil, err
		}
		zero, changed := status[nbd.BaseAllocation], status[b.dirty]
		if !dirty {
			changed = []nbd.Extent{{Length: 1 << 62}}
		}
		for len(zero) > 0 && len(changed) > 0 {
			n := min(zero[0].Length, changed[0].Length)
			e := Extent{Start: off, Length: n, Zero: zero[0].Flags&nbd.StateZero != 0}
			if dirty {
				is := changed[0].Flags&nbd.StateDirty != 0
				e.Dirty = &is
			} else {
				is := zero[0].Flags&nbd.StateHole != 0
				e.Hole = &is
			}
			out = appendExtent(out, e)
			off += n
			zero, changed = consume(zero, n), consume(changed, n)
		}
	}
	return out, nil
}

func consume(list []nbd.Extent, n int64) []nbd.Extent {
	if list[0].Length == n {
		return list[1:]
	}
	list[0].Length -= n
	return list
}

// appendExtent joins neighbours in the same state.
func appendExtent(list []Extent, e Extent) []Extent {
	if n := len(list); n > 0 {
		l := &list[n-1]
		if l.Zero == e.Zero && same(l.Hole, e.Hole) && same(l.Dirty, e.Dirty) {
			l.Length += e.Length
			return list
		}
	}
	return append(list, e)
}

func same(a, b *bool) bool { return a == b || a != nil && b != nil && *a == *b }

// OpenFile opens a volume's file itself: a transfer in the volume's own format.
func OpenFile(path string, writable bool) (Backend, error) {
	flags := os.O_RDONLY
	if writable {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &fileBackend{File: f, size: st.Size()}, nil
}

type fileBackend struct {
	*os.File
	size int64
}

func (b *fileBackend) Size() int64                 { return b.size }
func (b *fileBackend) Limits() (int, int)          { return 8, 1 }
func (b *fileBackend) Flush(context.Context) error { return b.Sync() }

func (b *fileBackend) Read(_ context.Context, p []byte, off int64) error {
	_, err := b.ReadAt(p, off)
	return err
}

func (b *fileBackend) Write(_ context.Context, p []byte, off int64) error {
	_, err := b.WriteAt(p, off)
	return err
}

func (b *fileBackend) Zero(ctx context.Context, off, n int64) error {
	for n > 0 {
		part := min(n, 1<<20)
		if err := b.Write(ctx, make([]byte, part), off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// Extents says that all is data, which is always true.
func (b *fileBackend) Extents(_ context.Context, dirty bool) ([]Extent, error) {
	if dirty {
		return nil, fmt.Errorf("dirty extents: %w", errors.ErrUnsupported)
	}
	if b.size == 0 {
		return nil, nil
	}
	hole := false
	return []Extent{{Length: b.size, Hole: &hole}}, nil
}
