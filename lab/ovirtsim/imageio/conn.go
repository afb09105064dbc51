package imageio

import (
	"net"
	"sync"
	"time"
)

// unauthorized is how long a connection may stall on which no ticket was used yet.
const unauthorized = 60 * time.Second

// timedConn ends when a read or a write stalls, as long as its ticket allows. It counts what is done on it.
type timedConn struct {
	net.Conn
	closed func(*timedConn)

	mu      sync.Mutex
	timeout time.Duration
	forced  bool // the server itself wants reads to end now
	once    sync.Once
}

func (c *timedConn) allow(timeout time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timeout = timeout
}

// Read starts the time anew, except while the server wants a read under way to end.
func (c *timedConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if !c.forced {
		_ = c.Conn.SetReadDeadline(time.Now().Add(c.timeout))
	}
	c.mu.Unlock()
	return c.Conn.Read(p)
}

func (c *timedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	_ = c.SetWriteDeadline(time.Now().Add(c.timeout))
	c.mu.Unlock()
	return c.Conn.Write(p)
}

// SetReadDeadline is what the HTTP server calls to end a read under way, and to undo that.
func (c *timedConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forced = !t.IsZero()
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline does the same for both directions.
func (c *timedConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *timedConn) Close() error {
	c.once.Do(func() { c.closed(c) })
	return c.Conn.Close()
}

// timedListener makes timedConns.
type timedListener struct {
	net.Listener
	server *Server
}

func (l timedListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &timedConn{Conn: nc, timeout: unauthorized, closed: l.server.left}
	l.server.came(c)
	return c, nil
}
