package nbd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"

	"github.com/cairn-backup/cairn/internal/fault"
)

// ServerOptions of a Server.
type ServerOptions struct {
	// TLS makes clients speak TLS before they may ask for anything; nil serves in the clear. Client certificates are
	// asked for as it says.
	TLS *tls.Config
	Log *slog.Logger // nil logs nothing
}

// Server offers exports to any number of clients over any number of listeners.
type Server struct {
	tls *tls.Config
	log *slog.Logger

	mu        sync.Mutex
	exports   map[string]*Export
	listeners map[net.Listener]bool
	conns     map[*serverConn]bool
	closed    bool
	running   sync.WaitGroup
}

// NewServer makes a server without exports.
func NewServer(o ServerOptions) *Server {
	s := &Server{
		log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), exports: map[string]*Export{}, listeners: map[net.Listener]bool{},
		conns: map[*serverConn]bool{},
	}
	if o.TLS != nil {
		s.tls = o.TLS.Clone()
		s.tls.MinVersion = max(s.tls.MinVersion, tls.VersionTLS12)
	}
	return s
}

// Add offers an export; one of that name must not be there.
func (s *Server) Add(e Export) error {
	minimum, preferred, maximum := e.blocks()
	var check Info
	if err := check.setBlockSizes(uint32(minimum), uint32(preferred), uint32(maximum)); err != nil {
		return fault.Wrap(fault.Invalid, "add export", e.Name, err)
	}
	if len(e.Name) > maxString || e.Backend == nil || e.Backend.Size()%int64(minimum) != 0 {
		return fault.New(fault.Invalid, "add export", e.Name, "name too long, no backend, or its size is no multiple of %d", minimum)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[e.Name] != nil {
		return fault.New(fault.Exists, "add export", e.Name, "there is one of that name")
	}
	s.exports[e.Name] = &e
	return nil
}

// Remove ends an export: its clients are cut off, and when Remove returns none of its backend's methods is running.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	e := s.exports[name]
	delete(s.exports, name)
	var cut []*serverConn
	for c := range s.conns {
		if e != nil && c.export == e {
			cut = append(cut, c)
		}
	}
	s.mu.Unlock()
	for _, c := range cut {
		c.cancel()
		_ = c.raw.Close()
		<-c.done
	}
}

// Exports returns the names of the exports, sorted.
func (s *Server) Exports() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for n := range s.exports {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Serve accepts clients until the listener or the server is closed; then it returns nil. It closes the listener.
func (s *Server) Serve(l net.Listener) error {
	defer func() { _ = l.Close() }()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.listeners[l] = true
	s.mu.Unlock()
	for {
		nc, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fault.Wrap(fault.Transient, "accept NBD client", l.Addr().String(), err)
		}
		s.serve(nc)
	}
}

// serve starts a connection.
func (s *Server) serve(nc net.Conn) {
	ctx, cancel := context.WithCancel(context.Background())
	c := &serverConn{server: s, nc: nc, raw: nc, cancel: cancel, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		cancel()
		_ = nc.Close()
		return
	}
	s.conns[c] = true
	s.running.Go(func() {
		defer close(c.done)
		err := c.run(ctx)
		cancel()
		_ = c.nc.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		if err != nil {
			s.log.Debug("nbd connection ended", "err", err)
		}
	})
}

// Close cuts all clients off and returns when no method of a backend is running any more. It may be repeated.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		_ = l.Close()
	}
	for c := range s.conns {
		c.cancel()
		_ = c.raw.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}
