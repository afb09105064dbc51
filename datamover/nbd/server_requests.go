package nbd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Bounds of one client's requests at work in a server.
const (
	serverInFlight = 16
	serverBytes    = 2 * maxPayload
)

// command is a request as a server sees it.
type command struct {
	flags   Flags
	kind    uint16
	cookie  uint64
	offset  uint64
	length  uint32
	payload []byte
}

// transmission is the second phase of a serverConn.
type transmission struct {
	*serverConn
	br    *bufio.Reader
	slots chan struct{}
	bytes *semaphore.Weighted
	wmu   sync.Mutex
	work  sync.WaitGroup
}

// transmit answers requests until the client leaves or ctx ends.
func (c *serverConn) transmit(ctx context.Context) error {
	t := &transmission{
		serverConn: c, br: bufio.NewReaderSize(c.nc, 32<<10), slots: make(chan struct{}, serverInFlight),
		bytes: semaphore.NewWeighted(serverBytes),
	}
	defer t.work.Wait()
	for {
		cmd, err := t.next(ctx)
		if errors.Is(err, errGoodbye) || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		t.slots <- struct{}{}
		t.work.Go(func() {
			defer func() { <-t.slots }()
			defer t.bytes.Release(weight(cmd))
			if err := t.handle(ctx, cmd); err != nil {
				_ = c.raw.Close() // a reply that is half sent cannot be taken back
			}
		})
	}
}

// weight is how much memory a command needs.
func weight(cmd command) int64 {
	if cmd.kind != cmdRead && cmd.kind != cmdWrite {
		return 0
	}
	return min(int64(cmd.length), maxPayload)
}

// next reads one request with its payload.
func (t *transmission) next(ctx context.Context) (command, error) {
	var b [28]byte
	if _, err := io.ReadFull(t.br, b[:]); err != nil {
		return command{}, err
	}
	if be.Uint32(b[:]) != magicRequest {
		return command{}, protocolError("request magic %#x", be.Uint32(b[:]))
	}
	cmd := command{
		flags: Flags(be.Uint16(b[4:])), kind: be.Uint16(b[6:]), cookie: be.Uint64(b[8:]), offset: be.Uint64(b[16:]),
		length: be.Uint32(b[24:]),
	}
	if cmd.kind == cmdDisc {
		return cmd, errGoodbye
	}
	if cmd.kind == cmdWrite && cmd.length > maxPayload {
		return cmd, protocolError("write of %d bytes", cmd.length)
	}
	if err := t.bytes.Acquire(ctx, weight(cmd)); err != nil {
		return cmd, err
	}
	if cmd.kind != cmdWrite {
		return cmd, nil
	}
	cmd.payload = make([]byte, cmd.length)
	if _, err := io.ReadFull(t.br, cmd.payload); err != nil {
		t.bytes.Release(weight(cmd))
		return cmd, err
	}
	return cmd, nil
}

// handle carries a request out and answers it. An error means that the answer could not be sent.
func (t *transmission) handle(ctx context.Context, cmd command) error {
	b := t.export.Backend
	off, n := int64(cmd.offset), int64(cmd.length)
	if errno := t.refuse(cmd); errno != 0 {
		return t.fail(cmd, errno)
	}
	var err error
	switch cmd.kind {
	case cmdRead:
		p := make([]byte, n)
		var m int
		if m, err = b.ReadAt(p, off); m == len(p) {
			return t.data(cmd, p)
		} else if err == nil {
			err = io.ErrUnexpectedEOF
		}
	case cmdWrite:
		_, err = b.WriteAt(cmd.payload, off)
	case cmdWriteZeroes:
		err = b.Zero(ctx, off, n)
	case cmdFlush:
		err = b.Flush(ctx)
	case cmdBlockStatus:
		return t.status(ctx, cmd)
	}
	if err == nil && cmd.flags&FUA != 0 && cmd.kind != cmdFlush {
		err = b.Flush(ctx)
	}
	if err != nil {
		t.server.log.Warn("nbd request failed", "err", err)
		return t.fail(cmd, errnoOf(err))
	}
	return t.success(cmd)
}

// refuse checks what a client may ask for.
func (t *transmission) refuse(cmd command) Errno {
	minimum, _, maximum := t.export.blocks()
	m := uint64(minimum)
	outside := cmd.offset > uint64(t.export.Backend.Size()) || uint64(cmd.length) > uint64(t.export.Backend.Size())-cmd.offset
	changes := cmd.kind == cmdWrite || cmd.kind == cmdWriteZeroes
	payload := cmd.kind == cmdRead || cmd.kind == cmdWrite
	switch {
	case cmd.kind == cmdFlush && !t.export.ReadOnly:
		return 0
	case cmd.kind != cmdRead && cmd.kind != cmdBlockStatus && !changes:
		return EINVAL
	case changes && t.export.ReadOnly:
		return EPERM
	case outside && cmd.kind == cmdWrite:
		return ENOSPC
	case outside, cmd.length == 0, cmd.offset%m != 0, uint64(cmd.length)%m != 0:
		return EINVAL
	case payload && int64(cmd.length) > int64(maximum):
		return EOVERFLOW
	case cmd.kind == cmdBlockStatus && (len(t.contexts) == 0 || !t.structured):
		return EINVAL
	case cmd.kind == cmdWriteZeroes && cmd.flags&FastZero != 0:
		return ENOTSUP // never advertised
	}
	return 0
}

// errnoOf finds the number that tells a client best what happened.
func errnoOf(err error) Errno {
	if e, ok := errors.AsType[Errno](err); ok {
		return e
	}
	switch fault.KindOf(err) {
	case fault.Denied:
		return EPERM
	case fault.Unsupported:
		return ENOTSUP
	case fault.Canceled:
		return ESHUTDOWN
	}
	return EIO
}

func (t *transmission) write(bufs ...[]byte) error {
	t.wmu.Lock()
	defer t.wmu.Unlock()
	v := net.Buffers(bufs)
	_, err := v.WriteTo(t.nc)
	return err
}

func simpleHead(cmd command, errno Errno) []byte {
	b := be.AppendUint32(nil, magicSimple)
	b = be.AppendUint32(b, uint32(errno))
	return be.AppendUint64(b, cmd.cookie)
}

func chunkHead(cmd command, flags, kind uint16, length int) []byte {
	b := be.AppendUint32(make([]byte, 0, 32), magicStructured)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, kind)
	b = be.AppendUint64(b, cmd.cookie)
	return be.AppendUint32(b, uint32(length))
}

func (t *transmission) success(cmd command) error {
	if !t.structured {
		return t.write(simpleHead(cmd, 0))
	}
	return t.write(chunkHead(cmd, chunkFlagDone, chunkNone, 0))
}

func (t *transmission) fail(cmd command, errno Errno) error {
	if !t.structured {
		return t.write(simpleHead(cmd, errno))
	}
	text := errno.Error()
	b := chunkHead(cmd, chunkFlagDone, chunkError, 6+len(text))
	b = be.AppendUint32(b, uint32(errno))
	b = be.AppendUint16(b, uint16(len(text)))
	return t.write(append(b, text...))
}

func (t *transmission) data(cmd command, p []byte) error {
	if !t.structured {
		return t.write(simpleHead(cmd, 0), p)
	}
	b := chunkHead(cmd, chunkFlagDone, chunkOffsetData, 8+len(p))
	return t.write(be.AppendUint64(b, cmd.offset), p)
}

// status answers a BLOCK_STATUS with one chunk for each selected context.
func (t *transmission) status(ctx context.Context, cmd command) error {
	var out [][]byte
	for id, name := range t.contexts {
		list, err := t.export.Backend.Extents(ctx, name, int64(cmd.offset), int64(cmd.length))
		list = clip(append([]Extent(nil), list...), 0, int64(cmd.length))
		if err != nil || len(list) == 0 {
			t.server.log.Warn("nbd block status failed", "err", err, "extents", len(list))
			return t.fail(cmd, errnoOf(err))
		}
		list = list[:min(len(list), maxExtents)]
		flags := uint16(0)
		if id == len(t.contexts)-1 {
			flags = chunkFlagDone
		}
		b := chunkHead(cmd, flags, chunkBlockStatus, 4+8*len(list))
		b = be.AppendUint32(b, uint32(id))
		for _, e := range list {
			b = be.AppendUint32(be.AppendUint32(b, uint32(e.Length)), e.Flags)
		}
		out = append(out, b)
	}
	return t.write(out...)
}
