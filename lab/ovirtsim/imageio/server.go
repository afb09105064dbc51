package imageio

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Options of a Server.
type Options struct {
	Certificate tls.Certificate
	// UnixSocket is the path that clients on the host are told of; the caller serves it. "" is none.
	UnixSocket string
	// Now is the time by which tickets end; nil is time.Now.
	Now func() time.Time
}

// Server is a daemon. Its methods may be called from several goroutines.
type Server struct {
	options Options
	http    *http.Server

	mu      sync.Mutex
	tickets map[string]*ticket
	conns   map[*timedConn]bool
	fewer   chan struct{} // closed when a connection has ended
	faults  []*Injected
	stats   Stats
	working [2]int // reads and writes under way
}

// Stats are what a Server has done.
type Stats struct {
	Connections          int // opened so far
	OpenConnections      int
	MostConnections      int            // at once
	Requests             map[string]int // by method, extents and checksums by their names
	BytesRead, BytesSent int64          // of images, from and to clients
	// MostReaders and MostWriters are how many reads and writes there were at once.
	MostReaders, MostWriters int
	LostBytes                int64 // in crashes: written and not flushed
}

// NewServer makes a daemon without tickets.
func NewServer(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{options: o, tickets: map[string]*ticket{}, conns: map[*timedConn]bool{}, fewer: make(chan struct{}), stats: Stats{Requests: map[string]int{}}}
	s.http = &http.Server{
		Handler: http.HandlerFunc(s.handle), ErrorLog: log.New(nothing{}, "", 0), ConnContext: withConn,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	return s
}

type nothing struct{}

func (nothing) Write(p []byte) (int, error) { return len(p), nil }

// Serve serves TLS on a listener until Close, ServeUnix plain HTTP.
func (s *Server) Serve(l net.Listener) error {
	return s.serve(tls.NewListener(timedListener{l, s}, &tls.Config{Certificates: []tls.Certificate{s.options.Certificate}, MinVersion: tls.VersionTLS12}))
}

// ServeUnix serves plain HTTP on a listener until Close: the host's own socket.
func (s *Server) ServeUnix(l net.Listener) error { return s.serve(timedListener{l, s}) }

func (s *Server) serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close ends the daemon with its connections. The tickets' backends are the caller's to close.
func (s *Server) Close() error {
	err := s.http.Close()
	s.HangUp()
	return err
}

// HangUp breaks all connections, as the daemon does with each one that stalls too long.
func (s *Server) HangUp() {
	s.mu.Lock()
	var all []*timedConn
	for c := range s.conns {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

// Crash breaks all connections and loses what volatile tickets' clients have not flushed. The tickets are there at once again.
func (s *Server) Crash() {
	s.mu.Lock()
	for _, t := range s.tickets {
		if v, ok := t.Backend.(*volatile); ok {
			s.stats.LostBytes += v.crash()
		}
	}
	s.mu.Unlock()
	s.HangUp()
}

func (s *Server) came(c *timedConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = true
	s.stats.Connections++
	s.stats.MostConnections = max(s.stats.MostConnections, len(s.conns))
}

func (s *Server) left(c *timedConn) {
	s.mu.Lock()
	delete(s.conns, c)
	close(s.fewer)
	s.fewer = make(chan struct{})
	tickets := make([]*ticket, 0, len(s.tickets))
	for _, t := range s.tickets {
		tickets = append(tickets, t)
	}
	s.mu.Unlock()
	for _, t := range tickets {
		t.left(c)
	}
}

// AwaitHungUp waits until no connection is open.
func (s *Server) AwaitHungUp(ctx context.Context) error {
	for {
		s.mu.Lock()
		open, fewer := len(s.conns), s.fewer
		s.mu.Unlock()
		if open == 0 {
			return nil
		}
		select {
		case <-fewer:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Stats returns what was done so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.OpenConnections = len(s.conns)
	out.Requests = map[string]int{}
	for k, v := range s.stats.Requests {
		out.Requests[k] = v
	}
	return out
}

// AddTicket lets clients use an image.
func (s *Server) AddTicket(t Ticket) error {
	if t.ID == "" || t.ID == "*" || t.Backend == nil || t.SizeBytes <= 0 {
		return fault.New(fault.Invalid, "add ticket of transfer", t.TransferID, "no id, no backend or no size")
	}
	t.TransferID = cmp.Or(t.TransferID, "(ticket)")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickets[t.ID] = newTicket(t, s.options.Now)
	return nil
}

// Ticket returns what is known of a ticket; ok is false if there is none.
func (s *Server) Ticket(id string) (info TicketInfo, ok bool) {
	if t := s.find(id); t != nil {
		return t.info(), true
	}
	return TicketInfo{}, false
}

// ExtendTicket lets a ticket live so long from now on.
func (s *Server) ExtendTicket(id string, timeout time.Duration) error {
	t := s.find(id)
	if t == nil {
		return fault.New(fault.NotFound, "extend ticket", "", "there is none")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expires = s.options.Now().Add(timeout)
	return nil
}

// RemoveTicket cancels a ticket and removes it when no operation is under way any more; if ctx ends before, the ticket stays
// canceled and the error is a Conflict. Connections that wait for requests do not hinder it. A ticket that is not there is no error.
func (s *Server) RemoveTicket(ctx context.Context, id string) error {
	t := s.find(id)
	if t == nil {
		return nil
	}
	if err := t.remove(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tickets[id] == t {
		delete(s.tickets, id)
	}
	return nil
}

func (s *Server) find(id string) *ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tickets[id]
}

// work counts operations under way until the function it returns is called.
func (s *Server) work(writing bool) func() {
	i, most := 0, &s.stats.MostReaders
	if writing {
		i, most = 1, &s.stats.MostWriters
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.working[i]++
	*most = max(*most, s.working[i])
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.working[i]--
	}
}

func (s *Server) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Requests[what]++
}

func (s *Server) moved(read, sent int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.BytesRead += read
	s.stats.BytesSent += sent
}

type connKey struct{}

// withConn keeps a request's connection in its context.
func withConn(ctx context.Context, nc net.Conn) context.Context {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, nc)
}

func connOf(r *http.Request) *timedConn {
	c, _ := r.Context().Value(connKey{}).(*timedConn)
	return c
}
