package fleet

import (
	"container/list"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of connections. Whoever has not shown a mover's certificate is a stranger, and everybody is one at first.
const (
	strangersPerSource = 32
	strangersAll       = 512
	strangerTime       = time.Minute // enough for a handshake and an enrolment
	connsPerMover      = 16
)

// door is a listener that keeps the connections of strangers few: one more closes the oldest, so that who does not
// linger gets through.
type door struct {
	net.Listener

	mu     sync.Mutex
	inside *list.List // of *guest, the oldest first
	perSrc map[string]int
}

func newDoor(l net.Listener) *door {
	return &door{Listener: l, inside: list.New(), perSrc: map[string]int{}}
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	c, err := d.Listener.Accept()
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		host = c.RemoteAddr().String()
	}
	g := &guest{Conn: c, door: d, source: network(host)}
	g.limit = time.AfterFunc(strangerTime, func() { _ = g.Close() })
	for _, old := range d.enter(g) {
		_ = old.Close()
	}
	return g, nil
}

// enter counts a guest, and returns those who have to go.
func (d *door) enter(g *guest) (out []*guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.perSrc[g.source] >= strangersPerSource {
		for e := d.inside.Front(); e != nil; e = e.Next() {
			if old := e.Value.(*guest); old.source == g.source { //nolint:errcheck // nothing else is in it
				out = append(out, old)
				d.forget(old)
				break
			}
		}
	}
	if d.inside.Len() >= strangersAll {
		old := d.inside.Front().Value.(*guest) //nolint:errcheck // nothing else is in it
		out = append(out, old)
		d.forget(old)
	}
	g.place = d.inside.PushBack(g)
	d.perSrc[g.source]++
	return out
}

// forget takes a guest from the strangers, if it is one. d.mu is held.
func (d *door) forget(g *guest) {
	if g.place == nil {
		return
	}
	d.inside.Remove(g.place)
	g.place = nil
	if d.perSrc[g.source]--; d.perSrc[g.source] == 0 {
		delete(d.perSrc, g.source)
	}
}

// guest is a connection.
type guest struct {
	net.Conn
	door   *door
	source string
	limit  *time.Timer
	place  *list.Element // among the strangers; nil: it is none any more. door.mu

	before traffic // what it moved as a stranger
	count  atomic.Pointer[traffic]
}

// traffic is what went over a mover's connections, as it is on the wire above TCP.
type traffic struct{ received, sent atomic.Int64 }

// Read implements net.Conn.
func (g *guest) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	g.traffic().received.Add(int64(n))
	return n, err
}

// Write implements net.Conn.
func (g *guest) Write(p []byte) (int, error) {
	n, err := g.Conn.Write(p)
	g.traffic().sent.Add(int64(n))
	return n, err
}

func (g *guest) traffic() *traffic {
	if t := g.count.Load(); t != nil {
		return t
	}
	return &g.before
}

// known makes it the connection of a mover, whose traffic is counted in t.
func (g *guest) known(t *traffic) {
	t.received.Add(g.before.received.Load())
	t.sent.Add(g.before.sent.Load())
	g.count.Store(t)
	g.leave()
}

func (g *guest) leave() {
	g.limit.Stop()
	g.door.mu.Lock()
	defer g.door.mu.Unlock()
	g.door.forget(g)
}

// Close implements net.Conn.
func (g *guest) Close() error {
	g.leave()
	return g.Conn.Close()
}
