package imagefile

import (
	"context"
	"io"
	"iter"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/qcow2"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// Format of an image file.
type Format string

// The formats.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
)

// ParseFormat accepts the name of a format.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case Raw, QCOW2:
		return f, nil
	}
	return "", fault.New(fault.Invalid, "export", "", "unknown image format %q", s).Explain("", "Use --to raw or --to qcow2.")
}

// Source is an image to be written out; *store.ImageReader is one. ReadAt is called from several goroutines.
type Source interface {
	io.ReaderAt
	Size() int64
	Extents(ctx context.Context) iter.Seq2[store.Extent, error]
}

// Options of Write. Progress is told the bytes of data written so far and in all, from any goroutine.
type Options struct {
	Format   Format
	Force    bool
	Workers  int // 0 is one per CPU
	Progress func(done, total int64)
}

// Result says what Write wrote.
type Result struct {
	SizeBytes int64 // the disk's virtual size
	DataBytes int64 // that were read and written; the rest are holes
	FileBytes int64 // the length of the file
}

const (
	pieceBytes = 1 << 20 // what one goroutine reads and writes at a time
	blockBytes = 4096    // the smallest hole that a raw file gets
)

// Write makes the file path from src. What is not data in src stays a hole.
func Write(ctx context.Context, path string, src Source, o Options) (Result, error) {
	total, err := dataBytes(ctx, src)
	if err != nil {
		return Result{}, err
	}
	f, err := Create(path, o.Force)
	if err != nil {
		return Result{}, err
	}
	defer f.Close()
	place, finish, err := layout(f, src.Size(), o.Format)
	if err != nil {
		return Result{}, err
	}
	if err := copyData(ctx, f, src, place, total, o); err != nil {
		return Result{}, explain(path, err)
	}
	fileBytes, err := finish()
	if err == nil {
		err = f.Truncate(fileBytes)
	}
	if err != nil {
		return Result{}, explain(path, err)
	}
	return Result{SizeBytes: src.Size(), DataBytes: total, FileBytes: fileBytes}, f.Commit()
}

// placer says where the data of the disk's range [off, off+n) goes, and how much of it goes there in one piece.
type placer func(off, n int64) (place, length int64, err error)

func layout(f *File, size int64, format Format) (placer, func() (int64, error), error) {
	if format == Raw {
		same := func(off, n int64) (int64, int64, error) { return off, n, nil }
		return same, func() (int64, error) { return size, nil }, nil
	}
	w, err := qcow2.New(f, size)
	if err != nil {
		return nil, nil, err
	}
	return w.Map, w.Finish, nil
}

// copyData cuts the data into pieces and hands them to workers, each of which reads, and so verifies, and writes.
func copyData(ctx context.Context, f *File, src Source, place placer, total int64, o Options) error {
	workers := o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	buffers := make(chan []byte, workers)
	for range workers {
		buffers <- make([]byte, pieceBytes)
	}
	var done atomic.Int64
	report := func(n int64) {
		if now := done.Add(n); o.Progress != nil {
			o.Progress(now, total)
		}
	}
	report(0)
	group, ctx := errgroup.WithContext(ctx)
	for r, err := range ranges(ctx, src) {
		for err == nil && r.length > 0 {
			var at, n int64
			if at, n, err = place(r.off, min(r.length, pieceBytes)); err != nil {
				break
			}
			var buffer []byte
			select {
			case buffer = <-buffers:
			case <-ctx.Done():
				return first(group.Wait(), context.Cause(ctx))
			}
			off := r.off
			group.Go(func() error {
				defer func() { buffers <- buffer }()
				if err := copyPiece(f, src, buffer[:n], off, at, o.Format == Raw); err != nil {
					return err
				}
				report(n)
				return nil
			})
			r.off, r.length = r.off+n, r.length-n
		}
		if err != nil {
			return first(group.Wait(), err)
		}
	}
	return group.Wait()
}

// first prefers what went wrong in a worker: the rest follows from it.
func first(worker, own error) error {
	if worker != nil {
		return worker
	}
	return own
}

func copyPiece(f *File, src Source, p []byte, off, at int64, holes bool) error {
	if n, err := src.ReadAt(p, off); n < len(p) {
		return fault.Context("read image", "", err)
	}
	if !holes {
		_, err := f.WriteAt(p, at)
		return err
	}
	for start, end := range dataRuns(p) {
		if _, err := f.WriteAt(p[start:end], at+int64(start)); err != nil {
			return err
		}
	}
	return nil
}

// dataRuns yields the ranges of p that are not blocks of zeros.
func dataRuns(p []byte) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for start := 0; start < len(p); {
			end := start
			for end < len(p) && !zero(p[end:min(end+blockBytes, len(p))]) {
				end = min(end+blockBytes, len(p))
			}
			if end > start && !yield(start, end) {
				return
			}
			start = end + blockBytes
		}
	}
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

type span struct{ off, length int64 }

// ranges yields the data of src widened to whole qcow2 clusters, ascending, without overlap.
func ranges(ctx context.Context, src Source) iter.Seq2[span, error] {
	const mask = qcow2.ClusterBytes - 1
	return func(yield func(span, error) bool) {
		var last int64
		for e, err := range src.Extents(ctx) {
			if err != nil {
				yield(span{}, err)
				return
			}
			if e.Zero {
				continue
			}
			start, end := max(e.Offset&^mask, last), min((e.Offset+e.Length+mask)&^mask, src.Size())
			if end <= start {
				continue
			}
			last = end
			if !yield(span{start, end - start}, nil) {
				return
			}
		}
	}
}

func dataBytes(ctx context.Context, src Source) (int64, error) {
	var n int64
	for r, err := range ranges(ctx, src) {
		if err != nil {
			return 0, err
		}
		n += r.length
	}
	return n, nil
}

func explain(path string, err error) error {
	if kind := fault.KindOf(err); kind == fault.Transient {
		return fault.Wrap(kind, op, path, err).Explain("The file could not be written to its end and was removed.",
			"Make room on the file system, or choose another one with --out.")
	}
	return err
}
