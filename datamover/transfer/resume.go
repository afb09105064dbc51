package transfer

import (
	"context"
	"iter"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// without makes what an image has already, durably, unchanged: a transfer that goes on where another ended does not read
// it again. durable is ascending and without overlaps.
func without(ctx context.Context, extents iter.Seq2[hypervisors.Extent, error], dst ImageSink) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		next, stop := iter.Pull2(dst.Durable(ctx))
		defer stop()
		var d store.Range // the first that ends behind what was yielded
		more := true
		for e, err := range extents {
			if err == nil && e.Length <= 0 { // its reader says what is wrong with it
				if !yield(e, nil) {
					return
				}
				continue
			}
			for err == nil && e.Length > 0 {
				for more && d.Offset+d.Length <= e.Offset {
					end := d.Offset + d.Length
					if d, err, more = next(); err != nil {
						break
					} else if more && (d.Offset < end || d.Length <= 0) {
						err = fault.New(fault.Internal, "go on with image", "", "%d+%d after %d", d.Offset, d.Length, end)
						break
					}
				}
				if err != nil {
					break
				}
				part := e
				switch {
				case !more || d.Offset >= e.Offset+e.Length: // nothing of it
				case d.Offset > e.Offset:
					part.Length = d.Offset - e.Offset
				default:
					part.Length = min(e.Length, d.Offset+d.Length-e.Offset)
					part.State = hypervisors.Unchanged
				}
				if !yield(part, nil) {
					return
				}
				e.Offset, e.Length = e.Offset+part.Length, e.Length-part.Length
			}
			if err != nil {
				yield(hypervisors.Extent{}, err)
				return
			}
		}
	}
}
