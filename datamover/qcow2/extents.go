package qcow2

import (
	"context"
	"iter"

	"github.com/cairn-backup/cairn/internal/fault"
)

// State is what is known of a range of the virtual disk.
type State uint8

// The states.
const (
	Unallocated State = iota // in no layer; reads as zeros
	Zero                     // a layer says it is zeros
	Data
)

// Extent is a range of the virtual disk in one state. Depth is the layer that says so, 0 being the image itself; of what
// is unallocated, the lowest layer that was asked.
type Extent struct {
	Offset, Length int64
	State          State
	Depth          int
}

// Extents yields the extents of a range in ascending order, joined where they can be. After an error it stops.
func (m *Image) Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if off < 0 || n < 0 || n > m.Header.Size-off {
			yield(Extent{}, fault.New(fault.Invalid, op, "", "extents of %d bytes at %d of a disk of %d", n, off, m.Header.Size))
			return
		}
		var last Extent // not yielded yet, for it may go on
		for end := off + n; off < end; {
			e, err := Extent{}, ctx.Err()
			if err == nil {
				e, err = m.status(off, end-off)
			}
			if err != nil {
				if last.Length == 0 || yield(last, nil) {
					yield(Extent{}, err)
				}
				return
			}
			off += e.Length
			if last.Length > 0 && e.State == last.State && e.Depth == last.Depth {
				last.Length += e.Length
				continue
			}
			if last.Length > 0 && !yield(last, nil) {
				return
			}
			last = e
		}
		if last.Length > 0 {
			yield(last, nil)
		}
	}
}

// status returns the extent that begins at off, of at most n bytes; it looks at no more than one slice of a table in
// each layer.
func (m *Image) status(off, n int64) (Extent, error) {
	r, err := m.lookup(off, n, false)
	if err != nil {
		return Extent{}, err
	}
	e := Extent{Offset: off, Length: r.length, State: Data, Depth: m.depth}
	switch {
	case r.kind == zero:
		e.State = Zero
	case r.kind != unallocated:
	case m.backing == nil || off >= m.backing.size():
		e.State = Unallocated
	default:
		return m.backing.status(off, min(r.length, m.backing.size()-off))
	}
	return e, nil
}
