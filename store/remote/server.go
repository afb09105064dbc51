package remote

import (
	"context"
	"log/slog"
	"sync"

	"google.golang.org/grpc"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/store"
)

// Limits of messages, in bytes. Everything that is larger goes in several.
const (
	maxMessage = 4 << 20
	partBytes  = 256 << 10
	maxPart    = 1 << 20
)

// Options of a Server.
type Options struct {
	Authorizer Authorizer
	Log        *slog.Logger // nil: none
	// Refused, if not nil, is told of calls that were refused though the Authorizer had nothing against the ticket: for
	// what the ticket does not name, or what is no proper call. ticket is "" if there was none.
	Refused func(ctx context.Context, ticket, call string, err error)
}

// Server serves repositories to movers. What it keeps is what is being read; all about writing is in the sessions, so
// that a server that takes the place of another goes on where that was.
type Server struct {
	mover.UnimplementedRepositoryServer
	o Options

	mu      sync.Mutex
	reading map[reading]*store.ImageReader
}

// reading is an image that a ticket's opener reads.
type reading struct {
	ticket, opener string
	ref            store.ImageRef
}

// NewServer makes a server. Its service is registered with mover.RegisterRepositoryServer.
func NewServer(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{o: o, reading: map[reading]*store.ImageReader{}}
}

// GRPC are options for the grpc.Server, which bound what a mover can make it hold.
func GRPC() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(128),
		grpc.InitialWindowSize(1 << 20), grpc.InitialConnWindowSize(4 << 20),
	}
}

// End ends what a ticket has open. It is called when the transfer has ended, before or after the ticket is made void.
func (s *Server) End(ticket string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, r := range s.reading {
		if k.ticket == ticket {
			_ = r.Close()
			delete(s.reading, k)
		}
	}
}

// Close ends everything that is open for reading.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, r := range s.reading {
		_ = r.Close()
		delete(s.reading, k)
	}
	return nil
}

// Open implements the service.
func (s *Server) Open(ctx context.Context, _ *mover.OpenRequest) (_ *mover.OpenResponse, err error) {
	defer func() { err = s.toWire(ctx, "Open", err) }()
	ticket, opener, err := ticketOf(ctx)
	if err != nil {
		return nil, err
	}
	a, err := s.o.Authorizer.Open(ctx, ticket, opener)
	if err != nil {
		return nil, judged{err}
	}
	var t store.Terms
	var lease string
	switch {
	case a.Session != nil:
		t, lease = a.Session.Terms(), a.Session.Lease()
	case a.Repository != nil:
		t = a.Repository.Terms()
		t.Keys.Fingerprint, t.Keys.Mask = [32]byte{}, [32]byte{} // for writing only
	default:
		return nil, mayNot("do anything")
	}
	keys := append(append(append(make([]byte, 0, 96), t.Keys.Chunk[:]...), t.Keys.Fingerprint[:]...), t.Keys.Mask[:]...)
	return &mover.OpenResponse{
		Repository: t.Repository[:], ChunkBytes: uint32(t.ChunkBytes), FrameBytes: uint32(t.FrameBytes), PackBytes: uint32(t.PackBytes),
		Compression: string(t.Compression), Write: a.Session != nil, HashKeys: keys, Lease: lease,
	}, nil
}
