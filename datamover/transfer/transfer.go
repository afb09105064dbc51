package transfer

import (
	"context"
	"io"
	"iter"
	"time"

	"golang.org/x/time/rate"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// ImageSink takes a disk's content; *store.ImageWriter is one. Offsets and lengths are multiples of ChunkBytes except
// at the disk's end. Its methods are called from several goroutines for ranges that do not overlap.
type ImageSink interface {
	ChunkBytes() int
	// FrameBytes is how much of what follows each other on the disk is compressed together at most.
	FrameBytes() int
	Write(ctx context.Context, off int64, p []byte) error
	Zero(ctx context.Context, off, n int64) error
	// Durable yields in ascending order what the image has already, of a transfer before: it is neither read nor written.
	Durable(ctx context.Context) iter.Seq2[store.Range, error]
}

// ImageSource gives an image's content; *store.ImageReader is one. ReadAt verifies what it returns and is called from
// several goroutines. Stream gives every range that Extents does not call zero once, verified, in any order and from
// at most as many goroutines as there are workers.
type ImageSource interface {
	io.ReaderAt
	Stream(ctx context.Context, workers int, fn func(off int64, p []byte) error) error
	Size() int64
	ChunkBytes() int
	Extents(ctx context.Context) iter.Seq2[store.Extent, error]
}

// Options of a transfer. The zero value is good.
type Options struct {
	Workers     int   // segments under way at once; 0 means 8
	BufferBytes int   // of one segment, rounded down to whole chunks; 0 means 1 MiB, or what fills a frame of the image
	Limit       int64 // bytes read per second; 0 means no limit
	// Shared, if not nil, limits the bytes per second of several transfers together, beside Limit.
	Shared *rate.Limiter
	// Progress is called every ProgressEvery (0 means 500 ms) and once at the end, never twice at once.
	Progress      func(Progress)
	ProgressEvery time.Duration
	// FullRead reads what the source says is unchanged, too.
	FullRead bool
	// Afresh reads what the image has already of a transfer before, too: for disks whose Confirm speaks of what was
	// read since they were opened and of nothing earlier.
	Afresh bool
	// SeedZero zeroes the image's holes on the target, which otherwise is trusted to read as zeros at first.
	SeedZero bool
	// VerifyTarget, if set, opens the target for reading after it was written and flushed; it is then compared with the
	// image. Restore closes the disk.
	VerifyTarget func(ctx context.Context) (hypervisors.FrozenDisk, error)
}

func (o Options) workers() int {
	if o.Workers > 0 {
		return o.Workers
	}
	return 8
}

// wait waits until n bytes may be moved, by the transfer's own limit and by that which it shares.
func (o Options) wait(ctx context.Context, own *rate.Limiter, n int) error {
	err := own.WaitN(ctx, n)
	for left := n; err == nil && o.Shared != nil && left > 0; {
		part := min(left, max(1, o.Shared.Burst()))
		err = o.Shared.WaitN(ctx, part)
		left -= part
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fault.Wrap(fault.Transient, "wait for bandwidth", "", err)
}

// segmentBytes is BufferBytes in whole chunks, at least one; frame is what fills a frame, or 0.
func (o Options) segmentBytes(chunk int64, frame int) int64 {
	b := int64(o.BufferBytes)
	if b <= 0 {
		b = int64(max(1<<20, frame))
	}
	return max(chunk, b-b%chunk)
}

// Result of a transfer.
type Result struct {
	BytesTotal   int64         `json:"bytes_total"`          // the disk's size
	BytesRead    int64         `json:"bytes_read"`           // from the source, by this transfer or by those that it goes on with
	BytesSkipped int64         `json:"bytes_skipped"`        // unchanged or zero
	BytesKept    int64         `json:"bytes_kept,omitempty"` // of BytesRead, what was durable already of a transfer before
	Elapsed      time.Duration `json:"elapsed_ns"`
	Verified     bool          `json:"verified,omitempty"` // the target was read back and is equal
}

// Bottleneck is what a transfer spends most of its time with.
type Bottleneck string

// The bottlenecks.
const (
	BottleneckSource Bottleneck = "source" // reading
	BottleneckCPU    Bottleneck = "cpu"    // this process has all processors busy
	BottleneckStore  Bottleneck = "store"  // the repository of a backup
	BottleneckTarget Bottleneck = "target" // the disk of a restore
	BottleneckLimit  Bottleneck = "limit"  // Options.Limit
)

// Progress of a transfer.
type Progress struct {
	BytesTotal   int64         `json:"bytes_total"`
	BytesScanned int64         `json:"bytes_scanned"` // read or skipped so far
	BytesRead    int64         `json:"bytes_read"`
	BytesSkipped int64         `json:"bytes_skipped"`
	Rate         int64         `json:"rate"` // bytes read per second of late
	ETA          time.Duration `json:"eta_ns"`
	Bottleneck   Bottleneck    `json:"bottleneck,omitempty"`
	Verifying    bool          `json:"verifying,omitempty"` // reading the target back
}

// Backup reads what src says is data and writes it to dst. On success dst has been given every range of the disk that
// is not unchanged, and src has confirmed what was read. When ctx ends it returns as soon as the calls of src and dst under way return; those of src have
// no ctx, so its owner should close it then.
func Backup(ctx context.Context, src hypervisors.FrozenDisk, dst ImageSink, o Options) (Result, error) {
	chunk := int64(dst.ChunkBytes())
	if chunk <= 0 {
		return Result{}, fault.New(fault.Invalid, "back up disk", "", "chunks of %d bytes", chunk)
	}
	m := newMeter(src.Size(), BottleneckStore, [2]string{"backup.transfer-started", "backup.transfer-middle"}, o)
	p := pipeline{
		segments: func(ctx context.Context) iter.Seq2[hypervisors.Extent, error] {
			all := segments(disk(ctx, src, o.FullRead), src.Size(), chunk, o.segmentBytes(chunk, dst.FrameBytes()))
			if o.Afresh {
				return all
			}
			return without(ctx, all, dst, m.kept)
		},
		buffer: o.segmentBytes(chunk, dst.FrameBytes()), meter: m, options: o,
		read: func(p []byte, off int64) error { return readFull(src, p, off) },
		write: func(ctx context.Context, p []byte, off int64) error {
			return dst.Write(ctx, off, p)
		},
		zero: dst.Zero,
	}
	res, err := m.run(ctx, &p)
	if err == nil {
		err = src.Confirm(ctx)
	}
	return res, err
}

// Restore writes an image to a new disk and flushes it. The disk may be larger than the image.
func Restore(ctx context.Context, src ImageSource, dst hypervisors.TargetDisk, o Options) (Result, error) {
	if dst.Size() < src.Size() {
		return Result{}, fault.New(fault.Invalid, "restore disk", "", "the target has %d bytes, the image %d", dst.Size(), src.Size())
	}
	chunk := int64(src.ChunkBytes())
	if chunk <= 0 {
		return Result{}, fault.New(fault.Invalid, "restore disk", "", "chunks of %d bytes", chunk)
	}
	m := newMeter(src.Size(), BottleneckTarget, [2]string{"", "restore.transfer-middle"}, o)
	m.streams = o.workers()
	res, err := m.run(ctx, &restoring{src: src, dst: dst, meter: m, options: o, buffer: o.segmentBytes(chunk, 0)})
	if err == nil && o.SeedZero && dst.Size() > src.Size() {
		err = dst.Zero(ctx, src.Size(), dst.Size()-src.Size())
	}
	if err == nil {
		err = dst.Flush(ctx)
	}
	if err != nil || o.VerifyTarget == nil {
		return res, err
	}
	back, err := o.VerifyTarget(ctx)
	if err != nil {
		return res, fault.Context("read the restored disk back", "", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = back.Close() }) // its ReadAt has no ctx
	_, err = Verify(ctx, src, back, o)
	stop()
	_ = back.Close()
	res.Verified = err == nil
	res.Elapsed = m.elapsed()
	return res, err
}

// readFull reads exactly len(p) bytes.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || err == io.EOF: //nolint:errorlint // ReadAt's contract names io.EOF itself
		return fault.New(fault.Transient, "read", "", "%d of %d bytes at %d", n, len(p), off)
	}
	return err
}
