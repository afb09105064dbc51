package imageiotransport

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/cairn-backup/cairn/datamover/transport/journal"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Steps of what is written.
const (
	maxWrite = 8 << 20   // bytes of one request
	zeroStep = 128 << 20 // a daemon may have to write them, and must answer in time
	zeroByte = 1 << 20   // where zeros are written as data
)

// OpenTarget opens an image for writing. ctx bounds the opening only; Close makes calls under way return.
func (o Options) OpenTarget(ctx context.Context, e hypervisors.Export) (hypervisors.TargetDisk, error) {
	l, err := open(ctx, e, o, true)
	if err != nil {
		return nil, err
	}
	if !l.has.mayWrite {
		l.close()
		return nil, fault.New(fault.Denied, "open image transfer", e.Name, "it is one for reading")
	}
	t := &target{link: l, limit: int64(cmp.Or(max(o.JournalBytes, 0), 32<<20))}
	// A ticket for writing may not allow reading, so that the size cannot be asked for.
	size, err := l.readSize(ctx)
	if s, ok := errors.AsType[*statusError](err); ok && s.code == http.StatusForbidden {
		size, err, l.unreadable = l.size, nil, true
	}
	if err != nil {
		err = l.explain("open image transfer", err)
	} else if size != l.size {
		err = wrongSize(e.Name, size, l.size)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	l.keepAlive(o.interval(*e.Imageio))
	return t, nil
}

// target is a new disk.
type target struct {
	link  *link
	limit int64

	// order is held for reading while a write is under way and for writing while everything is flushed and forgotten.
	order   sync.RWMutex
	journal journal.Journal
	// suspect is set when the daemon failed at a write: it may have lost what it had acknowledged before.
	suspect atomic.Bool
}

// Size implements hypervisors.TargetDisk.
func (t *target) Size() int64 { return t.link.size }

// Close closes all connections before it returns; calls under way fail.
func (t *target) Close() error {
	t.link.close()
	return nil
}

// WriteAt implements hypervisors.TargetDisk.
func (t *target) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > t.link.size || int64(len(p)) > t.link.size-off {
		return 0, io.ErrShortWrite
	}
	for done := 0; done < len(p); {
		part := p[done:min(len(p), done+maxWrite)]
		if err := t.apply(t.link.closed, journal.Entry{Offset: off + int64(done), Length: int64(len(part)), Data: part}); err != nil {
			return done, t.link.explain("write disk", err)
		}
		done += len(part)
	}
	return len(p), nil
}

// Zero implements hypervisors.TargetDisk.
func (t *target) Zero(ctx context.Context, off, n int64) error {
	if off < 0 || n < 0 || off > t.link.size || n > t.link.size-off {
		return fault.New(fault.Invalid, "zero disk", t.link.name, "%d bytes at %d of %d", n, off, t.link.size)
	}
	for n > 0 {
		part := min(n, zeroStep)
		if !t.link.has.zero {
			part = min(n, zeroByte)
		}
		if err := t.apply(ctx, journal.Entry{Offset: off, Length: part}); err != nil {
			return t.link.explain("zero disk", err)
		}
		off, n = off+part, n-part
	}
	return nil
}

// apply carries a write out. It is in the journal before it is sent.
func (t *target) apply(ctx context.Context, e journal.Entry) error {
	if t.journal.Full(t.limit) {
		if err := t.flush(ctx, t.limit); err != nil {
			return err
		}
	}
	t.order.RLock()
	defer t.order.RUnlock()
	if t.link.has.flush {
		e.At = t.link.clock.Add(1)
		t.journal.Add(e)
	}
	return t.write(ctx, e, false)
}

// write sends one journal.Entry until the daemon says that it has it, or with flush that it is durable.
func (t *target) write(ctx context.Context, e journal.Entry, flush bool) error {
	return t.link.do(ctx, false, func(ctx context.Context, c *conn) error {
		err := c.exchange(ctx, t.request(e, flush || !t.link.has.flush), nothing, http.StatusOK, http.StatusNoContent)
		if _, ok := errors.AsType[*statusError](err); ok {
			t.suspect.Store(true)
		}
		return err
	})
}

// nothing is all that is expected in an answer.
func nothing(r *http.Response) error {
	_, err := io.Copy(io.Discard, io.LimitReader(r.Body, maxText))
	return err
}

func (t *target) request(e journal.Entry, flush bool) call {
	l := t.link
	first, length := strconv.FormatInt(e.Offset, 10), strconv.FormatInt(e.Length, 10)
	if e.Data == nil && l.has.zero {
		return patch(l, `{"op":"zero","offset":`+first+`,"size":`+length+`,"flush":`+strconv.FormatBool(flush)+`}`)
	}
	req := call{
		method: http.MethodPut, path: l.path, body: e.Data, stall: patience * l.stall,
		header: "Content-Range: bytes " + first + "-" + strconv.FormatInt(e.Offset+e.Length-1, 10) + "/*\r\n",
	}
	if e.Data == nil {
		req.body = make([]byte, e.Length)
	}
	if !flush {
		req.path += "?flush=n"
	}
	return req
}

func patch(l *link, json string) call {
	return call{
		method: http.MethodPatch, path: l.path, header: "Content-Type: application/json\r\n", body: []byte(json), stall: patience * l.stall,
	}
}

// Flush returns after everything written so far is durable, also when connections broke or the daemon was restarted under way: then
// all of it is written again, each write with a flush of its own. A daemon that cannot flush has done that with every write.
func (t *target) Flush(ctx context.Context) error {
	if err := t.flush(ctx, 0); err != nil {
		return t.link.explain("flush disk", err)
	}
	return nil
}

// flush flushes if at least limit bytes are in the journal: another writer may have been faster.
func (t *target) flush(ctx context.Context, limit int64) error {
	t.order.Lock()
	defer t.order.Unlock()
	if !t.link.has.flush || limit > 0 && !t.journal.Full(limit) {
		return nil
	}
	born, err := t.flushOnce(ctx)
	if err != nil {
		return err
	}
	entries := t.journal.List()
	if len(entries) > 0 && (born > entries[0].At || t.suspect.Load()) {
		t.link.log.Info("what was written to a disk since the last flush is written again", "disk", t.link.name, "count", len(entries))
		for _, e := range entries {
			if err := t.write(ctx, e, true); err != nil {
				return err
			}
		}
	}
	t.journal.Forget()
	t.suspect.Store(false)
	return nil
}

// flushOnce flushes on the oldest connection and returns when that was opened.
func (t *target) flushOnce(ctx context.Context) (born int64, err error) {
	err = t.link.do(ctx, true, func(ctx context.Context, c *conn) error {
		born = c.born
		err := c.exchange(ctx, patch(t.link, `{"op":"flush"}`), nothing, http.StatusOK, http.StatusNoContent)
		if _, ok := errors.AsType[*statusError](err); ok {
			t.suspect.Store(true)
		}
		return err
	})
	return born, err
}
