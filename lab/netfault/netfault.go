// Package netfault is a TCP proxy that does to connections what networks do: latency, stalls, a narrow link, resets,
// ends, silence in one or both directions, refusal.
//
// It works on bytes and knows no protocol. Its invariant: bytes that are passed on arrive unchanged and in order; what
// is swallowed is the end of what that connection passes in that direction.
package netfault

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Fault is what the network does from now on. The zero value is nothing.
type Fault struct {
	Delay      time.Duration // before each piece is passed on
	StallEvery int           // bytes after which a piece waits for StallFor, as for a lost packet
	StallFor   time.Duration
	Rate       int  // bytes a second in each direction; 0 is no limit
	Reset      bool // connections are reset, once
	End        bool // connections are ended in good order, once
	DropUp     bool // what clients send vanishes
	DropDown   bool // what servers send vanishes
	Refuse     bool // new connections are closed at once
}

// Proxy passes connections on to a target.
type Proxy struct {
	listener net.Listener
	work     sync.WaitGroup

	mu     sync.Mutex
	target string
	fault  Fault
	conns  map[net.Conn]struct{}
	closed bool

	up, down, fired atomic.Int64
}

// New starts a proxy on loopback.
func New(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: l, target: target, conns: map[net.Conn]struct{}{}}
	p.work.Go(p.accept)
	return p, nil
}

// Address is where clients connect to.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// Retarget sends new connections elsewhere.
func (p *Proxy) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Bytes returns how much was passed on: from clients, and to them.
func (p *Proxy) Bytes() (up, down int64) { return p.up.Load(), p.down.Load() }

// Fired returns how often faults have done something since the last Set.
func (p *Proxy) Fired() int64 { return p.fired.Load() }

// Set changes what the network does.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	p.fired.Store(0)
	if !f.Reset && !f.End {
		return
	}
	for c := range p.conns {
		if t, ok := c.(*net.TCPConn); ok && f.Reset {
			_ = t.SetLinger(0)
		}
		_ = c.Close()
		p.fired.Add(1)
	}
}

// Heal ends the fault. Connections that have lost bytes are reset: a network does not invent them anew.
func (p *Proxy) Heal() {
	p.mu.Lock()
	f := p.fault
	p.mu.Unlock()
	n := p.fired.Load()
	p.Set(Fault{Reset: f.DropUp || f.DropDown})
	p.mu.Lock()
	p.fault = Fault{}
	p.mu.Unlock()
	p.fired.Store(n)
}

// Close ends everything and waits for it.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	_ = p.listener.Close()
	for c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.work.Wait()
}

func (p *Proxy) now() Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		if p.now().Refuse {
			p.fired.Add(1)
			_ = c.Close()
			continue
		}
		p.work.Go(func() { p.serve(c) })
	}
}

func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	_ = c.Close()
}

func (p *Proxy) serve(client net.Conn) {
	if !p.keep(client) {
		return
	}
	defer p.drop(client)
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
	cancel()
	if err != nil || !p.keep(server) {
		return
	}
	defer p.drop(server)
	var both sync.WaitGroup
	pass := func(from, to net.Conn, count *atomic.Int64, swallows func(Fault) bool) {
		p.pass(from, to, count, swallows)
		_ = from.Close()
		_ = to.Close()
	}
	both.Go(func() { pass(client, server, &p.up, func(f Fault) bool { return f.DropUp }) })
	both.Go(func() { pass(server, client, &p.down, func(f Fault) bool { return f.DropDown }) })
	both.Wait()
}

// pass copies one direction until it ends.
func (p *Proxy) pass(from io.Reader, to io.Writer, count *atomic.Int64, swallows func(Fault) bool) {
	buf := make([]byte, 16<<10)
	swallowed, stalled := false, 0
	for {
		n, err := from.Read(buf)
		f := p.now()
		if n > 0 && swallows(f) {
			swallowed = true
		}
		if n > 0 && swallowed { // nothing after a gap is passed on
			p.fired.Add(1)
			n = 0
		}
		if n > 0 {
			stalled += n
			p.linger(f, n, &stalled)
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
			count.Add(int64(n))
		}
		if err != nil {
			return
		}
	}
}

// linger takes the time that a fault takes for n bytes.
func (p *Proxy) linger(f Fault, n int, stalled *int) {
	wait := f.Delay
	if f.StallEvery > 0 && *stalled >= f.StallEvery {
		wait += f.StallFor
		*stalled = 0
	}
	if f.Rate > 0 {
		wait += time.Duration(n) * time.Second / time.Duration(f.Rate)
	}
	if wait > 0 {
		p.fired.Add(1)
		time.Sleep(wait) // it is the fault itself
	}
}
