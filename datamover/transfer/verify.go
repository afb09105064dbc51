package transfer

import (
	"bytes"
	"context"
	"iter"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Verify reads a disk back and compares it with the image it was restored from. What the disk has beyond the image
// must be zeros. Ranges that both say are zeros are not read.
func Verify(ctx context.Context, want ImageSource, got hypervisors.FrozenDisk, o Options) (Result, error) {
	if got.Size() < want.Size() {
		return Result{}, fault.New(fault.Corrupt, "compare disk", "", "it has %d bytes, the image %d", got.Size(), want.Size())
	}
	chunk := int64(want.ChunkBytes())
	m := newMeter(got.Size(), BottleneckCPU, [2]string{}, o)
	m.verifying = true
	p := pipeline{
		segments: func(ctx context.Context) iter.Seq2[hypervisors.Extent, error] {
			both := bothZero(padded(image(ctx, want), want.Size(), got.Size()), disk(ctx, got, true))
			return segments(both, got.Size(), chunk, o.segmentBytes(chunk, 0))
		},
		buffer: o.segmentBytes(chunk, 0), meter: m, options: o,
		read: func(p []byte, off int64) error { return readFull(got, p, off) },
		write: func(_ context.Context, p []byte, off int64) error {
			return compare(want, p, off)
		},
		zero: func(context.Context, int64, int64) error { return nil },
	}
	return m.run(ctx, &p)
}

// compare compares bytes of a disk with the image.
func compare(want ImageSource, p []byte, off int64) error {
	b := make([]byte, len(p)) // beyond the image it stays zeros
	if n := min(int64(len(p)), want.Size()-off); n > 0 {
		if err := readFull(want, b[:n], off); err != nil {
			return err
		}
	}
	if bytes.Equal(b, p) {
		return nil
	}
	at := 0
	for b[at] == p[at] {
		at++
	}
	return fault.New(fault.Corrupt, "compare disk", "", "byte %d is not what was written", off+int64(at)).Explain(
		"The restored disk does not hold what the backup holds: the storage under it lost or changed data.",
		"Do not use the restored VM. Check the datastore and restore to another one.")
}

// padded adds zeros behind extents that end at from, up to size.
func padded(extents iter.Seq2[hypervisors.Extent, error], from, size int64) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		for e, err := range extents {
			if !yield(e, err) || err != nil {
				return
			}
		}
		if size > from {
			yield(hypervisors.Extent{Offset: from, Length: size - from, State: hypervisors.Zero}, nil)
		}
	}
}

// bothZero joins the extents of two views of a disk: zero where both are, else data.
func bothZero(a, b iter.Seq2[hypervisors.Extent, error]) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		next, stop := iter.Pull2(b)
		defer stop()
		var y hypervisors.Extent
		for x, err := range a {
			for err == nil && x.Length > 0 {
				if y.Length == 0 {
					var ok bool
					if y, err, ok = next(); !ok {
						err = fault.New(fault.Internal, "read extents", "", "they end at %d", x.Offset)
					}
					continue
				}
				n := min(x.Length, y.Length)
				e := hypervisors.Extent{Offset: x.Offset, Length: n, State: hypervisors.Data}
				if x.State == hypervisors.Zero && y.State == hypervisors.Zero {
					e.State = hypervisors.Zero
				}
				if !yield(e, nil) {
					return
				}
				x.Offset, x.Length = x.Offset+n, x.Length-n
				y.Length -= n
			}
			if err != nil {
				yield(hypervisors.Extent{}, err)
				return
			}
		}
	}
}
