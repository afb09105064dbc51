package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

const (
	// maxMessage bounds what is received in one message; data comes in smaller parts.
	maxMessage     = 8 << 20
	handshakeTime  = 15 * time.Second
	keepaliveEvery = 20 * time.Second
	keepaliveWait  = 15 * time.Second
	maxStreams     = 256 // of one connection
	goodbyeTime    = 2 * time.Second
)

// Server makes the gRPC server of the movers' listener. config has the manager's certificate. Other services may be
// registered on it, which options may be for: a call reaches them only from an enrolled mover, which PeerOf names.
func (f *Fleet) Server(config *tls.Config, options ...grpc.ServerOption) *grpc.Server {
	config = config.Clone()
	config.MinVersion = tls.VersionTLS13
	config.NextProtos = []string{"h2"}
	// A certificate is judged by cuttable, not by TLS, so that a mover whose own is no good learns why in words. Strangers
	// reach Enrol only, see caller.
	config.ClientAuth = tls.RequestClientCert
	config.ClientCAs = x509.NewCertPool()
	config.ClientCAs.AddCert(f.authority.Certificate())
	s := grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(cuttable{credentials.NewTLS(config), f}),
		grpc.MaxRecvMsgSize(maxMessage), grpc.ConnectionTimeout(handshakeTime), grpc.MaxConcurrentStreams(maxStreams),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveEvery, Timeout: keepaliveWait}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveEvery / 4, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(f.unary), grpc.StreamInterceptor(f.stream), grpc.UnknownServiceHandler(f.unknown),
	}, options...)...)
	pb.RegisterEnrolmentServer(s, f.enrolment)
	pb.RegisterControlServer(s, &control{fleet: f})
	return s
}

// Serve answers movers on the listener until ctx is done. It owns the listener.
func (f *Fleet) Serve(ctx context.Context, l net.Listener, s *grpc.Server) error {
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(newDoor(l)) }()
	select {
	case err := <-failed:
		return fault.Wrap(fault.Internal, "serve movers", l.Addr().String(), err)
	case <-ctx.Done():
	}
	f.stop()
	s.Stop()
	return <-failed
}

// stop says goodbye to all movers, so that they come back soon to the next process.
func (f *Fleet) stop() {
	f.mu.Lock()
	f.stopping = true
	links := make([]*link, 0, len(f.links))
	for _, l := range f.links {
		links = append(links, l)
	}
	f.mu.Unlock()
	for _, l := range links {
		l.end(pb.Goodbye_REASON_STOPPING, "The manager stops.")
	}
	limit := time.After(goodbyeTime)
	for _, l := range links {
		select {
		case <-l.gone:
		case <-limit:
			return
		}
	}
}

// Peer is the mover that makes a call.
type Peer struct {
	Mover  catalog.Mover
	Source string // its address

	ends    time.Time // of its certificate
	address string    // with the port
}

type peerKey struct{}

// PeerOf says which mover makes the call of a context.
func PeerOf(ctx context.Context) (Peer, error) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	if !ok {
		return Peer{}, fault.New(fault.Denied, "identify mover", "", "the call shows no certificate of a mover").Explain(
			"Only enrolled movers may make this call.", freshToken)
	}
	return p, nil
}

// caller puts the mover of a call into its context. Enrol is open to strangers.
func (f *Fleet) caller(ctx context.Context, method string) (context.Context, error) {
	if method == pb.Enrolment_Enrol_FullMethodName {
		return ctx, nil
	}
	p := Peer{Source: sourceOf(ctx)}
	var info shown
	if c, ok := peer.FromContext(ctx); ok {
		info, _ = c.AuthInfo.(shown)
		p.address = c.Addr.String()
	}
	err := info.judge(f.authority.Certificate(), f.now())
	if err == nil {
		p.Mover, err = f.admit(ctx, moverIn(info.cert))
	}
	if err == nil {
		p.ends = info.cert.NotAfter
		return context.WithValue(ctx, peerKey{}, p), nil
	}
	if fault.KindOf(err) == fault.Denied {
		f.Audit(ctx, catalog.AuditEntry{
			Actor: info.actor(f.authority.Certificate()), Source: p.Source, Action: "mover.call", Subject: method, Refused: true, Detail: brief(err.Error()),
		})
	}
	return nil, pb.Status(err)
}

// shown is a connection with the certificate that the other side has shown and has the key of; nil is none.
type shown struct {
	credentials.TLSInfo
	cert *x509.Certificate
}

// actor is who calls, by a certificate of ours, be it expired; "" is a stranger.
func (s shown) actor(authority *x509.Certificate) string {
	if s.cert == nil || s.signed(authority, s.cert.NotBefore) != nil || moverIn(s.cert) == "" {
		return ""
	}
	return "mover " + brief(moverIn(s.cert))
}

// signed checks that the certificate is one of the authority's for a client, at some time.
func (s shown) signed(authority *x509.Certificate, at time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	_, err := s.cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, CurrentTime: at})
	return err
}

// judge reports why the certificate is not one of ours for a mover, or not at this time.
func (s shown) judge(authority *x509.Certificate, now time.Time) error {
	if s.cert == nil {
		_, err := PeerOf(context.Background())
		return err
	}
	err := s.signed(authority, now)
	if err == nil && moverIn(s.cert) != "" {
		return nil
	}
	if err != nil && s.signed(authority, s.cert.NotBefore) == nil {
		return fault.New(fault.Denied, "use certificate", moverIn(s.cert), "it is good from %s to %s, and the manager's clock says %s",
			s.cert.NotBefore.UTC().Format(time.RFC3339), s.cert.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)).Explain(
			"The mover's certificate has expired, because the mover was not connected for too long, or the manager's clock is wrong.",
			"Check the manager's clock. "+freshToken)
	}
	return fault.New(fault.Denied, "use certificate", "", "it is not one that this manager has given to a mover").Explain(
		"The mover belongs to another appliance, or to this one before it got a new authority.", freshToken)
}

func (f *Fleet) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	ctx, err := f.caller(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return h(ctx, req)
}

func (f *Fleet) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	ctx, err := f.caller(s.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return h(srv, inContext{s, ctx})
}

type inContext struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // that is how gRPC gives a stream its context
}

// Context is that of the call, with the mover in it.
func (s inContext) Context() context.Context { return s.ctx }

// cuttable keeps the connections of each mover, so that they can be closed when it is revoked, and remembers which
// certificate was shown.
type cuttable struct {
	credentials.TransportCredentials
	fleet *Fleet
}

// Clone is for gRPC.
func (c cuttable) Clone() credentials.TransportCredentials {
	return cuttable{c.TransportCredentials.Clone(), c.fleet}
}

// ServerHandshake is for gRPC.
func (c cuttable) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	secure, ok := info.(credentials.TLSInfo)
	if !ok || len(secure.State.PeerCertificates) == 0 {
		return conn, info, nil
	}
	who := shown{secure, secure.State.PeerCertificates[0]}
	if who.judge(c.fleet.authority.Certificate(), c.fleet.now()) != nil {
		return conn, who, nil // a stranger still, whose calls are refused in words
	}
	id := moverIn(who.cert)
	kept := c.fleet.keep(id, conn)
	if kept == nil {
		_ = conn.Close()
		return nil, nil, fault.New(fault.Denied, "connect mover", id, "it has %d connections already", connsPerMover)
	}
	if g, ok := raw.(*guest); ok {
		g.known(c.fleet.trafficOf(id))
	}
	return kept, who, nil
}

type keptConn struct {
	net.Conn
	forget func()
}

// Close closes the connection.
func (c keptConn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// keep counts a connection of a mover; nil if it has too many.
func (f *Fleet) keep(id string, conn net.Conn) net.Conn {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.conns[id]) >= connsPerMover {
		return nil
	}
	if f.conns[id] == nil {
		f.conns[id] = map[net.Conn]chan struct{}{}
	}
	closed := make(chan struct{})
	f.conns[id][conn] = closed
	return keptConn{conn, sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		close(closed)
		delete(f.conns[id], conn)
		if len(f.conns[id]) == 0 {
			delete(f.conns, id)
		}
	})}
}

// trafficOf is the count of what a mover's connections move, since this process began.
func (f *Fleet) trafficOf(id string) *traffic {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.traffic[id] == nil {
		f.traffic[id] = &traffic{}
	}
	return f.traffic[id]
}

// Cut ends everything that a mover has open: it is told why, then its connections are closed.
func (f *Fleet) Cut(id string, reason pb.Goodbye_Reason, message string) {
	f.mu.Lock()
	l := f.links[id]
	var telling net.Conn // which must not be closed before the message is out
	var told chan struct{}
	var others []net.Conn
	for c, closed := range f.conns[id] {
		if l != nil && c.RemoteAddr().String() == l.address {
			telling, told = c, closed
		} else {
			others = append(others, c)
		}
	}
	f.mu.Unlock()
	for _, c := range others {
		_ = c.Close()
	}
	if l != nil {
		l.end(reason, message)
	}
	if telling == nil {
		return
	}
	select {
	case <-told: // the mover has read it and hung up
	case <-time.After(goodbyeTime):
	}
	_ = telling.Close()
}
