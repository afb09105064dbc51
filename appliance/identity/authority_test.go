package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// handshake connects to a server of the authority as host and returns the client's view.
func handshake(t *testing.T, a *Authority, host string, version uint16) (tls.ConnectionState, error) {
	t.Helper()
	pem, err := os.ReadFile(a.CertificateFile())
	check(t, err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("ca.crt holds no certificate")
	}
	here, there := net.Pipe()
	served := make(chan error, 1)
	go func() {
		s := tls.Server(there, a.TLSConfig())
		served <- s.Handshake()
		_, _ = io.Copy(io.Discard, s) // until the client closes
		_ = there.Close()
	}()
	c := tls.Client(here, &tls.Config{RootCAs: pool, ServerName: host, MaxVersion: version, MinVersion: tls.VersionTLS10})
	err = c.Handshake()
	state := c.ConnectionState()
	_ = here.Close()
	<-served
	return state, err
}

func TestAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	a, err := OpenAuthority(dir, []string{"localhost", "127.0.0.1", "::1", "cairn.example"})
	check(t, err)
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "cairn.example"} {
		state, err := handshake(t, a, host, tls.VersionTLS13)
		if err != nil || state.Version != tls.VersionTLS13 {
			t.Errorf("%s: TLS %x, %v", host, state.Version, err)
			continue
		}
		chain := state.PeerCertificates
		sum := sha256.Sum256(chain[len(chain)-1].Raw)
		if len(chain) != 2 || hex.EncodeToString(sum[:]) != a.Fingerprint() {
			t.Errorf("%s: the authority cannot be pinned from %d certificates", host, len(chain))
		}
		if key, ok := chain[0].PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() || chain[0].IsCA {
			t.Errorf("%s: certificate %+v", host, chain[0].Subject)
		}
	}
	if _, err := handshake(t, a, "other.example", tls.VersionTLS13); err == nil {
		t.Error("the certificate is good for another host")
	}
	if _, err := handshake(t, a, "localhost", tls.VersionTLS12); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	for name, mode := range map[string]os.FileMode{"ca.pem": 0o600, "server.pem": 0o600, "ca.crt": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestAuthorityIsKept(t *testing.T) {
	dir := t.TempDir()
	first, err := OpenAuthority(dir, []string{"b", "a", "a"})
	check(t, err)
	tests := []struct {
		name  string
		hosts []string
		spoil func()
		same  bool // the server's certificate
	}{
		{"as it was", []string{"a", "b"}, nil, true},
		{"fewer hosts", []string{"a"}, nil, true},
		{"another host", []string{"a", "c"}, nil, false},
		{"damaged server certificate", []string{"a", "c"}, func() { check(t, os.WriteFile(filepath.Join(dir, "server.pem"), []byte("x"), 0o600)) }, false},
		{"lost public copy", []string{"a"}, func() { check(t, os.Remove(filepath.Join(dir, "ca.crt"))) }, true},
	}
	last := first
	for _, tt := range tests {
		if tt.spoil != nil {
			tt.spoil()
		}
		a, err := OpenAuthority(dir, tt.hosts)
		check(t, err)
		if a.Fingerprint() != first.Fingerprint() {
			t.Errorf("%s: another authority", tt.name)
		}
		if same := a.server.Leaf.Equal(last.server.Leaf); same != tt.same {
			t.Errorf("%s: same server certificate is %v, want %v", tt.name, same, tt.same)
		}
		if _, err := handshake(t, a, tt.hosts[0], tls.VersionTLS13); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		last = a
	}
}

// TestDamagedAuthorityIsNotReplaced: clients have pinned it, so a new one would only hide the damage.
func TestDamagedAuthorityIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	_, err := OpenAuthority(dir, []string{"a"})
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("x"), 0o600))
	if _, err := OpenAuthority(dir, []string{"a"}); err == nil {
		t.Error("a damaged authority was opened")
	}
}

func TestCertificateRenewsItself(t *testing.T) {
	a, err := OpenAuthority(t.TempDir(), []string{"a"})
	check(t, err)
	now := time.Now()
	first, err := a.certificate(now)
	check(t, err)
	early, err := a.certificate(now.Add(certificateLifetime - renewBefore - time.Hour))
	check(t, err)
	late, err := a.certificate(now.Add(certificateLifetime - renewBefore + time.Hour))
	check(t, err)
	if !first.Leaf.Equal(early.Leaf) || first.Leaf.Equal(late.Leaf) {
		t.Errorf("renewed early: %v, in time: %v", !first.Leaf.Equal(early.Leaf), !first.Leaf.Equal(late.Leaf))
	}
	again, err := OpenAuthority(a.dir, []string{"a"})
	check(t, err)
	if pair, err := readPair(again.path("server.pem")); err != nil || len(pair.Certificate) != 2 {
		t.Errorf("server.pem after renewal: %v", err)
	}
}
