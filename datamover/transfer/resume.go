package transfer

import (
	"context"
	"iter"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// without makes of segments unchanged what an image has already, durably: a transfer that goes on where another ended does not read
// it again. What that one had to read, kept is told. Durable is ascending, without overlaps, and of whole chunks, as segments are.
func without(
	ctx context.Context, segments iter.Seq2[hypervisors.Extent, error], dst ImageSink, kept func(n int64),
) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		next, stop := iter.Pull2(dst.Durable(ctx))
		defer stop()
		var d store.Range // the first that ends behind what was yielded
		more := true
		for e, err := range segments {
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
					if e.State == hypervisors.Data {
						kept(part.Length)
					}
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
