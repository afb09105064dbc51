//go:build linux

package hotadd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/datamover/blockdev"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// pieceBytes is the largest request and the size of a buffer.
const pieceBytes = 1 << 20

var errClosed = fault.Wrap(fault.Canceled, "use disk", "", fs.ErrClosed)

// device is an open disk. Each request has a goroutine of its own, so that a caller need not wait for a disk that does
// not answer.
type device struct {
	guest  guest
	disk   disk
	serial string
	size   int64 // as announced; the disk itself may be larger by less than a sector
	fd     int
	// buffers holds as many as there may be requests in flight; nil ones are made when they are used first.
	buffers chan []byte
	closed  chan struct{}

	mu    sync.Mutex
	using int           // requests of the kernel under way, and one until Close
	idle  chan struct{} // closed when using is 0
}

// openDevice opens a disk past the page cache and for nobody else, except that what we write may be read meanwhile.
func openDevice(g guest, found disk, e hypervisors.Export, writing bool, depth int) (*device, error) {
	flags := unix.O_DIRECT | unix.O_CLOEXEC
	if writing {
		flags |= unix.O_RDWR
	}
	if writing || !e.Writable {
		flags |= unix.O_EXCL
	}
	fd, err := unix.Open(filepath.Join(g.Dev, found.name), flags, 0)
	if err != nil {
		return nil, err
	}
	if err := verify(g, fd, found, e.Serial); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	d := &device{
		guest: g, disk: found, serial: e.Serial, size: e.SizeBytes, fd: fd, using: 1,
		buffers: make(chan []byte, depth), closed: make(chan struct{}), idle: make(chan struct{}),
	}
	for range depth {
		d.buffers <- nil
	}
	return d, nil
}

// verify makes sure that what was opened is the disk that was found: names are given anew.
func verify(g guest, fd int, found disk, serial string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || number != found.number {
		return unix.ENODEV
	}
	var size uint64
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); no != 0 {
		return no
	}
	if now, err := g.look(found.name); err != nil || now != found || size != uint64(found.size) || !hasSerial(g.dir(found.name), serial) {
		return unix.ENODEV
	}
	return nil
}

// Size implements hypervisors.FrozenDisk and TargetDisk.
func (d *device) Size() int64 { return d.size }

// Close makes calls return at once, and returns itself when the kernel's last request has ended: after that nothing of
// ours can reach the disk, or what takes its place. A disk that does not answer is waited for until it is unplugged.
func (d *device) Close() error {
	d.mu.Lock()
	select {
	case <-d.closed:
	default:
		close(d.closed)
		d.release()
	}
	d.mu.Unlock()
	<-d.idle
	return nil
}

// release gives one use back. The caller holds mu.
func (d *device) release() {
	if d.using--; d.using == 0 {
		_ = unix.Close(d.fd)
		close(d.idle)
	}
}

// request is what do runs with a buffer. Only run may go on after the caller has left, so nothing of the caller's is
// touched in it. The others may be nil.
type request struct {
	before func(buf []byte)
	run    func(buf []byte) error
	after  func(buf []byte) // when run succeeded
}

// do runs a request. When ctx ends or the disk is closed first, do returns at once and run goes on alone with its
// buffer.
func (d *device) do(ctx context.Context, r request) error {
	buf, err := d.begin(ctx)
	if err != nil {
		return err
	}
	if r.before != nil {
		r.before(buf)
	}
	done, left := make(chan error), make(chan struct{})
	go func() {
		err := r.run(buf)
		select {
		case done <- err: // the caller has the buffer now
		case <-left:
			d.end(buf)
		}
	}()
	select {
	case err = <-done:
	case <-d.closed:
		close(left)
		return errClosed
	case <-ctx.Done():
		close(left)
		return ctx.Err()
	}
	if err == nil && r.after != nil {
		r.after(buf)
	}
	d.end(buf)
	return d.explain(err)
}

// begin takes a buffer and a use of the disk.
func (d *device) begin(ctx context.Context) ([]byte, error) {
	var buf []byte
	select {
	case buf = <-d.buffers:
	case <-d.closed:
		return nil, errClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.closed:
		return nil, errClosed
	default:
	}
	d.using++
	if buf == nil {
		buf = blockdev.Aligned(pieceBytes)
	}
	return buf, nil
}

// end gives both back.
func (d *device) end(buf []byte) {
	d.buffers <- buf
	d.mu.Lock()
	defer d.mu.Unlock()
	d.release()
}

// pread fills p, whose place on the disk and length are whole blocks.
func (d *device) pread(p []byte, off int64) error {
	return whole(p, off, func(p []byte, off int64) (int, error) { return unix.Pread(d.fd, p, off) })
}

func (d *device) pwrite(p []byte, off int64) error {
	return whole(p, off, func(p []byte, off int64) (int, error) { return unix.Pwrite(d.fd, p, off) })
}

// whole repeats a call until all of p is done.
func whole(p []byte, off int64, call func(p []byte, off int64) (int, error)) error {
	for len(p) > 0 {
		n, err := call(p, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF // a disk that was unplugged has no bytes
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// explain says of a failed request what it means to the admin: above all, whether the disk is still there.
func (d *device) explain(err error) error {
	if err == nil {
		return nil
	}
	gone := errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) || errors.Is(err, io.ErrUnexpectedEOF)
	// The kernel fails requests a moment before it takes the disk out of sysfs.
	for wait := 10 * time.Millisecond; !gone && wait < time.Second; wait *= 2 {
		now, lookErr := d.guest.look(d.disk.name)
		if gone = lookErr != nil || now.number != d.disk.number || !hasSerial(d.guest.dir(d.disk.name), d.serial); gone {
			break
		}
		select {
		case <-time.After(wait):
		case <-d.closed:
			return errClosed
		}
	}
	if gone {
		return fault.Wrap(fault.Transient, "use disk", d.serial, err).Explain(
			"The disk was unplugged from the mover while it was in use.", "Look on the platform who unplugged it, then start the task again.")
	}
	return fault.Wrap(fault.Transient, "use disk", d.serial, err).Explain(
		"The hypervisor reports an error of the disk to the mover: it lost the VM's disk, or its storage is full or broken.",
		"Check that the VM and its host are running and that the datastore has space, then start the task again.")
}
