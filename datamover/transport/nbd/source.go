package nbdtransport

import (
	"context"
	"io"
	"iter"
	"slices"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// statusStep is how much block status is asked for at once: large, for most disks are mostly empty, yet a reply's
// extents stay within a few MiB.
const statusStep = 2 << 30

// OpenSource opens an export for reading. ctx bounds the opening only; Close makes calls under way return.
func OpenSource(ctx context.Context, e hypervisors.Export) (hypervisors.FrozenDisk, error) {
	return Options{}.OpenSource(ctx, e)
}

// OpenSource opens an export for reading with these options.
func (o Options) OpenSource(ctx context.Context, e hypervisors.Export) (hypervisors.FrozenDisk, error) {
	s, err := o.openSource(ctx, e)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (o Options) openSource(ctx context.Context, e hypervisors.Export) (*source, error) {
	contexts := []string{nbd.BaseAllocation}
	if e.DirtyContext != "" {
		contexts = append(contexts, e.DirtyContext)
	}
	l, err := open(ctx, e, o, contexts)
	if err != nil {
		return nil, err
	}
	s := &source{link: l, dirty: e.DirtyContext, allocation: slices.Contains(l.info.Contexts, nbd.BaseAllocation)}
	if s.dirty != "" && !slices.Contains(l.info.Contexts, s.dirty) {
		l.close()
		return nil, fault.New(fault.NotFound, "open export", e.Name, "it has no context %q", s.dirty).Explain(
			"The hypervisor no longer knows which parts of the disk changed since the last backup.",
			"Run a full backup of this VM.")
	}
	return s, nil
}

// source is a frozen disk behind an NBD export.
type source struct {
	hypervisors.Settled
	link       *link
	dirty      string
	allocation bool
}

func (s *source) Size() int64 { return s.link.info.Size }

func (s *source) Close() error {
	s.link.close()
	return nil
}

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.Invalid, "read disk", s.link.cfg.Export, "offset %d", off)
	}
	n := int(max(0, min(int64(len(p)), s.Size()-off)))
	if n > 0 {
		err := s.link.do(s.link.closed, func(c *nbd.Client) error { return c.Read(s.link.closed, p[:n], off) })
		if err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *source) Extents(ctx context.Context) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		var last hypervisors.Extent // not yielded yet, for it may go on
		for off := int64(0); off < s.Size(); {
			list, err := s.extents(ctx, off, min(statusStep, s.Size()-off))
			if err != nil {
				if last.Length == 0 || yield(last, nil) {
					yield(hypervisors.Extent{}, err)
				}
				return
			}
			for _, e := range list {
				off += e.Length
				if last.Length > 0 && e.State == last.State {
					last.Length += e.Length
					continue
				}
				if last.Length > 0 && !yield(last, nil) {
					return
				}
				last = e
			}
		}
		if last.Length > 0 {
			yield(last, nil)
		}
	}
}

// extents returns the extents of a prefix of a range, at least a byte of it.
func (s *source) extents(ctx context.Context, off, n int64) ([]hypervisors.Extent, error) {
	if len(s.link.info.Contexts) == 0 {
		return []hypervisors.Extent{{Offset: off, Length: n, State: hypervisors.Data}}, nil
	}
	var status map[string][]nbd.Extent
	err := s.link.do(ctx, func(c *nbd.Client) (err error) {
		status, err = c.BlockStatus(ctx, off, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	everything := []nbd.Extent{{Length: n}}
	allocation, dirty := everything, []nbd.Extent{{Length: n, Flags: nbd.StateDirty}}
	if s.allocation {
		allocation = status[nbd.BaseAllocation]
	}
	if s.dirty != "" {
		dirty = status[s.dirty]
	}
	return merge(off, allocation, dirty), nil
}

// merge joins what two contexts say, as far as both go. What is clean need not be read at all, whatever it holds.
func merge(off int64, allocation, dirty []nbd.Extent) []hypervisors.Extent {
	var out []hypervisors.Extent
	for len(allocation) > 0 && len(dirty) > 0 {
		a, d := allocation[0], dirty[0]
		n := min(a.Length, d.Length)
		state := hypervisors.Data
		switch {
		case d.Flags&nbd.StateDirty == 0:
			state = hypervisors.Unchanged
		case a.Flags&nbd.StateZero != 0: // a hole that is not said to be zeros must be read
			state = hypervisors.Zero
		}
		if l := len(out); l > 0 && out[l-1].State == state {
			out[l-1].Length += n
		} else {
			out = append(out, hypervisors.Extent{Offset: off, Length: n, State: state})
		}
		off += n
		allocation, dirty = cut(allocation, n), cut(dirty, n)
	}
	return out
}

// cut takes n bytes off the first extent; the list may be changed.
func cut(list []nbd.Extent, n int64) []nbd.Extent {
	if list[0].Length -= n; list[0].Length == 0 {
		return list[1:]
	}
	return list
}
