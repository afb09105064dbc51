//go:build linux

package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/internal/fault"
)

const (
	// pieceBytes is the largest request and the size of a buffer.
	pieceBytes = 1 << 20
	// bufferAlign is enough for every device's direct I/O.
	bufferAlign = 4096
	// headBytes of all paths to a LUN are compared when it is opened.
	headBytes = 64 << 10
)

var errClosed = fault.Wrap(fault.Canceled, "read LUN", "", fs.ErrClosed)

// Options of Open. The zero value is good.
type Options struct {
	System System
	Depth  int          // requests of at most 1 MiB in flight for one LUN; 0 means 16
	Log    *slog.Logger // nil logs nothing
}

// LUN is an open LUN. Its ReadAt may be called from several goroutines.
type LUN struct {
	wwn    string
	size   int64
	block  int64
	paths  []*os.File
	log    *slog.Logger
	good   atomic.Int32 // the path that worked last
	faults atomic.Int64

	// buffers holds as many as there may be requests in flight; nil ones are made when they are used first.
	buffers chan []byte
	closed  chan struct{}
	once    sync.Once
}

// Open finds a LUN by its WWN and opens all its paths for reading. size is what the platform says it has, 0 if that is
// not known.
func (o Options) Open(wwn string, size int64) (*LUN, error) {
	s := o.System.WithDefaults()
	devices, err := s.find(wwn, size)
	if err != nil {
		return nil, err
	}
	if o.Depth <= 0 {
		o.Depth = 16
	}
	l := &LUN{
		wwn: wwn, size: devices[0].size, block: devices[0].block, log: o.Log,
		buffers: make(chan []byte, o.Depth), closed: make(chan struct{}),
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	for range o.Depth {
		l.buffers <- nil
	}
	if err := l.openPaths(s, devices); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// openPaths opens all paths that work, at least one, and compares what they begin with.
func (l *LUN) openPaths(s System, devices []device) error {
	var head []byte
	var broken error
	for _, d := range devices {
		f, err := os.OpenFile(filepath.Join(s.Dev, d.name), os.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err == nil {
			err = s.verify(f, d, l.wwn)
		}
		mine := Aligned(int(min(headBytes, l.size) / l.block * l.block))
		if err == nil {
			_, err = f.ReadAt(mine, 0)
		}
		if err != nil {
			if f != nil {
				_ = f.Close()
			}
			l.log.Warn("a path to the LUN does not work", "lun", l.wwn, "path", d.name, "err", err)
			broken = fmt.Errorf("/dev/%s: %w", d.name, err)
			continue
		}
		l.paths = append(l.paths, f)
		if head == nil {
			head = mine
		} else if !bytes.Equal(head, mine) {
			return notOne(l.wwn, filepath.Base(l.paths[0].Name()), d.name)
		}
	}
	if len(l.paths) == 0 {
		return l.unreadable(broken)
	}
	return nil
}

func (l *LUN) unreadable(err error) error {
	kind := fault.Transient
	if k := fault.KindOf(err); k == fault.Denied || k == fault.Canceled {
		kind = k
	}
	return fault.Wrap(kind, "read LUN", l.wwn, err).Explain(
		"The mover cannot read the LUN on any path: the storage network or the array has a problem, or the LUN was taken away.",
		"Check the mover's connection to the storage, then start the task again.")
}

// verify makes sure that what was opened is the device that was found: names are given anew.
func (s System) verify(f *os.File, d device, wwn string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)); st.Mode&unix.S_IFMT != unix.S_IFBLK || number != d.number {
		return unix.ENODEV
	}
	var size uint64
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); no != 0 {
		return no
	}
	now, err := s.find(wwn, d.size)
	if err != nil {
		return err
	}
	for _, n := range now {
		if n == d && size == uint64(d.size) {
			return nil
		}
	}
	return unix.ENODEV
}

// Name returns the WWN.
func (l *LUN) Name() string { return l.wwn }

// Size returns the LUN's size in bytes.
func (l *LUN) Size() int64 { return l.size }

// Paths returns how many paths are open.
func (l *LUN) Paths() int { return len(l.paths) }

// Faults returns how many requests failed on a path and were answered by another one.
func (l *LUN) Faults() int64 { return l.faults.Load() }

// Close makes calls return. The kernel lets go of a device when its last request has ended. It may be repeated.
func (l *LUN) Close() error {
	l.once.Do(func() {
		close(l.closed)
		for _, f := range l.paths {
			_ = f.Close()
		}
	})
	return nil
}

// ReadAt implements io.ReaderAt. A range of several MiB is read piece by piece; callers that want several requests in
// flight call it from several goroutines.
func (l *LUN) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.Invalid, "read LUN", l.wwn, "offset %d", off)
	}
	want := int(max(0, min(int64(len(p)), l.size-off)))
	for done := 0; done < want; {
		n, err := l.piece(p[done:want], off+int64(done))
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

// piece reads the begin of a range by way of a buffer of ours. When the LUN is closed it returns at once, and the
// request goes on alone with its buffer.
func (l *LUN) piece(p []byte, off int64) (int, error) {
	var buf []byte
	select {
	case <-l.closed:
		return 0, errClosed
	case buf = <-l.buffers:
	}
	if buf == nil {
		buf = Aligned(pieceBytes)
	}
	start := off / l.block * l.block
	end := min((off+int64(len(p))+l.block-1)/l.block*l.block, start+pieceBytes)
	done, left := make(chan error), make(chan struct{})
	go func() {
		err := l.read(buf[:end-start], start)
		select {
		case done <- err: // the caller has the buffer now
		case <-left:
			l.buffers <- buf
		}
	}()
	var err error
	select {
	case err = <-done:
	case <-l.closed:
		close(left)
		return 0, errClosed
	}
	n := 0
	if err == nil {
		n = copy(p, buf[off-start:end-start])
	}
	l.buffers <- buf
	return n, err
}

// read reads whole blocks, on the path that worked last and then on the others.
func (l *LUN) read(p []byte, off int64) error {
	first := int(l.good.Load())
	var last error
	for i := range l.paths {
		at := (first + i) % len(l.paths)
		n, err := l.paths[at].ReadAt(p, off)
		if n == len(p) {
			if i > 0 {
				l.good.Store(int32(at))
				l.faults.Add(1)
			}
			return nil
		}
		if errors.Is(err, os.ErrClosed) {
			return errClosed
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("%d of %d bytes at %d", n, len(p), off)
		}
		last = fmt.Errorf("%s: %w", l.paths[at].Name(), err)
		l.log.Warn("reading the LUN failed on a path", "lun", l.wwn, "path", filepath.Base(l.paths[at].Name()), "err", err)
	}
	return l.unreadable(last)
}

// Aligned returns memory that direct I/O can be done with.
func Aligned(n int) []byte {
	b := make([]byte, n+bufferAlign)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (bufferAlign - 1)
	return b[skip : skip+n : skip+n]
}
