package remote

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
)

// Meter counts the bytes of messages on a connection, as they are on the wire, without the overhead of TLS and HTTP/2
// frames. One is given to each connection; on a server it counts what all movers send.
type Meter struct{ received, sent atomic.Int64 }

// Received returns how many bytes came.
func (m *Meter) Received() int64 { return m.received.Load() }

// Sent returns how many bytes went.
func (m *Meter) Sent() int64 { return m.sent.Load() }

// Option makes a connection count.
func (m *Meter) Option() grpc.DialOption { return grpc.WithStatsHandler(m) }

// ServerOption makes a server count.
func (m *Meter) ServerOption() grpc.ServerOption { return grpc.StatsHandler(m) }

// TagRPC implements stats.Handler.
func (m *Meter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// TagConn implements stats.Handler.
func (m *Meter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (m *Meter) HandleConn(context.Context, stats.ConnStats) {}

// HandleRPC implements stats.Handler.
func (m *Meter) HandleRPC(_ context.Context, s stats.RPCStats) {
	switch s := s.(type) {
	case *stats.InPayload:
		m.received.Add(int64(s.WireLength))
	case *stats.OutPayload:
		m.sent.Add(int64(s.WireLength))
	}
}
