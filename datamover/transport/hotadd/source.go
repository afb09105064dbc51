//go:build linux

package hotadd

import (
	"context"
	"io"
	"iter"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// OpenSource waits for a disk and opens it for reading. ctx bounds the opening only; Close makes calls under way return.
func (o Options) OpenSource(ctx context.Context, e hypervisors.Export) (hypervisors.FrozenDisk, error) {
	if len(e.Extents) > 0 && e.Extents.Size() != e.SizeBytes {
		return nil, fault.New(fault.Invalid, "open disk", e.Serial, "the extents are those of %d bytes, the disk has %d", e.Extents.Size(), e.SizeBytes)
	}
	d, err := o.open(ctx, e, false)
	if err != nil {
		return nil, err
	}
	return &source{device: d, extents: e.Extents}, nil
}

// source is a frozen disk.
type source struct {
	hypervisors.Settled
	*device
	extents hypervisors.ExtentMap
}

// ReadAt reads by way of an aligned buffer of the device's, one piece after the other; callers that want several
// requests in flight call it from several goroutines.
func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.Invalid, "read disk", s.serial, "offset %d", off)
	}
	want := int(max(0, min(int64(len(p)), s.size-off)))
	for done := 0; done < want; {
		n, err := s.readPiece(p[done:want], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// readPiece reads the beginning of a range.
func (s *source) readPiece(p []byte, off int64) (int, error) {
	block := int64(s.disk.block)
	start := roundDown(off, block)
	end := min(roundUp(off+int64(len(p)), block), start+pieceBytes)
	n := 0
	err := s.do(context.Background(), request{
		run:   func(buf []byte) error { return s.pread(buf[:end-start], start) },
		after: func(buf []byte) { n = copy(p, buf[off-start:end-start]) },
	})
	return n, err
}

// Extents yields what the manager knew; everything is data without.
func (s *source) Extents(ctx context.Context) iter.Seq2[hypervisors.Extent, error] {
	if len(s.extents) > 0 {
		return func(yield func(hypervisors.Extent, error) bool) {
			for e, err := range s.extents.Extents() {
				if err == nil {
					err = ctx.Err()
				}
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
	return func(yield func(hypervisors.Extent, error) bool) {
		yield(hypervisors.Extent{Length: s.size, State: hypervisors.Data}, nil)
	}
}
