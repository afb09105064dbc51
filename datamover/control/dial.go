package control

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
)

const (
	connectTime    = 15 * time.Second
	keepaliveEvery = 20 * time.Second
	keepaliveWait  = 15 * time.Second
	maxMessage     = 8 << 20
)

// errImpostor says that who answers is not the manager.
var errImpostor = errors.New("this is not the manager")

// dialer connects to the manager and checks who answers.
type dialer struct {
	manager     string
	fingerprint string
	show        func() *tls.Certificate // nil before the mover is enrolled
	limit       *throttle               // nil: none

	mu      sync.Mutex
	refused error // why the last answer was not the manager's
}

func (m *machine) dialer() *dialer {
	return &dialer{manager: m.Manager, fingerprint: m.Fingerprint, show: func() *tls.Certificate { return m.current() }}
}

// connect makes a connection that dials when it is used.
func (d *dialer) connect() (*grpc.ClientConn, error) {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: pb.ManagerName, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // VerifyConnection does it, by the fingerprint
		VerifyConnection: func(s tls.ConnectionState) error {
			err := verify(s.PeerCertificates, d.fingerprint, time.Now())
			d.mu.Lock()
			d.refused = err
			d.mu.Unlock()
			return err
		},
	}
	if d.show != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return d.show(), nil }
	}
	b := backoff.DefaultConfig
	b.MaxDelay = 10 * time.Second
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: b, MinConnectTimeout: connectTime}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveEvery, Timeout: keepaliveWait, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)), grpc.WithNoProxy(),
	}
	if d.limit != nil {
		options = append(options, grpc.WithContextDialer(d.limit.dial))
	}
	conn, err := grpc.NewClient("passthrough:///"+d.manager, options...)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "connect to manager", d.manager, err)
	}
	return conn, nil
}

// why prefers the reason for which a connection was not made to what gRPC says of it.
func (d *dialer) why(op string, err error) error {
	if err == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused != nil {
		return d.refused
	}
	return fault.Context(op, d.manager, pb.FromStatus(err))
}

// verify checks that the chain is one of the authority with the fingerprint, for a manager.
func verify(chain []*x509.Certificate, fingerprint string, now time.Time) error {
	impostor := func(why string) error {
		return fault.New(fault.Denied, "recognise manager", "", "%w: %s", errImpostor, why).Explain(
			"Who answers at the manager's address is not the manager that the fingerprint names. Nothing secret was sent.",
			"Compare the fingerprint with what the manager printed at its start; if they differ, somebody is in between, or the address is another appliance's.")
	}
	var root *x509.Certificate
	for _, c := range chain {
		if c.IsCA && fingerprintOf(c) == fingerprint {
			root = c
		}
	}
	if root == nil {
		return impostor("the certificate's authority is not the one with the fingerprint " + fingerprint)
	}
	o := x509.VerifyOptions{
		Roots: x509.NewCertPool(), DNSName: pb.ManagerName, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	o.Roots.AddCert(root)
	leaf := chain[0]
	_, err := leaf.Verify(o)
	if err == nil {
		return nil
	}
	o.CurrentTime = leaf.NotBefore
	if _, other := leaf.Verify(o); other != nil {
		return impostor(err.Error())
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); !ok || e.Reason != x509.Expired {
		return impostor(err.Error())
	}
	return fault.New(fault.Transient, "recognise manager", "", "its certificate is good from %s to %s, and this machine's clock says %s",
		leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)).Explain(
		"One of the two clocks is wrong, most likely this machine's.", "Set this machine's clock, or let NTP do it; the mover tries again by itself.")
}
