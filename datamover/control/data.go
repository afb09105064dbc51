package control

import (
	"context"
	"sync"

	"google.golang.org/grpc"
)

// dataConn is a mover's way to the repositories. A certificate belongs to a connection, so there is a new one for each
// certificate; the one before goes on until the calls over it have ended.
type dataConn struct {
	dial func() (*grpc.ClientConn, error)

	mu  sync.Mutex
	now *dialled
}

// dialled is one connection.
type dialled struct {
	conn    *grpc.ClientConn
	calls   int
	retired bool
}

// redial makes the calls from now on use a new connection.
func (d *dataConn) redial() error {
	conn, err := d.dial()
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.retire()
	d.now = &dialled{conn: conn}
	return nil
}

// retire closes the connection there is as soon as no call uses it. d.mu is held.
func (d *dataConn) retire() {
	if d.now == nil {
		return
	}
	if d.now.retired = true; d.now.calls == 0 {
		_ = d.now.conn.Close()
	}
}

// close ends the calls under way, too.
func (d *dataConn) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.now.conn.Close()
}

// use takes the newest connection for a call; done gives it back, once.
func (d *dataConn) use() (conn *grpc.ClientConn, done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.now
	c.calls++
	return c.conn, sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if c.calls--; c.retired && c.calls == 0 {
			_ = c.conn.Close()
		}
	})
}

// Invoke implements grpc.ClientConnInterface.
func (d *dataConn) Invoke(ctx context.Context, method string, args, reply any, o ...grpc.CallOption) error {
	conn, done := d.use()
	defer done()
	return conn.Invoke(ctx, method, args, reply, o...)
}

// NewStream implements grpc.ClientConnInterface.
func (d *dataConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, o ...grpc.CallOption) (grpc.ClientStream, error) {
	conn, done := d.use()
	s, err := conn.NewStream(ctx, desc, method, append(o[:len(o):len(o)], grpc.OnFinish(func(error) { done() }))...)
	if err != nil {
		done()
	}
	return s, err
}
