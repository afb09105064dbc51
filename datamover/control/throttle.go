package control

import (
	"context"
	"net"
	"sync"

	"golang.org/x/time/rate"
)

// throttle limits the bytes a second of all connections that it has dialled, both ways together. The zero value does not.
type throttle struct {
	once   sync.Once
	tokens *rate.Limiter
}

// piece is how much is passed on at once: little, so that several connections and both ways take turns.
const piece = 32 << 10

func (t *throttle) limiter() *rate.Limiter {
	t.once.Do(func() { t.tokens = rate.NewLimiter(rate.Inf, piece) })
	return t.tokens
}

// set changes the limit; 0 is none.
func (t *throttle) set(bytes int64) {
	if bytes <= 0 {
		t.limiter().SetLimit(rate.Inf)
		return
	}
	t.limiter().SetLimit(rate.Limit(bytes))
}

// dial makes a connection that the limit is for.
func (t *throttle) dial(ctx context.Context, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.Background())
	return &throttled{Conn: c, tokens: t.limiter(), life: life, end: end}, nil
}

// throttled is a connection that waits for its turn.
type throttled struct {
	net.Conn
	tokens *rate.Limiter
	life   context.Context //nolint:containedctx // ends with the connection
	end    context.CancelFunc
}

// Read implements net.Conn. What has come is waited for afterwards, so that the other side's window fills.
func (c *throttled) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), piece)])
	if n > 0 && err == nil && c.tokens.WaitN(c.life, n) != nil {
		err = net.ErrClosed
	}
	return n, err
}

// Write implements net.Conn.
func (c *throttled) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		part := p[:min(len(p), piece)]
		if c.tokens.WaitN(c.life, len(part)) != nil {
			return n, net.ErrClosed
		}
		var m int
		m, err = c.Conn.Write(part)
		n, p = n+m, p[m:]
	}
	return n, err
}

// Close implements net.Conn.
func (c *throttled) Close() error {
	c.end()
	return c.Conn.Close()
}
