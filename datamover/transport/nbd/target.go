package nbdtransport

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/datamover/transport/journal"
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
	journal journal.Journal
	written atomic.Bool // anything at all
}

// replay writes the journal on a new connection.
func (t *target) replay(ctx context.Context, c *nbd.Client) error {
	if t.written.Load() && !t.link.info.CanFlush {
		return fault.New(fault.Conflict, "go on writing", t.link.cfg.Export, "its server cannot flush, so what was written may be lost")
	}
	for _, e := range t.journal.List() {
		if err := send(ctx, c, e); err != nil {
			return err
		}
	}
	return nil
}

func send(ctx context.Context, c *nbd.Client, e journal.Entry) error {
	if e.Data == nil {
		return c.Zero(ctx, e.Offset, e.Length, 0)
	}
	return c.Write(ctx, e.Data, e.Offset, 0)
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
	if err := t.apply(t.link.closed, journal.Entry{Offset: off, Length: int64(len(p)), Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (t *target) Zero(ctx context.Context, off, n int64) error {
	if n == 0 {
		return nil
	}
	return t.apply(ctx, journal.Entry{Offset: off, Length: n})
}

// apply carries a write out. It is in the journal before it is sent, so that whoever reconnects meanwhile repeats it.
func (t *target) apply(ctx context.Context, e journal.Entry) error {
	if t.journal.Full(t.limit) {
		if err := t.flush(ctx, t.limit); err != nil {
			return err
		}
	}
	t.order.RLock()
	defer t.order.RUnlock()
	t.written.Store(true)
	if t.link.info.CanFlush {
		t.journal.Add(e)
	}
	return t.link.do(ctx, func(c *nbd.Client) error { return send(ctx, c, e) })
}

// Flush returns after everything written so far is durable, also when the connection broke under way. A server
// without FLUSH promises nothing, and is asked for nothing.
func (t *target) Flush(ctx context.Context) error { return t.flush(ctx, 0) }

// flush flushes if at least limit bytes are in the journal: another writer may have been faster.
func (t *target) flush(ctx context.Context, limit int64) error {
	t.order.Lock()
	defer t.order.Unlock()
	if !t.link.info.CanFlush || limit > 0 && !t.journal.Full(limit) {
		return nil
	}
	err := t.link.do(ctx, func(c *nbd.Client) error { return c.Flush(ctx) })
	if errors.Is(err, errors.ErrUnsupported) {
		return fault.Wrap(fault.Internal, "flush", t.link.cfg.Export, err)
	}
	if err == nil {
		t.journal.Forget()
	}
	return err
}
