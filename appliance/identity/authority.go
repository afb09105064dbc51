package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

const (
	authorityLifetime   = 10 * 365 * 24 * time.Hour
	certificateLifetime = 90 * 24 * time.Hour
	// renewBefore is the last third of the lifetime.
	renewBefore = certificateLifetime / 3
	clockSkew   = time.Hour
)

// Authority is the appliance's own certificate authority and the certificate it serves. In its directory are
// ca.pem (key and certificate), ca.crt (the certificate alone, to hand out) and server.pem.
type Authority struct {
	dir   string
	hosts []string
	ca    tls.Certificate

	mu     sync.Mutex
	server tls.Certificate
}

// OpenAuthority opens the authority in dir, or makes it. hosts are the DNS names and IP addresses of the appliance; a
// server certificate that lacks one, or ends soon, is made anew.
func OpenAuthority(dir string, hosts []string) (*Authority, error) {
	a := &Authority{dir: dir, hosts: slices.Compact(slices.Sorted(slices.Values(hosts)))}
	err := a.open()
	if err != nil {
		return nil, fault.Context("open certificate authority", dir, err)
	}
	return a, nil
}

func (a *Authority) open() error {
	ca, err := readPair(a.path("ca.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		ca, err = a.create()
	}
	if err != nil {
		return err
	}
	a.ca = ca
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate[0]})
	if err := writeFile(a.path("ca.crt"), public, 0o644); err != nil {
		return err
	}
	server, err := readPair(a.path("server.pem"))
	if err == nil && a.fits(server, time.Now()) {
		a.server = server
		return nil
	}
	// A server certificate that cannot be read is worth nothing: there is always a new one.
	a.server, err = a.issue(time.Now())
	return err
}

func (a *Authority) path(name string) string { return filepath.Join(a.dir, name) }

// TLSConfig is that of a server: TLS 1.3, with a certificate that renews itself.
func (a *Authority) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.certificate(time.Now()) },
	}
}

func (a *Authority) certificate(now time.Time) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.fits(a.server, now) {
		fresh, err := a.issue(now)
		if err != nil {
			return nil, err
		}
		a.server = fresh
	}
	served := a.server
	return &served, nil
}

// CertificateFile is the certificate of the authority, for clients.
func (a *Authority) CertificateFile() string { return a.path("ca.crt") }

// Fingerprint is the SHA-256 of the authority's certificate, in hexadecimal. It is in every TLS handshake, so a
// client can pin it.
func (a *Authority) Fingerprint() string {
	sum := sha256.Sum256(a.ca.Certificate[0])
	return hex.EncodeToString(sum[:])
}

// fits reports whether the certificate is ours, names all hosts and is good for a while.
func (a *Authority) fits(c tls.Certificate, now time.Time) bool {
	leaf := c.Leaf
	if leaf == nil || now.Before(leaf.NotBefore) || now.After(leaf.NotAfter.Add(-renewBefore)) ||
		leaf.CheckSignatureFrom(a.ca.Leaf) != nil {
		return false
	}
	for _, h := range a.hosts {
		if leaf.VerifyHostname(h) != nil {
			return false
		}
	}
	return true
}

func (a *Authority) create() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	t := x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Cairn appliance", Organization: []string{"Cairn"}},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(authorityLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, &t, &t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return a.keep("ca.pem", key, der)
}

// issue makes a server certificate; the authority's own is sent with it, so that it can be pinned.
func (a *Authority) issue(now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "cairnd"},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(certificateLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range a.hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, &t, a.ca.Leaf, key.Public(), a.ca.PrivateKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	return a.keep("server.pem", key, der, a.ca.Certificate[0])
}

// IssueMover makes a client certificate for a mover's public key, good until ends. The identity is a URI, which a mover
// cannot choose.
func (a *Authority) IssueMover(key crypto.PublicKey, identity *url.URL, ends time.Time) (der []byte, err error) {
	now := time.Now()
	t := x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "cairn-mover"}, URIs: []*url.URL{identity},
		NotBefore: now.Add(-min(clockSkew, ends.Sub(now)/24)), NotAfter: ends,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err = x509.CreateCertificate(rand.Reader, &t, a.ca.Leaf, key, a.ca.PrivateKey)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "issue certificate", identity.String(), err)
	}
	return der, nil
}

// Certificate is the authority's own.
func (a *Authority) Certificate() *x509.Certificate { return a.ca.Leaf }

// keep writes a key and its certificates into one file, so that they cannot part.
func (a *Authority) keep(name string, key *ecdsa.PrivateKey, chain ...[]byte) (tls.Certificate, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, c := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	if err := writeFile(a.path(name), out, 0o600); err != nil {
		return tls.Certificate{}, err
	}
	return readPair(a.path(name))
}

func readPair(path string) (tls.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(b, b)
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails since Go 1.24
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}
