package imageiotransport

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Bounds of a list of extents. It is read piece by piece; what is kept of it is an ExtentMap.
const (
	maxExtents  = 2 << 30  // bytes of the list
	maxExtent   = 64 << 10 // bytes of one extent in it
	readExtents = 4 << 10  // bytes that are read at once
)

// listExtents asks for the image's extents: what is zero, or with dirty what changed and is zero.
func (l *link) listExtents(ctx context.Context, dirty bool) (m hypervisors.ExtentMap, err error) {
	what := "zero"
	if dirty {
		what = "dirty"
	}
	err = l.do(ctx, false, func(ctx context.Context, c *conn) error {
		req := call{method: http.MethodGet, path: l.path + "/extents?context=" + what, stall: patience * l.stall}
		return c.exchange(ctx, req, func(r *http.Response) (err error) {
			m, err = hypervisors.NewExtentMap(l.size, decodeExtents(r.Body, dirty))
			return err
		}, http.StatusOK)
	})
	if s, ok := errors.AsType[*statusError](err); ok && dirty && s.code == http.StatusNotFound {
		return nil, noChanges(l.name, s)
	}
	if err != nil {
		return nil, l.explain("list extents", err)
	}
	return m, nil
}

func noChanges(name string, cause error) error {
	return fault.Wrap(fault.NotFound, "list changed extents", name, cause).Explain(
		"oVirt no longer knows which parts of the disk changed since the last backup.", "Run a full backup of this VM.")
}

// wireExtent is an extent as the daemon sends it. hole says nothing of the content.
type wireExtent struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	Zero   bool  `json:"zero"`
	Dirty  *bool `json:"dirty"`
}

// decodeExtents yields the extents of a list as it arrives. What the list leaves out or has twice is its reader's to find.
func decodeExtents(r io.Reader, dirty bool) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		b := &budget{r: r, total: maxExtents}
		dec := json.NewDecoder(b)
		fail := func(err error) {
			if _, lost := errors.AsType[*lostError](err); !lost {
				err = badAnswer("its list of extents: %w", err)
			}
			yield(hypervisors.Extent{}, err)
		}
		b.left = maxExtent
		if t, err := dec.Token(); err != nil || t != json.Delim('[') {
			fail(cmpErr(err, errors.New("it is no list")))
			return
		}
		for dec.More() {
			b.left = maxExtent
			var w wireExtent
			if err := dec.Decode(&w); err != nil {
				fail(err)
				return
			}
			e := hypervisors.Extent{Offset: w.Start, Length: w.Length}
			switch {
			case dirty && w.Dirty == nil:
				fail(errors.New("an extent does not say whether it is dirty"))
				return
			case dirty && !*w.Dirty:
				e.State = hypervisors.Unchanged
			case w.Zero:
				e.State = hypervisors.Zero
			}
			if !yield(e, nil) {
				return
			}
		}
		b.left = maxExtent
		if _, err := dec.Token(); err != nil {
			fail(err)
			return
		}
		if n, err := io.Copy(io.Discard, io.MultiReader(dec.Buffered(), b)); err != nil {
			fail(err)
		} else if n > 2 { // a line's end
			fail(errors.New("something follows it"))
		}
	}
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// budget bounds what a decoder that keeps whole values in memory gets for one of them.
type budget struct {
	r     io.Reader
	left  int   // until the next value
	total int64 // at all
}

func (b *budget) Read(p []byte) (int, error) {
	if b.left <= 0 || b.total <= 0 {
		return 0, errors.New("it is too long")
	}
	n, err := b.r.Read(p[:min(len(p), readExtents)])
	b.left -= n
	b.total -= int64(n)
	return n, err
}
