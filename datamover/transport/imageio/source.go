package imageiotransport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// maxRead is the most that one request asks for.
const maxRead = 8 << 20

// OpenSource opens an image for reading. ctx bounds the opening only; Close makes calls under way return.
func (o Options) OpenSource(ctx context.Context, e hypervisors.Export) (hypervisors.FrozenDisk, error) {
	l, err := open(ctx, e, o, false)
	if err != nil {
		return nil, err
	}
	s := &source{link: l, dirty: e.DirtyContext != ""}
	if err := s.check(ctx); err != nil {
		l.close()
		return nil, err
	}
	if e.Imageio.Checksum && l.has.checksum && !s.dirty {
		s.sum = newDigests(l.size)
	}
	l.keepAlive(o.interval(*e.Imageio))
	return s, nil
}

// source is a frozen disk.
type source struct {
	link  *link
	dirty bool
	sum   *digests // nil where nothing is compared

	listing sync.Mutex
	extents hypervisors.ExtentMap
}

// check looks whether the image is the one that was announced.
func (s *source) check(ctx context.Context) error {
	if s.dirty && !s.link.has.extents {
		return noChanges(s.link.name, errors.New("the daemon has no extents"))
	}
	size, err := s.link.readSize(ctx)
	if err != nil {
		return s.link.explain("open image transfer", err)
	}
	if size != s.link.size {
		return wrongSize(s.link.name, size, s.link.size)
	}
	return nil
}

func wrongSize(name string, got, want int64) error {
	return fault.New(fault.Conflict, "open image transfer", name, "it has %d bytes, the platform said %d", got, want).Explain(
		"The disk that the oVirt host serves has another size than the disk that was frozen.",
		"Start the task again; if it happens again, the disk was resized under way.")
}

// Size implements hypervisors.FrozenDisk.
func (s *source) Size() int64 { return s.link.size }

// Close closes all connections before it returns; calls under way fail.
func (s *source) Close() error {
	s.link.close()
	return nil
}

// ReadAt implements hypervisors.FrozenDisk.
func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.Invalid, "read disk", s.link.name, "offset %d", off)
	}
	n := int(max(0, min(int64(len(p)), s.link.size-off)))
	for done := 0; done < n; {
		part := p[done:min(n, done+maxRead)]
		if err := s.link.read(s.link.closed, part, off+int64(done)); err != nil {
			return done, s.link.explain("read disk", err)
		}
		done += len(part)
	}
	if s.sum != nil {
		s.sum.data(off, p[:n])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// read fills p. After an error it goes on with what is missing.
func (l *link) read(ctx context.Context, p []byte, off int64) error {
	return l.do(ctx, false, func(ctx context.Context, c *conn) error {
		n, _, err := l.get(ctx, c, p, off)
		p, off = p[n:], off+int64(n)
		if err != nil && n > 0 {
			return &progressError{err}
		}
		return err
	})
}

// readSize reads a byte, which is an activity that keeps a transfer alive, and returns the size that comes with it.
func (l *link) readSize(ctx context.Context) (size int64, err error) {
	err = l.do(ctx, false, func(ctx context.Context, c *conn) (err error) {
		_, size, err = l.get(ctx, c, make([]byte, 1), 0)
		return err
	})
	return size, err
}

// get asks once for a range, and returns how much of it arrived and the image's size as the daemon says it.
func (l *link) get(ctx context.Context, c *conn, p []byte, off int64) (n int, size int64, err error) {
	first, last := strconv.FormatInt(off, 10), strconv.FormatInt(off+int64(len(p))-1, 10)
	req := call{method: http.MethodGet, path: l.path, header: "Range: bytes=" + first + "-" + last + "\r\n", stall: l.stall}
	err = c.exchange(ctx, req, func(r *http.Response) error {
		total, ok := strings.CutPrefix(r.Header.Get("Content-Range"), "bytes "+first+"-"+last+"/")
		if size, err = strconv.ParseInt(total, 10, 64); !ok || err != nil {
			return badAnswer("asked for bytes %s-%s it sent %q", first, last, r.Header.Get("Content-Range"))
		}
		if r.ContentLength >= 0 && r.ContentLength != int64(len(p)) {
			return badAnswer("it sends %d bytes where %d were asked for", r.ContentLength, len(p))
		}
		n, err = io.ReadFull(r.Body, p)
		if err == io.ErrUnexpectedEOF || err == io.EOF { //nolint:errorlint // ReadFull's own
			err = &lostError{fmt.Errorf("%d of %d bytes arrived", n, len(p))}
		}
		return err
	}, http.StatusPartialContent)
	return n, size, err
}

// Extents lists the extents once; they are kept, for a frozen disk's do not change.
func (s *source) Extents(ctx context.Context) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		if !s.link.has.extents {
			yield(hypervisors.Extent{Length: s.link.size, State: hypervisors.Data}, nil)
			return
		}
		m, err := s.list(ctx)
		if err != nil {
			yield(hypervisors.Extent{}, err)
			return
		}
		for e, err := range m.Extents() {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil && s.sum != nil && e.State == hypervisors.Zero {
				s.sum.zero(e.Offset, e.Length)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (s *source) list(ctx context.Context) (hypervisors.ExtentMap, error) {
	s.listing.Lock()
	defer s.listing.Unlock()
	if s.extents != nil {
		return s.extents, nil
	}
	m, err := s.link.listExtents(ctx, s.dirty)
	if err == nil {
		s.extents = m
	}
	return m, err
}

// Confirm compares what was read with the daemon's own checksum, where that was asked for and all of the disk was read.
func (s *source) Confirm(ctx context.Context) error {
	if s.sum == nil {
		return nil
	}
	got, blockBytes, ok := s.sum.total()
	if !ok {
		s.link.log.Warn("the checksum of an image transfer is not compared: not all of the disk was read", "disk", s.link.name)
		return nil
	}
	want, err := s.link.checksum(ctx, blockBytes)
	if err != nil {
		return s.link.explain("ask for checksum", err)
	}
	if got != want {
		return fault.New(fault.Corrupt, "compare checksum", s.link.name, "what arrived has %s, the daemon says %s", got, want).Explain(
			"What arrived at the mover is not what the oVirt host has in the disk: it was changed on the way, or the host reads its storage differently each time.",
			"Start the task again. If it fails again, check the memory and network adapters of the mover and the host.")
	}
	return nil
}
