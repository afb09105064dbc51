package repo

import (
	"context"
	"iter"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/lab/bench/images"
)

// frozen is a raw image as a platform would export it: holes are zero, and with a record of changes, what is not in
// it is unchanged.
type frozen struct {
	hypervisors.Settled
	*os.File
	size    int64
	changes *images.Changes
}

func openFrozen(path string, changes *images.Changes) (*frozen, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &frozen{File: f, size: info.Size(), changes: changes}, nil
}

// Size implements hypervisors.FrozenDisk.
func (d *frozen) Size() int64 { return d.size }

// Extents implements hypervisors.FrozenDisk.
func (d *frozen) Extents(context.Context) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		ranges, rest, err := d.ranges()
		if err != nil {
			yield(hypervisors.Extent{}, err)
			return
		}
		at := int64(0)
		tell := func(off, n int64, s hypervisors.ExtentState) bool {
			at = off + n
			return n == 0 || yield(hypervisors.Extent{Offset: off, Length: n, State: s}, nil)
		}
		for _, e := range ranges {
			if !tell(at, e.Offset-at, rest) || !tell(e.Offset, e.Length, hypervisors.Data) {
				return
			}
		}
		tell(at, d.size-at, rest)
	}
}

// ranges are what has to be read, and what the rest is.
func (d *frozen) ranges() ([]images.Extent, hypervisors.ExtentState, error) {
	if d.changes != nil {
		return d.changes.Changed, hypervisors.Unchanged, nil
	}
	data, err := images.DataExtents(d.File, d.size)
	return data, hypervisors.Zero, err
}

// target is a new sparse file.
type target struct {
	*os.File
	size int64
}

func createTarget(path string, size int64) (*target, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		_ = f.Close()
		return nil, err
	}
	return &target{File: f, size: size}, nil
}

// Size implements hypervisors.TargetDisk.
func (d *target) Size() int64 { return d.size }

// Zero implements hypervisors.TargetDisk.
func (d *target) Zero(_ context.Context, off, n int64) error {
	return unix.Fallocate(int(d.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// Flush implements hypervisors.TargetDisk. Like the peers it leaves the writing back to the kernel: what is compared
// is the engines, not this machine's disk.
func (d *target) Flush(context.Context) error { return nil }
