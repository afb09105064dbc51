package nbd

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/internal/fault"
)

// handshakeTimeout bounds connecting and negotiating the first connection, extraTimeout each further one.
const (
	handshakeTimeout = 30 * time.Second
	extraTimeout     = 5 * time.Second
)

// Client reads and writes one export. Its methods may be called from several goroutines. Offsets and lengths need no
// alignment: requests are split and aligned to the server's block sizes here.
//
// When ctx ends, a method returns at once with ctx's error and does not touch the caller's buffer any more; whether a
// write was carried out is then unknown. Every method may be repeated.
type Client struct {
	info  Info
	conns []*conn
	slots chan *conn // one entry for each request that may be in flight

	partial sync.Mutex // held while a block is read, changed and written back
	closed  sync.Once
	gone    chan struct{}
	stats   counters
}

type counters struct{ reads, writes, zeroes, flushes, statuses, bytesRead, bytesWritten atomic.Int64 }

// Stats counts the requests that were sent and the bytes asked for.
type Stats struct {
	Reads, Writes, Zeroes, Flushes, Statuses int64
	BytesRead, BytesWritten                  int64
}

// Dial connects to an export. Failing to reach the server is Transient, a missing export NotFound, refused credentials
// Denied. Fewer connections than wanted are made when the server allows no more.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	n, err := negotiate(ctx, cfg, handshakeTimeout)
	if err != nil {
		return nil, err
	}
	c := &Client{gone: make(chan struct{}), info: n.info}
	c.add(n, cfg)
	for n.info.MultiConn && len(c.conns) < cfg.connections() {
		more, err := negotiate(ctx, cfg, extraTimeout)
		if ctx.Err() != nil {
			_ = c.Close()
			return nil, ctx.Err()
		}
		if err != nil {
			break
		}
		c.add(more, cfg)
		if !sameExport(c.info, more.info) {
			_ = c.Close()
			return nil, fault.New(fault.Transient, "open export", cfg.subject(), "the export changed between two connections")
		}
	}
	c.slots = make(chan *conn, len(c.conns)*cfg.inFlight())
	for range cfg.inFlight() {
		for _, cn := range c.conns {
			c.slots <- cn
		}
	}
	return c, nil
}

func (c *Client) add(n *negotiation, cfg Config) {
	cn := newConn(n)
	cn.start(cfg.stall())
	c.conns = append(c.conns, cn)
}

// sameExport reports whether two connections see the same export.
func sameExport(a, b Info) bool {
	if a.Size != b.Size || a.ReadOnly != b.ReadOnly || a.Structured != b.Structured || len(a.Contexts) != len(b.Contexts) {
		return false
	}
	for i := range a.Contexts {
		if a.Contexts[i] != b.Contexts[i] {
			return false
		}
	}
	return a.MinBlock == b.MinBlock && a.MaxBlock == b.MaxBlock
}

// negotiate opens one connection and does the handshake.
func negotiate(ctx context.Context, cfg Config, limit time.Duration) (*negotiation, error) {
	if cfg.TLS != nil && cfg.TLS.ServerName == "" && !cfg.TLS.InsecureSkipVerify {
		return nil, fault.New(fault.Invalid, "open export", cfg.subject(), "TLS needs the server's name")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	nc, err := (&net.Dialer{}).DialContext(ctx, cfg.Network, cfg.Address)
	if err != nil {
		return nil, unreachable(ctx, cfg, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	n := &negotiation{cfg: cfg, nc: nc}
	err = n.run()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		return n, nil
	}
	_ = nc.Close()
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return nil, context.Canceled
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // with TLS 1.3 the refusal comes late
		return nil, tlsError(cfg.subject(), err)
	}
	if _, typed := errors.AsType[*fault.Error](err); typed {
		return nil, err
	}
	return nil, unreachable(ctx, cfg, err)
}

func unreachable(ctx context.Context, cfg Config, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Canceled
	}
	return fault.Wrap(fault.Transient, "open export", cfg.subject(), err).Explain(
		"The server that exports the disk cannot be reached or hung up.",
		"Check that the VM's host is up and the mover can reach it, then start the task again.")
}

// Info returns what the server said about the export.
func (c *Client) Info() Info { return c.info }

// Connections returns how many connections are open.
func (c *Client) Connections() int { return len(c.conns) }

// Stats returns what was asked of the server so far.
func (c *Client) Stats() Stats {
	s := &c.stats
	return Stats{
		Reads: s.reads.Load(), Writes: s.writes.Load(), Zeroes: s.zeroes.Load(), Flushes: s.flushes.Load(),
		Statuses: s.statuses.Load(), BytesRead: s.bytesRead.Load(), BytesWritten: s.bytesWritten.Load(),
	}
}

// Close ends the client; requests in flight fail with ErrClosed. It may be repeated.
func (c *Client) Close() error {
	c.closed.Do(func() {
		close(c.gone)
		var wg sync.WaitGroup
		for _, cn := range c.conns {
			wg.Go(cn.close)
		}
		wg.Wait()
	})
	return nil
}

func (c *Client) do(ctx context.Context, req *request) error {
	var cn *conn
	select {
	case cn = <-c.slots:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.gone:
		return ErrClosed
	}
	defer func() { c.slots <- cn }()
	return cn.do(ctx, req)
}

// checkRange refuses what the export does not have.
func (c *Client) checkRange(op string, off, n int64) error {
	if off < 0 || n < 0 || off > c.info.Size || n > c.info.Size-off {
		return fault.New(fault.Invalid, op, "", "%d bytes at %d are outside the export of %d bytes", n, off, c.info.Size)
	}
	return nil
}

// pieces calls f for parts of at most step bytes, several at a time.
func pieces(ctx context.Context, off, n, step int64, f func(ctx context.Context, off, n int64) error) error {
	if n <= step {
		if n == 0 {
			return nil
		}
		return f(ctx, off, n)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	end := off + n
	for at := off; at < end; at += step { // a variable for each turn
		g.Go(func() error { return f(ctx, at, min(step, end-at)) })
	}
	return g.Wait()
}

// Read fills p from off.
func (c *Client) Read(ctx context.Context, p []byte, off int64) error {
	if err := c.checkRange("read", off, int64(len(p))); err != nil {
		return err
	}
	lo, hi := c.around(off, int64(len(p)))
	if lo == off && hi == off+int64(len(p)) {
		return c.readAligned(ctx, p, off)
	}
	b := make([]byte, hi-lo)
	if err := c.readAligned(ctx, b, lo); err != nil {
		return err
	}
	copy(p, b[off-lo:])
	return nil
}

// around rounds a range out to the smallest block.
func (c *Client) around(off, n int64) (lo, hi int64) {
	m := int64(c.info.MinBlock)
	return off &^ (m - 1), (off + n + m - 1) &^ (m - 1)
}

func (c *Client) readAligned(ctx context.Context, p []byte, off int64) error {
	return pieces(ctx, off, int64(len(p)), int64(c.info.MaxBlock), func(ctx context.Context, at, n int64) error {
		c.stats.reads.Add(1)
		c.stats.bytesRead.Add(n)
		return c.do(ctx, &request{cmd: cmdRead, offset: at, length: n, buf: p[at-off:][:n:n]})
	})
}

// Write writes p at off. Of flags only FUA has a meaning here.
func (c *Client) Write(ctx context.Context, p []byte, off int64, flags Flags) error {
	if err := c.checkWrite("write", off, int64(len(p)), flags); err != nil {
		return err
	}
	lo, hi := c.around(off, int64(len(p)))
	if lo == off && hi == off+int64(len(p)) {
		return c.writeAligned(ctx, p, off, flags)
	}
	c.partial.Lock()
	defer c.partial.Unlock()
	b := make([]byte, hi-lo)
	if err := c.readAligned(ctx, b, lo); err != nil {
		return err
	}
	copy(b[off-lo:], p)
	return c.writeAligned(ctx, b, lo, flags)
}

func (c *Client) checkWrite(op string, off, n int64, flags Flags) error {
	if c.info.ReadOnly {
		return fault.New(fault.Denied, op, "", "the export is read-only")
	}
	if flags&FUA != 0 && !c.info.CanFUA {
		return fault.New(fault.Unsupported, op, "", "the server has no FUA")
	}
	return c.checkRange(op, off, n)
}

func (c *Client) writeAligned(ctx context.Context, p []byte, off int64, flags Flags) error {
	return pieces(ctx, off, int64(len(p)), int64(c.info.MaxBlock), func(ctx context.Context, at, n int64) error {
		c.stats.writes.Add(1)
		c.stats.bytesWritten.Add(n)
		return c.do(ctx, &request{cmd: cmdWrite, flags: flags & FUA, offset: at, length: n, payload: p[at-off:][:n]})
	})
}

// Zero makes a range read as zeros, by WRITE_ZEROES where the server has it, else by writing zeros. FastZero is only
// allowed where Info.CanFastZero is true; the error then matches ENOTSUP when zeroing would be slow.
func (c *Client) Zero(ctx context.Context, off, n int64, flags Flags) error {
	if err := c.checkWrite("zero", off, n, flags); err != nil {
		return err
	}
	if flags&FastZero != 0 && !c.info.CanFastZero {
		return fault.Wrap(fault.Unsupported, "zero", "", ENOTSUP)
	}
	lo, hi := c.around(off, n)
	m := int64(c.info.MinBlock)
	if lo != off { // the first block is not ours alone
		part := min(lo+m-off, n)
		if err := c.Write(ctx, make([]byte, part), off, flags&FUA); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	if n > 0 && hi != off+n { // nor is the last
		part := off + n - (hi - m)
		if err := c.Write(ctx, make([]byte, part), hi-m, flags&FUA); err != nil {
			return err
		}
		n -= part
	}
	return c.zeroAligned(ctx, off, n, flags)
}

// zeroStep is the most that is zeroed by one request, and sparseStep by one that carries the zeros.
const (
	zeroStep   = 128 << 20 // a server may have to write them, and must answer within StallTimeout
	sparseStep = 1 << 20
)

func (c *Client) zeroAligned(ctx context.Context, off, n int64, flags Flags) error {
	if !c.info.CanZero {
		zeros := bytes.Repeat([]byte{0}, int(min(n, sparseStep, int64(c.info.MaxBlock))))
		return pieces(ctx, off, n, int64(max(len(zeros), 1)), func(ctx context.Context, at, n int64) error {
			return c.writeAligned(ctx, zeros[:n], at, flags&FUA)
		})
	}
	return pieces(ctx, off, n, zeroStep, func(ctx context.Context, at, n int64) error {
		c.stats.zeroes.Add(1)
		return c.do(ctx, &request{cmd: cmdWriteZeroes, flags: flags & (FUA | NoHole | FastZero), offset: at, length: n})
	})
}

// Flush returns after everything whose Write or Zero has returned is durable. Where the server has no FLUSH the error
// is Unsupported.
func (c *Client) Flush(ctx context.Context) error {
	if !c.info.CanFlush {
		return fault.New(fault.Unsupported, "flush", "", "the server has no FLUSH")
	}
	c.stats.flushes.Add(1)
	return c.do(ctx, &request{cmd: cmdFlush})
}

// BlockStatus returns the extents from off for each context of Info.Contexts. Each list covers at least a byte and at
// most n bytes: a server may answer about less than it was asked, and differently far for each context.
func (c *Client) BlockStatus(ctx context.Context, off, n int64) (map[string][]Extent, error) {
	if err := c.checkRange("block status", off, n); err != nil {
		return nil, err
	}
	if len(c.info.Contexts) == 0 || n == 0 {
		return nil, fault.New(fault.Invalid, "block status", "", "%d contexts were selected, %d bytes are asked for", len(c.info.Contexts), n)
	}
	lo, _ := c.around(off, n)
	m := int64(c.info.MinBlock)
	hi := min((off+n+m-1)&^(m-1), lo+maxStatusLength&^(m-1))
	c.stats.statuses.Add(1)
	req := &request{cmd: cmdBlockStatus, offset: lo, length: hi - lo}
	if err := c.do(ctx, req); err != nil {
		return nil, err
	}
	for name, list := range req.extents {
		if list = clip(list, off-lo, n); len(list) == 0 {
			return nil, protocolError("block status of %q is shorter than a block", name)
		}
		req.extents[name] = list
	}
	return req.extents, nil
}

// clip cuts skip bytes off the front of a list and what is beyond n bytes off its end.
func clip(list []Extent, skip, n int64) []Extent {
	out := list[:0]
	for _, e := range list {
		cut := min(skip, e.Length)
		skip -= cut
		e.Length = min(e.Length-cut, n)
		n -= e.Length
		if e.Length > 0 {
			out = append(out, e)
		}
	}
	return out
}
