package nbdtransport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// OpenTarget opens an export for writing. ctx bounds the opening only; Close makes calls under way return.
func OpenTarget(ctx context.Context, e hypervisors.Export) (hypervisors.TargetDisk, error) {
	return Options{}.OpenTarget(ctx, e)
}

// OpenTarget opens an export for writing with these options.
func (o Options) OpenTarget(ctx context.Context, e hypervisors.Export) (hypervisors.TargetDisk, error) {
	t, err := o.openTarget(ctx, e)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (o Options) openTarget(ctx context.Context, e hypervisors.Export) (*target, error) {
	l, err := open(ctx, e, o, nil)
	if err != nil {
		return nil, err
	}
	if l.info.ReadOnly {
		l.close()
		return nil, fault.New(fault.Denied, "open export", e.Name, "it is read-only")
	}
	t := &target{link: l, limit: int64(o.JournalBytes)}
	if t.limit <= 0 {
		t.limit = 32 << 20
	}
	l.restore = t.replay
	return t, nil
}

// target is a new disk behind an NBD export.
type target struct {
	link  *link
	limit int64

	// order is held for reading while a write is under way and for writing while everything is flushed and forgotten.
	order   sync.RWMutex
	journal journal
}

// journal keeps what was written since the last flush, in order.
type journal struct {
	mu      sync.Mutex
	entries []entry
	bytes   int64
	written bool // anything at all
}

// entry is one write; data is nil for zeros.
type entry struct {
	offset, length int64
	data           []byte
}

// maxEntries bounds the journal where entries are small or zeros.
const maxEntries = 4096

// add notes a write, and with keep also what was written.
func (j *journal) add(e entry, keep bool) {
	if keep {
		e.data = bytes.Clone(e.data)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.written = true
	if keep {
		j.entries = append(j.entries, e)
		j.bytes += int64(len(e.data))
	}
}

func (j *journal) full(limit int64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.bytes >= limit || len(j.entries) >= maxEntries
}

func (j *journal) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries, j.bytes = nil, 0
}

func (j *journal) list() (entries []entry, written bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.entries[:len(j.entries):len(j.entries)], j.written
}

// replay writes the journal on a new connection.
func (t *target) replay(ctx context.Context, c *nbd.Client) error {
	entries, written := t.journal.list()
	if written && !t.link.info.CanFlush {
		return fault.New(fault.Conflict, "go on writing", t.link.cfg.Export, "its server cannot flush, so what was written may be lost")
	}
	for _, e := range entries {
		if err := e.send(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (e entry) send(ctx context.Context, c *nbd.Client) error {
	if e.data == nil {
		return c.Zero(ctx, e.offset, e.length, 0)
	}
	return c.Write(ctx, e.data, e.offset, 0)
}

func (t *target) Size() int64 { return t.link.info.Size }

func (t *target) Close() error {
	t.link.close()
	return nil
}

func (t *target) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > t.Size() || int64(len(p)) > t.Size()-off {
		return 0, io.ErrShortWrite
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := t.apply(t.link.closed, entry{offset: off, length: int64(len(p)), data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (t *target) Zero(ctx context.Context, off, n int64) error {
	if n == 0 {
		return nil
	}
	return t.apply(ctx, entry{offset: off, length: n})
}

// apply carries a write out. It is in the journal before it is sent, so that whoever reconnects meanwhile repeats it.
func (t *target) apply(ctx context.Context, e entry) error {
	if t.journal.full(t.limit) {
		if err := t.flush(ctx, t.limit); err != nil {
			return err
		}
	}
	t.order.RLock()
	defer t.order.RUnlock()
	t.journal.add(e, t.link.info.CanFlush)
	return t.link.do(ctx, func(c *nbd.Client) error { return e.send(ctx, c) })
}

// Flush returns after everything written so far is durable, also when the connection broke under way. A server
// without FLUSH promises nothing, and is asked for nothing.
func (t *target) Flush(ctx context.Context) error { return t.flush(ctx, 0) }

// flush flushes if at least limit bytes are in the journal: another writer may have been faster.
func (t *target) flush(ctx context.Context, limit int64) error {
	t.order.Lock()
	defer t.order.Unlock()
	if !t.link.info.CanFlush || limit > 0 && !t.journal.full(limit) {
		return nil
	}
	err := t.link.do(ctx, func(c *nbd.Client) error { return c.Flush(ctx) })
	if errors.Is(err, errors.ErrUnsupported) {
		return fault.Wrap(fault.Internal, "flush", t.link.cfg.Export, err)
	}
	if err == nil {
		t.journal.forget()
	}
	return err
}
