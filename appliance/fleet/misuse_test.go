package fleet_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/internal/fault"
)

// noCall is a call that there is not, and a ticket's first call where no repository is served.
const noCall, noRepository = "/cairn.mover.v1.Repository/DeletePack", "/cairn.mover.v1.Repository/Open"

// dial connects to the manager, with a certificate or as a stranger.
func (m *manager) dial(cert *tls.Certificate) *grpc.ClientConn {
	m.t.Helper()
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	if cert != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	conn, err := grpc.NewClient("passthrough:///"+m.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	check(m.t, err)
	m.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func certified(t *testing.T, v *mover) *tls.Certificate {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(v.config.StateDir, "identity.pem"))
	check(t, err)
	c, err := tls.X509KeyPair(b, b)
	check(t, err)
	c.Certificate = c.Certificate[:1]
	return &c
}

// call makes a call and returns the manager's words.
func call(t *testing.T, conn grpc.ClientConnInterface, method string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return pb.FromStatus(conn.Invoke(ctx, method, &pb.Heartbeat{}, &pb.Heartbeat{}))
}

// TestDataConnectionShowsTheNewCertificate: the way to the repositories is used all the time, and still nobody is refused
// when the certificate ends that it was opened with.
func TestDataConnectionShowsTheNewCertificate(t *testing.T) {
	t.Parallel()
	m := newManager(t, fleet.Timing{Certificate: 30 * time.Second})
	v := newMover(t, m, m.token(fleet.NewToken{}))
	opened := make(chan grpc.ClientConnInterface, 1)
	v.config.Open = func(c grpc.ClientConnInterface) agent.Mover {
		opened <- c
		return v.work
	}
	v.start()
	m.log.await("mover connected", 1)
	data, first, old := <-opened, certificate(t, v), certified(t, v)
	wantFault(t, call(t, data, noRepository), fault.Unsupported, "no such call") // it is open, with the first certificate
	v.log.await("certificate renewed", 1)
	m.ahead.Store(int64(time.Until(first.NotAfter) + time.Second)) // and the second one is still good
	wantFault(t, call(t, data, noRepository), fault.Unsupported, "no such call")
	wantFault(t, call(t, m.dial(old), noRepository), fault.Denied, "it is good from") // the first one is not
}

// forged is a certificate of an authority of its own.
func forged(t *testing.T, identity string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	u, err := url.Parse(identity)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), URIs: []*url.URL{u}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestMisuse: who has no certificate, an expired one, one that was made up, or asks for what there is not, is refused,
// and it stands in the audit log.
func TestMisuse(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	good := certified(t, v)
	tests := []struct {
		name   string
		cert   *tls.Certificate
		ahead  time.Duration
		method string
		kind   fault.Kind
		words  string
		actor  string
	}{
		{"a stranger", nil, 0, noRepository, fault.Denied, "shows no certificate", ""},
		{"a stranger at the control stream", nil, 0, pb.Enrolment_Renew_FullMethodName, fault.Denied, "shows no certificate", ""},
		{"made up", forged(t, pb.IdentityPrefix+m.id()), 0, noRepository, fault.Denied, "not one that this manager has given", ""},
		{"expired", good, 25 * time.Hour, noRepository, fault.Denied, "it is good from", "mover " + m.id()},
		{"deletion", good, 0, noCall, fault.Unsupported, "there is no such call", "mover " + m.id()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m.ahead.Store(int64(tt.ahead))
			defer m.ahead.Store(0)
			before := len(m.audited("mover.call"))
			wantFault(t, call(t, m.dial(tt.cert), tt.method), tt.kind, tt.words)
			a := m.audited("mover.call")
			if len(a) != before+1 || !a[0].Refused || a[0].Subject != tt.method || !strings.Contains(a[0].Detail, tt.words) || a[0].Actor != tt.actor || a[0].Source != "127.0.0.1" {
				t.Errorf("audit %+v", a)
			}
		})
	}
}

// TestStrangersDoNotFillTheAuditLog: of many refusals a few are written, the number of the rest is, and a mover's own are
// written all the same.
func TestStrangersDoNotFillTheAuditLog(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	stranger := m.dial(nil)
	const tries = 60
	for range tries {
		wantFault(t, call(t, stranger, noRepository), fault.Denied, "shows no certificate")
	}
	written := len(m.audited("mover.call"))
	if written == 0 || written > tries/2 {
		t.Errorf("%d of %d refusals are in the audit log", written, tries)
	}
	wantFault(t, call(t, m.dial(certified(t, v)), noCall), fault.Unsupported, "there is no such call")
	if a := m.audited("mover.call"); len(a) != written+1 || a[0].Subject != noCall {
		t.Errorf("a mover's own is not in the audit log: %+v", a)
	}
	m.ahead.Store(int64(2 * time.Minute))
	wantFault(t, call(t, stranger, noRepository), fault.Denied, "shows no certificate")
	if a := m.audited("mover.call"); len(a) != written+2 || !strings.Contains(a[0].Detail, "(and 40 more refusals before this one)") {
		t.Errorf("%d before: audit %+v", written, a[0])
	}
}

// TestConnectionsAreLimited: who opens connections and says nothing loses the oldest of them, and keeps nobody out.
func TestConnectionsAreLimited(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	const most, more = 32, 8
	conns := make([]net.Conn, most+more)
	for i := range conns {
		c, err := net.Dial("tcp", m.address)
		check(t, err)
		defer c.Close()
		conns[i] = c
	}
	for i, c := range conns[:more] {
		check(t, c.SetReadDeadline(time.Now().Add(patience)))
		if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("connection %d is open: %v", i, err)
		}
	}
	youngest := tls.Client(conns[most+more-1], &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err := youngest.HandshakeContext(t.Context()); err != nil {
		t.Errorf("the youngest connection is closed, too: %v", err)
	}
	second := newMover(t, m, m.token(fleet.NewToken{Name: "m2"}))
	second.start()
	m.log.await("mover connected", 2) // through the crowd
	b := m.fleet.Mover(firstOf(t, m))
	close(v.work.release)
	_, err := b.Backup(t.Context(), agent.BackupTask{ID: "a"}, nil)
	check(t, err)

	// A mover has its own limit.
	cert := certified(t, v)
	refused := 0
	for range 20 {
		c, err := tls.Dial("tcp", m.address, &tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*cert},
		})
		check(t, err)
		defer c.Close()
		check(t, c.SetReadDeadline(time.Now().Add(patience)))
		if _, err := io.ReadFull(c, make([]byte, 9)); err != nil { // the head of the first frame
			refused++
		}
	}
	if refused < 4 || refused > 6 {
		t.Errorf("%d of 20 connections of one mover were refused", refused)
	}
}

// firstOf is the id of mover m1.
func firstOf(t *testing.T, m *manager) string {
	t.Helper()
	i, err := m.fleet.Get(t.Context(), "m1")
	check(t, err)
	return i.ID
}
