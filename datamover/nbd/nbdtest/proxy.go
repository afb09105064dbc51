package nbdtest

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Proxy stands between a client and a server and cuts connections.
type Proxy struct {
	Network, Address string

	network, address string
	limit            func(connection int) int64
	l                net.Listener
	count, cuts      atomic.Int64
	mu               sync.Mutex
	open             map[net.Conn]bool
	refuse           bool
	running          sync.WaitGroup
}

// NewProxy starts a proxy before a server. limit says after how many bytes from the server each connection (0 is the
// first) is cut; a negative number never cuts.
func NewProxy(t testing.TB, network, address string, limit func(connection int) int64) *Proxy {
	t.Helper()
	l, err := net.Listen("unix", Socket(t))
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		Network: "unix", Address: l.Addr().String(), network: network, address: address, limit: limit, l: l, open: map[net.Conn]bool{},
	}
	p.running.Go(p.accept)
	t.Cleanup(p.Stop)
	return p
}

// Cuts returns how many connections the proxy has cut by its limit.
func (p *Proxy) Cuts() int { return int(p.cuts.Load()) }

// Stop cuts everything and listens no more.
func (p *Proxy) Stop() {
	_ = p.l.Close()
	p.mu.Lock()
	p.refuse = true
	p.mu.Unlock()
	p.CutAll()
	p.running.Wait()
}

// CutAll cuts the connections there are.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		_ = c.Close()
	}
}

func (p *Proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial(p.network, p.address)
		if err != nil {
			_ = c.Close()
			continue
		}
		p.mu.Lock()
		if p.refuse {
			p.mu.Unlock()
			_, _ = c.Close(), s.Close()
			return
		}
		p.open[c], p.open[s] = true, true
		p.mu.Unlock()
		n := p.limit(int(p.count.Add(1) - 1))
		p.running.Go(func() { p.pump(s, c, -1) })
		p.running.Go(func() { p.pump(c, s, n) })
	}
}

// pump copies until one side ends or n bytes are through, and closes both.
func (p *Proxy) pump(dst, src net.Conn, n int64) {
	var r io.Reader = src
	if n >= 0 {
		r = io.LimitReader(src, n)
	}
	m, err := io.Copy(dst, r)
	if n >= 0 && m == n && err == nil {
		p.cuts.Add(1)
	}
	_, _ = dst.Close(), src.Close()
	p.mu.Lock()
	delete(p.open, dst)
	delete(p.open, src)
	p.mu.Unlock()
}
