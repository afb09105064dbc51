package imageio

import (
	"bytes"
	"context"
	"sync"
)

// volatile keeps writes in memory until a flush, as a host's page cache does.
type volatile struct {
	Backend

	mu      sync.Mutex
	pending []write
}

type write struct {
	off, n int64
	data   []byte // nil: zeros
}

func newVolatile(b Backend) *volatile { return &volatile{Backend: b} }

func (v *volatile) Read(ctx context.Context, p []byte, off int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.Backend.Read(ctx, p, off); err != nil {
		return err
	}
	for _, w := range v.pending {
		from, to := max(off, w.off), min(off+int64(len(p)), w.off+w.n)
		if from >= to {
			continue
		}
		if w.data == nil {
			clear(p[from-off : to-off])
		} else {
			copy(p[from-off:to-off], w.data[from-w.off:])
		}
	}
	return nil
}

func (v *volatile) Write(_ context.Context, p []byte, off int64) error {
	v.keep(write{off, int64(len(p)), bytes.Clone(p)})
	return nil
}

func (v *volatile) Zero(_ context.Context, off, n int64) error {
	v.keep(write{off, n, nil})
	return nil
}

func (v *volatile) keep(w write) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pending = append(v.pending, w)
}

func (v *volatile) Flush(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, w := range v.pending {
		err := error(nil)
		if w.data == nil {
			err = v.Backend.Zero(ctx, w.off, w.n)
		} else {
			err = v.Backend.Write(ctx, w.data, w.off)
		}
		if err != nil {
			return err
		}
	}
	v.pending = nil
	return v.Backend.Flush(ctx)
}

// Extents must not miss what is in memory.
func (v *volatile) Extents(ctx context.Context, dirty bool) ([]Extent, error) {
	if err := v.Flush(ctx); err != nil {
		return nil, err
	}
	return v.Backend.Extents(ctx, dirty)
}

// crash loses what was not flushed and returns how many bytes that were.
func (v *volatile) crash() (n int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, w := range v.pending {
		n += w.n
	}
	v.pending = nil
	return n
}
