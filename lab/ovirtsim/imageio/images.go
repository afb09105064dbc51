package imageio

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/crypto/blake2b"
)

const piece = 1 << 20 // bytes that are moved at once

// badRange is the answer to a range that is not there.
func badRange(size int64, format string, args ...any) error {
	e := status(http.StatusRequestedRangeNotSatisfiable, format, args...)
	if size >= 0 {
		e.contentRange = fmt.Sprintf("bytes */%d", size)
	}
	return e
}

// byteRange reads a Range header: the first byte, and the last or -1.
func byteRange(h string) (first, last int64, err error) {
	spec, ok := strings.CutPrefix(h, "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return 0, 0, badRange(-1, "Unsupported range: %q", h)
	}
	a, b, ok := strings.Cut(spec, "-")
	if a == "" {
		return 0, 0, badRange(-1, "suffix-byte-range-spec not supported yet")
	}
	first, err = strconv.ParseInt(a, 10, 63)
	last = -1
	if err == nil && b != "" {
		last, err = strconv.ParseInt(b, 10, 63)
	}
	if !ok || err != nil || first < 0 || b != "" && last < first {
		return 0, 0, badRange(-1, "Invalid range: %q", h)
	}
	return first, last, nil
}

// get sends a range of the image, or all of it.
func (r *request) get(id string) error {
	if r.URL.Query().Get("close") == "y" {
		r.Header().Set("Connection", "close")
	}
	off, last, ranged := int64(0), int64(-1), r.Request.Header.Get("Range")
	if ranged != "" {
		var err error
		if off, last, err = byteRange(ranged); err != nil {
			return err
		}
	}
	if err := r.authorize(id, false); err != nil {
		return err
	}
	size := min(r.ticket.SizeBytes, r.ticket.Backend.Size())
	n := size - off
	if last >= 0 {
		n = last - off + 1
	}
	if n < 0 || off+n > size { // from the very end on there are 0 bytes, which is no error of the daemon's
		return badRange(size, "Requested range out of allowed range")
	}
	h := r.Header()
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", "attachment")
	code := http.StatusOK
	if ranged != "" {
		code = http.StatusPartialContent
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, r.ticket.SizeBytes))
	}
	return r.operate(false, off, func(buf []byte) (int64, error) { return r.sendRange(buf, code, off, n) })
}

func (r *request) sendRange(buf []byte, code int, off, n int64) (done int64, err error) {
	for done < n && r.ticket.ctx.Err() == nil { // else its end says what happened
		p := buf[:min(int64(len(buf)), n-done)]
		if err := r.ticket.Backend.Read(r.ticket.ctx, p, off+done); err != nil {
			if r.sent {
				err = errBroken
			}
			return done, err
		}
		if done == 0 {
			r.WriteHeader(code)
			r.sent = true
		}
		if err := r.send(p); err != nil {
			return done, err
		}
		done += int64(len(p))
		r.server.moved(0, int64(len(p)))
	}
	if n == 0 {
		r.WriteHeader(code)
	}
	return done, nil
}

// operate runs an operation on the ticket.
func (r *request) operate(writing bool, off int64, op func(buf []byte) (int64, error)) error {
	defer r.server.work(writing)()
	_, end, err := r.ticket.begin(connOf(r.Request))
	if err != nil {
		return err
	}
	n, err := op(make([]byte, piece))
	if ended := end(off, n); ended != nil {
		if r.sent {
			return errBroken // a part of the answer has gone out
		}
		return ended
	}
	return err
}

// put takes a range of the image.
func (r *request) put(id string) error {
	q := r.URL.Query()
	if q.Get("close") == "y" {
		r.Header().Set("Connection", "close")
	}
	n := r.ContentLength
	r.unread = n > 0
	if n < 0 || len(r.TransferEncoding) > 0 {
		return status(http.StatusBadRequest, "Content-Length header is required")
	}
	off := int64(0)
	if h := r.Request.Header.Get("Content-Range"); h != "" {
		var err error
		if off, err = contentRange(h); err != nil {
			return err
		}
	}
	flush := q.Get("flush")
	if flush != "" && flush != "y" && flush != "n" {
		return status(http.StatusBadRequest, "Unsupported value '%s' for 'flush', expecting one of ['n', 'y']", flush)
	}
	if err := r.authorize(id, true); err != nil {
		return err
	}
	if n > r.ticket.SizeBytes-off {
		return badRange(r.ticket.SizeBytes, "Requested range out of allowed range")
	}
	r.unread = false
	return r.answer(r.operate(true, off, func(buf []byte) (int64, error) {
		done, err := r.takeRange(buf, off, n)
		if err == nil && flush != "n" {
			err = r.ticket.Backend.Flush(r.ticket.ctx)
		}
		return done, err
	}))
}

func (r *request) takeRange(buf []byte, off, n int64) (done int64, err error) {
	for done < n && r.ticket.ctx.Err() == nil {
		p := buf[:min(int64(len(buf)), n-done)]
		if _, err := io.ReadFull(r.Body, p); err != nil {
			return done, errBroken
		}
		if err := r.ticket.Backend.Write(r.ticket.ctx, p, off+done); err != nil {
			return done, err
		}
		done += int64(len(p))
		r.server.moved(int64(len(p)), 0)
	}
	return done, nil
}

// answer sends the empty answer of an operation that worked.
func (r *request) answer(err error) error {
	if err != nil {
		return err
	}
	r.Header().Set("Content-Length", "0")
	return r.send(nil)
}

// contentRange reads the only part of a Content-Range that counts: where it begins.
func contentRange(h string) (int64, error) {
	spec, ok := strings.CutPrefix(h, "bytes ")
	first, _, cut := strings.Cut(spec, "-")
	off, err := strconv.ParseInt(first, 10, 63)
	if !ok || !cut || err != nil || off < 0 {
		return 0, status(http.StatusBadRequest, "Invalid Content-Range: %q", h)
	}
	return off, nil
}

// patch zeroes or flushes.
func (r *request) patch(id string) error {
	var m struct {
		Op     string `json:"op"`
		Offset int64  `json:"offset"`
		Size   *int64 `json:"size"`
		Flush  bool   `json:"flush"`
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, 4<<10))
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return status(http.StatusBadRequest, "Invalid JSON message %s", err)
	}
	if m.Op != "zero" && m.Op != "flush" {
		return status(http.StatusBadRequest, "Unsupported value '%s' for 'op', expecting one of ['flush', 'zero']", m.Op)
	}
	if m.Op == "zero" && (m.Size == nil || *m.Size < 0 || m.Offset < 0) {
		return status(http.StatusBadRequest, "Missing required value for 'size'")
	}
	if err := r.authorize(id, true); err != nil {
		return err
	}
	r.server.count(m.Op)
	if m.Op == "flush" {
		return r.answer(r.operate(true, 0, func([]byte) (int64, error) { return 0, r.ticket.Backend.Flush(r.ticket.ctx) }))
	}
	if *m.Size > r.ticket.SizeBytes-m.Offset {
		return badRange(r.ticket.SizeBytes, "Requested range out of allowed range")
	}
	return r.answer(r.operate(true, m.Offset, func([]byte) (int64, error) {
		err := r.ticket.Backend.Zero(r.ticket.ctx, m.Offset, *m.Size)
		if err == nil && m.Flush {
			err = r.ticket.Backend.Flush(r.ticket.ctx)
		}
		return *m.Size, err
	}))
}

// Bounds of a checksum's blocks.
const (
	blockSize    = 4 << 20
	minBlockSize = blockSize / 4
	maxBlockSize = blockSize * 4
)

// checksum hashes the hashes of the image's blocks.
func (r *request) checksum(id string) error {
	r.server.count("checksum")
	q := r.URL.Query()
	if a := q.Get("algorithm"); a != "" && a != "blake2b" {
		return status(http.StatusBadRequest, "Unsupported value '%s' for 'algorithm', expecting one of ['blake2b']", a)
	}
	block := int64(blockSize)
	if b := q.Get("block_size"); b != "" {
		var err error
		if block, err = strconv.ParseInt(b, 10, 64); err != nil {
			return status(http.StatusBadRequest, "Invalid block size: '%s'", b)
		}
	}
	switch {
	case block < minBlockSize || block > maxBlockSize:
		return status(http.StatusBadRequest, "Block size out of allowed range: %d-%d", minBlockSize, maxBlockSize)
	case block%4096 != 0:
		return status(http.StatusBadRequest, "Block size is not aligned to 4096")
	}
	if err := r.authorize(id, false); err != nil {
		return err
	}
	var sum string
	err := r.operate(false, 0, func([]byte) (int64, error) {
		all, _ := blake2b.New256(nil) // has no error without a key
		buf, size := make([]byte, block), r.ticket.Backend.Size()
		for off := int64(0); off < size; off += block {
			p := buf[:min(block, size-off)]
			if err := r.ticket.Backend.Read(r.ticket.ctx, p, off); err != nil {
				return off, err
			}
			one := blake2b.Sum256(p)
			_, _ = all.Write(one[:])
		}
		sum = hex.EncodeToString(all.Sum(nil))
		return size, nil
	})
	if err != nil {
		return err
	}
	return r.json(map[string]any{"algorithm": "blake2b", "block_size": block, "checksum": sum})
}
