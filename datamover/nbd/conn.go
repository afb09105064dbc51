package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// sendGrace is how long a cancelled caller waits for a request that is half sent; then the connection is given up,
// for the server could not tell where the next request begins.
const sendGrace = time.Second

// conn is one connection in the transmission phase.
type conn struct {
	nc         net.Conn
	br         *bufio.Reader
	subject    string
	structured bool
	ids        map[uint32]string // metadata context id -> name

	send     chan struct{} // holds one token: the right to write to nc
	activity atomic.Int64  // when something last arrived, in Unix nanoseconds

	mu      sync.Mutex
	cookie  uint64
	pending map[uint64]*request
	filling *request // whose buffer receive is reading into
	err     error    // why the connection ended; set once
	closing bool     // close has begun: whatever ends the connection now is its doing

	dead chan struct{} // closed with err set
	done sync.WaitGroup
}

// request is one command in flight.
type request struct {
	cmd     uint16
	flags   Flags
	offset  int64
	length  int64
	payload []byte // of a WRITE

	// buf is where a READ's data goes. Until done is closed it is receive's, unless the request was abandoned.
	buf []byte
	got coverage
	// extents of a BLOCK_STATUS, by context.
	extents map[string][]Extent
	errors  int

	err       error
	finished  chan struct{}
	abandoned bool          // conn.mu
	released  chan struct{} // conn.mu; closed when receive has let go of buf
}

func newConn(n *negotiation) *conn {
	c := &conn{
		nc: n.nc, br: bufio.NewReaderSize(n.nc, 32<<10), subject: n.cfg.subject(), structured: n.info.Structured, ids: n.ids,
		send: make(chan struct{}, 1), pending: map[uint64]*request{}, dead: make(chan struct{}),
	}
	c.send <- struct{}{}
	return c
}

func (c *conn) start(stall time.Duration) {
	c.touch()
	c.done.Go(c.receive)
	c.done.Go(func() { c.watch(stall) })
}

func (c *conn) touch() { c.activity.Store(time.Now().UnixNano()) }

// watch gives the connection up when requests wait and nothing arrives for too long.
func (c *conn) watch(stall time.Duration) {
	t := time.NewTicker(max(stall/4, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-c.dead:
			return
		case <-t.C:
			c.mu.Lock()
			waiting := len(c.pending) > 0
			c.mu.Unlock()
			if !waiting {
				c.touch()
			} else if time.Since(time.Unix(0, c.activity.Load())) > stall {
				c.fail(fmt.Errorf("no answer for %v", stall))
				return
			}
		}
	}
}

// fail ends the connection; the first reason stays.
func (c *conn) fail(cause error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if c.closing {
		cause = ErrClosed // the server may hang up on the goodbye before close ends the connection itself
	}
	c.err = cause
	if !errors.Is(cause, ErrProtocol) && !errors.Is(cause, ErrClosed) {
		c.err = connectionLost(c.subject, cause)
	}
	close(c.dead)
	c.mu.Unlock()
	_ = c.nc.Close() // outside the lock: over TLS it may wait
}

func connectionLost(subject string, cause error) error {
	return fault.Wrap(fault.Transient, "read export", subject, fmt.Errorf("%w: %w", ErrConnectionLost, cause)).Explain(
		"The connection to the server that exports the disk broke.",
		"Check that the VM and its host are up and the network between them and the mover works, then start the task again.")
}

// do sends a request and waits for its reply. When ctx ends first it returns at once, and req's buffers are the
// caller's again.
func (c *conn) do(ctx context.Context, req *request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	req.finished = make(chan struct{})
	select {
	case <-c.send:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.dead:
		return c.cause()
	}
	cookie, err := c.register(req)
	if err == nil {
		err = c.write(ctx, req, cookie)
	}
	c.send <- struct{}{}
	if err != nil {
		return err
	}
	select {
	case <-req.finished:
		return req.err
	case <-ctx.Done():
		return c.abandon(ctx, req)
	}
}

func (c *conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *conn) register(req *request) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if len(c.pending) == 0 {
		c.touch()
	}
	c.cookie++
	c.pending[c.cookie] = req
	return c.cookie, nil
}

// write sends one request. The caller holds the send token. After an error the connection is dead and the request
// settled, with no part of the connection left in req's buffers.
func (c *conn) write(ctx context.Context, req *request, cookie uint64) error {
	head := make([]byte, 0, 28)
	head = be.AppendUint32(head, magicRequest)
	head = be.AppendUint16(head, uint16(req.flags))
	head = be.AppendUint16(head, req.cmd)
	head = be.AppendUint64(head, cookie)
	head = be.AppendUint64(head, uint64(req.offset))
	head = be.AppendUint32(head, uint32(req.length))
	ran := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.nc.SetWriteDeadline(time.Now().Add(sendGrace))
		close(ran)
	})
	bufs := net.Buffers{head}
	if len(req.payload) > 0 {
		bufs = append(bufs, req.payload)
	}
	_, err := bufs.WriteTo(c.nc)
	if !stop() {
		<-ran
		_ = c.nc.SetWriteDeadline(time.Time{})
	}
	if err == nil {
		return nil
	}
	c.fail(err)
	<-req.finished // receive settles everything pending once the socket is closed
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return req.err
}

// abandon gives a request up whose caller does not wait any longer. Its reply will be read and thrown away. If
// receive is reading into its buffer just now, it is woken and lets go first.
func (c *conn) abandon(ctx context.Context, req *request) error {
	c.mu.Lock()
	select {
	case <-req.finished:
		c.mu.Unlock()
		return req.err
	default:
	}
	req.abandoned = true
	if c.filling != req {
		c.mu.Unlock()
		return ctx.Err()
	}
	released := make(chan struct{})
	req.released = released
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	c.mu.Unlock()
	<-released
	return ctx.Err()
}

// close says goodbye if that is possible at once, and waits until nothing of the connection is left.
func (c *conn) close() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	select {
	case <-c.send:
		_ = c.nc.SetWriteDeadline(time.Now().Add(sendGrace))
		head := be.AppendUint32(nil, magicRequest)
		head = be.AppendUint32(head, cmdDisc)
		_, _ = c.nc.Write(append(head, make([]byte, 20)...))
	default:
	}
	c.fail(ErrClosed)
	c.done.Wait()
}

// receive reads replies until the connection ends, and then settles whatever is still pending.
func (c *conn) receive() {
	for {
		if err := c.receiveReply(); err != nil {
			c.fail(err)
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for cookie, req := range c.pending {
		req.err = c.err
		close(req.finished)
		delete(c.pending, cookie)
	}
}

// readFull reads len(p) bytes for nobody's buffer but our own.
func (c *conn) readFull(p []byte) error {
	for len(p) > 0 {
		n, err := c.readSome(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// readSome reads at least a byte, or nothing when abandon woke it.
func (c *conn) readSome(p []byte) (int, error) {
	n, err := c.br.Read(p)
	if n > 0 {
		c.touch()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.nc.SetReadDeadline(time.Time{})
		err = nil
	}
	return n, err
}

// fill reads len(p) bytes into a part of req's buffer, or throws them away once req is abandoned.
func (c *conn) fill(req *request, p []byte) error {
	for len(p) > 0 {
		c.mu.Lock()
		if req.abandoned {
			c.mu.Unlock()
			return c.discard(len(p))
		}
		c.filling = req
		c.mu.Unlock()
		n, err := c.readSome(p)
		c.mu.Lock()
		c.filling = nil
		if req.released != nil {
			close(req.released)
			req.released = nil
		}
		c.mu.Unlock()
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// zero makes a part of req's buffer zeros, unless req is abandoned.
func (c *conn) zero(req *request, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !req.abandoned {
		clear(p)
	}
}

func (c *conn) discard(n int) error {
	var b [4096]byte
	for n > 0 {
		m, err := c.readSome(b[:min(n, len(b))])
		if err != nil {
			return err
		}
		n -= m
	}
	return nil
}

// lookup finds the request a reply belongs to.
func (c *conn) lookup(cookie uint64) (*request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	req := c.pending[cookie]
	if req == nil {
		return nil, protocolError("reply to request %#x, which is not in flight", cookie)
	}
	return req, nil
}

// settle ends a request whose last reply has arrived.
func (c *conn) settle(cookie uint64, req *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, cookie)
	close(req.finished)
}
