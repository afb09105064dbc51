package nbd

import (
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
)

// receiveReply reads one simple reply or one chunk of a structured one and applies it to its request. An error means
// that the stream cannot be trusted any more; what a server reports about a request is no error here.
func (c *conn) receiveReply() error {
	var b [20]byte
	if err := c.readFull(b[:16]); err != nil {
		return err
	}
	switch magic := be.Uint32(b[:]); magic {
	case magicSimple:
		return c.simpleReply(Errno(be.Uint32(b[4:])), be.Uint64(b[8:]))
	case magicStructured:
		if !c.structured {
			return protocolError("structured reply, which was not agreed on")
		}
		if err := c.readFull(b[16:]); err != nil {
			return err
		}
		return c.chunk(be.Uint16(b[4:]), be.Uint16(b[6:]), be.Uint64(b[8:]), be.Uint32(b[16:]))
	default:
		return protocolError("reply magic %#x", magic)
	}
}

func (c *conn) simpleReply(errno Errno, cookie uint64) error {
	req, err := c.lookup(cookie)
	if err != nil {
		return err
	}
	if c.structured && (req.cmd == cmdRead || req.cmd == cmdBlockStatus) {
		return protocolError("simple reply to command %d", req.cmd)
	}
	if errno != 0 {
		req.fail(errno, "", req.offset)
	} else if req.cmd == cmdRead {
		if err := c.fill(req, req.buf); err != nil {
			return err
		}
	}
	c.settle(cookie, req)
	return nil
}

// chunk reads one chunk of a structured reply.
func (c *conn) chunk(flags, kind uint16, cookie uint64, length uint32) error {
	req, err := c.lookup(cookie)
	if err != nil {
		return err
	}
	if flags&^chunkFlagDone != 0 {
		return protocolError("chunk flags %#x", flags)
	}
	done := flags&chunkFlagDone != 0
	switch {
	case kind == chunkNone:
		if length != 0 || !done {
			return protocolError("empty chunk with %d bytes, last: %v", length, done)
		}
	case kind == chunkOffsetData && req.cmd == cmdRead:
		err = c.dataChunk(req, length)
	case kind == chunkOffsetHole && req.cmd == cmdRead:
		err = c.holeChunk(req, length)
	case kind == chunkBlockStatus && req.cmd == cmdBlockStatus:
		err = c.statusChunk(req, length)
	case kind&chunkErrBit != 0:
		err = c.errorChunk(req, kind, length)
	default:
		err = protocolError("chunk of type %d for command %d", kind, req.cmd)
	}
	if err != nil || !done {
		return err
	}
	if err := req.complete(len(c.ids)); err != nil {
		return err
	}
	c.settle(cookie, req)
	return nil
}

// complete checks that a request without an error got everything it asked for.
func (r *request) complete(contexts int) error {
	switch {
	case r.err != nil:
	case r.cmd == cmdRead && r.got.total != r.length:
		return protocolError("read of %d bytes ended after %d", r.length, r.got.total)
	case r.cmd == cmdBlockStatus && len(r.extents) != contexts:
		return protocolError("block status of %d contexts, %d were selected", len(r.extents), contexts)
	}
	return nil
}

func (r *request) fail(errno Errno, message string, offset int64) {
	if r.err != nil {
		return
	}
	names := map[uint16]string{
		cmdRead: "read", cmdWrite: "write", cmdFlush: "flush", cmdTrim: "trim", cmdWriteZeroes: "zero", cmdBlockStatus: "block status",
	}
	e := fault.New(errno.Kind(), names[r.cmd], "", "at offset %d: %w", offset, errno)
	if message != "" {
		e = fault.New(errno.Kind(), names[r.cmd], "", "at offset %d: %w (%q)", offset, errno, message)
	}
	r.err = errno.explain(e)
}

func (c *conn) dataChunk(req *request, length uint32) error {
	if length <= 8 {
		return protocolError("data chunk of %d bytes", length)
	}
	var b [8]byte
	if err := c.readFull(b[:]); err != nil {
		return err
	}
	p, err := req.part(be.Uint64(b[:]), int64(length)-8)
	if err != nil {
		return err
	}
	return c.fill(req, p)
}

func (c *conn) holeChunk(req *request, length uint32) error {
	if length != 12 {
		return protocolError("hole chunk of %d bytes", length)
	}
	var b [12]byte
	if err := c.readFull(b[:]); err != nil {
		return err
	}
	p, err := req.part(be.Uint64(b[:]), int64(be.Uint32(b[8:])))
	if err != nil {
		return err
	}
	c.zero(req, p)
	return nil
}

// part returns the part of a read's buffer for a range of the export, once only for each byte.
func (r *request) part(offset uint64, n int64) ([]byte, error) {
	if offset < uint64(r.offset) || offset >= uint64(r.offset+r.length) || n <= 0 || n > r.offset+r.length-int64(offset) {
		return nil, protocolError("%d bytes at %d answer a read of %d bytes at %d", n, offset, r.length, r.offset)
	}
	at := int64(offset) - r.offset
	if err := r.got.add(at, at+n); err != nil {
		return nil, err
	}
	return r.buf[at : at+n], nil
}

func (c *conn) statusChunk(req *request, length uint32) error {
	if length < 12 || (length-4)%8 != 0 || (length-4)/8 > maxExtents {
		return protocolError("block status chunk of %d bytes", length)
	}
	var b [8]byte
	if err := c.readFull(b[:4]); err != nil {
		return err
	}
	name, ok := c.ids[be.Uint32(b[:])]
	if !ok {
		return protocolError("block status of context %d, which was not selected", be.Uint32(b[:]))
	}
	if _, dup := req.extents[name]; dup {
		return protocolError("block status of %q twice", name)
	}
	var list []Extent
	covered := int64(0)
	for range (length - 4) / 8 {
		if err := c.readFull(b[:]); err != nil {
			return err
		}
		e := Extent{Length: int64(be.Uint32(b[:])), Flags: be.Uint32(b[4:])}
		if e.Length == 0 || covered >= req.length {
			return protocolError("extent of %d bytes after %d of %d", e.Length, covered, req.length)
		}
		covered += e.Length
		list = append(list, e)
	}
	list[len(list)-1].Length -= max(0, covered-req.length) // the last one may reach further than we asked
	if req.extents == nil {
		req.extents = map[string][]Extent{}
	}
	req.extents[name] = list
	return nil
}

func (c *conn) errorChunk(req *request, kind uint16, length uint32) error {
	if req.errors++; req.errors > maxErrorChunks {
		return protocolError("more than %d errors for one request", maxErrorChunks)
	}
	if length < 6 || length > maxString+14 {
		return protocolError("error chunk of %d bytes", length)
	}
	b := make([]byte, length)
	if err := c.readFull(b); err != nil {
		return err
	}
	errno, n := Errno(be.Uint32(b)), int(be.Uint16(b[4:]))
	rest := b[6:]
	if errno == 0 || n > len(rest) {
		return protocolError("error chunk with number %d and a message of %d bytes in %d", errno, n, len(rest))
	}
	message, rest := string(rest[:n]), rest[n:]
	offset := req.offset
	switch {
	case kind == chunkError && len(rest) != 0, kind == chunkErrorOffset && len(rest) != 8:
		return protocolError("error chunk with %d bytes too many", len(rest))
	case kind == chunkErrorOffset:
		at := be.Uint64(rest)
		if at < uint64(req.offset) || at >= uint64(req.offset+req.length) {
			return protocolError("error at %d for a request of %d bytes at %d", at, req.length, req.offset)
		}
		offset = int64(at)
	}
	req.fail(errno, message, offset)
	return nil
}

// coverage keeps which bytes of a read have arrived.
type coverage struct {
	ranges [][2]int64 // sorted, never touching
	total  int64
}

func (v *coverage) add(from, to int64) error {
	i, _ := slices.BinarySearchFunc(v.ranges, from, func(r [2]int64, at int64) int {
		if r[1] < at {
			return -1
		}
		return 1
	})
	// ranges[i] is the first that ends at from or behind it.
	joinsLeft := i < len(v.ranges) && v.ranges[i][1] == from
	next := i
	if joinsLeft {
		next++
	}
	if next < len(v.ranges) && v.ranges[next][0] < to {
		return protocolError("bytes %d to %d of a read came twice", from, to)
	}
	joinsRight := next < len(v.ranges) && v.ranges[next][0] == to
	switch {
	case joinsLeft && joinsRight:
		v.ranges[i][1] = v.ranges[next][1]
		v.ranges = slices.Delete(v.ranges, next, next+1)
	case joinsLeft:
		v.ranges[i][1] = to
	case joinsRight:
		v.ranges[next][0] = from
	default:
		v.ranges = slices.Insert(v.ranges, i, [2]int64{from, to})
	}
	if len(v.ranges) > maxGaps {
		return protocolError("a read came in more than %d separate pieces", maxGaps)
	}
	v.total += to - from
	return nil
}
