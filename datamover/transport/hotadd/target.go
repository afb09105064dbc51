//go:build linux

package hotadd

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/hypervisors"
)

// zeroPiece is how much is zeroed at once: little enough that a target which has to write zeros can be given up.
const zeroPiece = 64 << 20

// OpenTarget waits for a disk and opens it for writing. ctx bounds the opening only; Close makes calls under way return.
func (o Options) OpenTarget(ctx context.Context, e hypervisors.Export) (hypervisors.TargetDisk, error) {
	d, err := o.open(ctx, e, true)
	if err != nil {
		return nil, err
	}
	return &target{device: d}, nil
}

// target is a new disk.
type target struct {
	*device
	// edges is held while blocks are written of which only a part is given.
	edges sync.Mutex
	// cannotPunch is set when the disk cannot zero a range without writing it.
	cannotPunch atomic.Bool
}

// WriteAt writes through to the disk, past the page cache; only Flush makes it durable.
func (t *target) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > t.size || int64(len(p)) > t.size-off {
		return 0, io.ErrShortWrite
	}
	for done := 0; done < len(p); {
		n, err := t.writePiece(p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// writePiece writes the beginning of a range: the part of a block that it begins or ends with, or whole blocks.
func (t *target) writePiece(p []byte, off int64) (int, error) {
	block := int64(t.disk.block)
	start := roundDown(off, block)
	if start == off && int64(len(p)) >= block {
		n := int(min(roundDown(int64(len(p)), block), pieceBytes))
		return n, t.do(context.Background(), request{
			before: func(buf []byte) { copy(buf, p[:n]) },
			run:    func(buf []byte) error { return t.pwrite(buf[:n], off) },
		})
	}
	n := int(min(start+block-off, int64(len(p))))
	t.edges.Lock()
	defer t.edges.Unlock()
	var old []byte
	err := t.do(context.Background(), request{
		run:   func(buf []byte) error { return t.pread(buf[:block], start) },
		after: func(buf []byte) { old = append(old, buf[:block]...) },
	})
	if err != nil {
		return 0, err
	}
	copy(old[off-start:], p[:n])
	return n, t.do(context.Background(), request{
		before: func(buf []byte) { copy(buf, old) },
		run:    func(buf []byte) error { return t.pwrite(buf[:block], start) },
	})
}

// Zero makes whole blocks read as zeros by telling the disk so: it gives their space back where the platform can, and
// writes zeros where it cannot.
func (t *target) Zero(ctx context.Context, off, n int64) error {
	if off < 0 || n < 0 || off > t.size || n > t.size-off {
		return io.ErrShortWrite
	}
	block := int64(t.disk.block)
	start, end := roundUp(off, block), roundDown(off+n, block)
	if start >= end {
		return t.writeZeros(off, n)
	}
	if err := t.writeZeros(off, start-off); err != nil {
		return err
	}
	for at := start; at < end; {
		piece := min(end-at, zeroPiece)
		if err := t.do(ctx, request{run: func([]byte) error { return t.zeroBlocks(at, piece) }}); err != nil {
			return err
		}
		at += piece
	}
	return t.writeZeros(end, off+n-end)
}

// writeZeros writes parts of blocks.
func (t *target) writeZeros(off, n int64) error {
	if n == 0 {
		return nil
	}
	_, err := t.WriteAt(make([]byte, n), off)
	return err
}

// zeroBlocks first asks for zeros that need not be written, which BLKZEROOUT never does: it tells the disk to keep the
// blocks allocated. BLKDISCARD would not promise zeros.
func (t *target) zeroBlocks(off, n int64) error {
	if !t.cannotPunch.Load() {
		err := unix.Fallocate(t.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
		t.cannotPunch.Store(true)
	}
	area := [2]uint64{uint64(off), uint64(n)}
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(t.fd), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&area))); no != 0 {
		return no
	}
	return nil
}

// Flush empties the disk's own cache.
func (t *target) Flush(ctx context.Context) error {
	return t.do(ctx, request{run: func([]byte) error { return unix.Fsync(t.fd) }})
}
