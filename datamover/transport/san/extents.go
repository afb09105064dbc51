//go:build linux

package santransport

import (
	"iter"

	"github.com/cairn-backup/cairn/hypervisors"
)

// masked lays what the manager knows over what the content says: what is unchanged need not be read at all, and what
// either calls zeros is zeros. Both cover the disk; the result ends where the first of them does.
func masked(content, known iter.Seq2[hypervisors.Extent, error]) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		next, stop := iter.Pull2(known)
		defer stop()
		var mask hypervisors.Extent
		for c, err := range content {
			for err == nil && c.Length > 0 {
				if mask.Length == 0 {
					var ok bool
					if mask, err, ok = next(); !ok {
						return
					}
					continue
				}
				n := min(c.Length, mask.Length)
				state := c.State
				if mask.State == hypervisors.Unchanged || mask.State == hypervisors.Zero {
					state = mask.State
				}
				if !yield(hypervisors.Extent{Offset: c.Offset, Length: n, State: state}, nil) {
					return
				}
				c.Offset, c.Length, mask.Length = c.Offset+n, c.Length-n, mask.Length-n
			}
			if err != nil {
				yield(hypervisors.Extent{}, err)
				return
			}
		}
	}
}

// joined makes neighbours in the same state one.
func joined(extents iter.Seq2[hypervisors.Extent, error]) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		var last hypervisors.Extent // not yielded yet, for it may go on
		for e, err := range extents {
			if err == nil && last.Length > 0 && last.State == e.State {
				last.Length += e.Length
				continue
			}
			if last.Length > 0 && !yield(last, nil) {
				return
			}
			if err != nil {
				yield(hypervisors.Extent{}, err)
				return
			}
			last = e
		}
		if last.Length > 0 {
			yield(last, nil)
		}
	}
}
