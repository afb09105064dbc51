package engine

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// caPath is where an engine gives its own CA to everybody.
const caPath = "/ovirt-engine/services/pki-resource"

// The keys of Config.Options: whom to trust.
const (
	// OptCAFile is a PEM file on the appliance with the CA of the engine's web server.
	OptCAFile = "ca_file"
	// OptCAFingerprint is the SHA-256 of that CA's certificate, or of the server's own, in hex.
	OptCAFingerprint = "ca_fingerprint"
	// OptImageioCAFile is a PEM file with the CA of the hosts' imageio; by default the engine's own CA, asked of it.
	OptImageioCAFile = "imageio_ca_file"
)

// trust decides whether a certificate is the engine's: by a CA that is known, or by a fingerprint that a person has
// compared. Nothing is ever trusted because nothing was said.
type trust struct {
	base        *url.URL
	roots       *x509.CertPool // nil is the system's
	fingerprint string         // of the CA or of the server, lower-case hex; empty is none
	imageioCA   string         // PEM; empty is the engine's own

	mu     sync.Mutex
	pinned *x509.CertPool // the CA of the fingerprint, once it was seen
}

func newTrust(base *url.URL, options map[string]string) (*trust, error) {
	t := &trust{base: base}
	if file := options[OptCAFile]; file != "" {
		pemData, err := readCA(OptCAFile, file)
		if err != nil {
			return nil, err
		}
		t.roots = x509.NewCertPool()
		t.roots.AppendCertsFromPEM(pemData)
	}
	if print := options[OptCAFingerprint]; print != "" {
		t.fingerprint = strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(print))
		if raw, err := hex.DecodeString(t.fingerprint); err != nil || len(raw) != sha256.Size {
			return nil, fault.New(fault.Invalid, "read option", OptCAFingerprint, "it is no SHA-256 in hex").
				Explain("The fingerprint has 64 hexadecimal digits, with or without colons.",
					"On the engine: openssl x509 -in /etc/pki/ovirt-engine/apache-ca.pem -noout -fingerprint -sha256")
		}
	}
	if file := options[OptImageioCAFile]; file != "" {
		pemData, err := readCA(OptImageioCAFile, file)
		if err != nil {
			return nil, err
		}
		t.imageioCA = string(pemData)
	}
	return t, nil
}

// readCA reads a PEM file that has a certificate.
func readCA(option, file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "read option", option, err).
			Explain("The CA's file cannot be read on the appliance.", "Put the PEM file there, readable for the appliance, and give its path.")
	}
	if certs, err := parseCerts(data); err != nil || len(certs) == 0 {
		return nil, fault.New(fault.Invalid, "read option", option, "%s has no certificate in PEM", file).
			Explain("This file is no CA.", "On the engine it is /etc/pki/ovirt-engine/ca.pem, or what replaced apache-ca.pem.")
	}
	return data, nil
}

func parseCerts(data []byte) (out []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out, nil
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, cert)
	}
}

func fingerprintOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// config is that of connections to the engine.
func (t *trust) config() *tls.Config {
	if t.fingerprint == "" {
		return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: t.roots}
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // verify does it: by the fingerprint
		VerifyConnection:   t.verify,
	}
}

// verify holds a connection against the fingerprint: the server's own certificate has it, or one that signed that.
func (t *trust) verify(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the server shows no certificate")
	}
	leaf := s.PeerCertificates[0]
	if now := time.Now(); now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return x509.CertificateInvalidError{Cert: leaf, Reason: x509.Expired}
	}
	if fingerprintOf(leaf) == t.fingerprint {
		return nil
	}
	pool, err := t.pinnedCA(s.PeerCertificates[1:])
	if err != nil {
		return err
	}
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, DNSName: s.ServerName})
	return err
}

// pinnedCA finds the certificate with the fingerprint: among those the server sends, or where the engine gives it to
// everybody. Whether it is the right one, the fingerprint says.
func (t *trust) pinnedCA(sent []*x509.Certificate) (*x509.CertPool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pinned != nil {
		return t.pinned, nil
	}
	if len(sent) == 0 || fingerprintOf(sent[len(sent)-1]) != t.fingerprint {
		fetched, err := t.fetchCA()
		if err != nil {
			return nil, err
		}
		sent = append(sent, fetched...)
	}
	for _, c := range sent {
		if fingerprintOf(c) == t.fingerprint {
			t.pinned = x509.NewCertPool()
			t.pinned.AddCert(c)
			return t.pinned, nil
		}
	}
	return nil, &strangerError{sent[len(sent)-1]}
}

// strangerError says that nothing the server has is what was to be trusted.
type strangerError struct{ seen *x509.Certificate }

func (e *strangerError) Error() string {
	return fmt.Sprintf("no certificate of the server has the configured fingerprint; its CA's is %s", fingerprintOf(e.seen))
}

// fetchCA asks for the engine's CA over a connection that proves nothing.
func (t *trust) fetchCA() ([]*x509.Certificate, error) {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}, // a fingerprint decides
	}}
	c := &Conn{base: t.base, http: client}
	data, err := c.caCertificate(context.Background())
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(data)
	if err == nil && len(certs) == 0 {
		err = errors.New("the engine gives no CA certificate")
	}
	return certs, err
}

// caCertificate asks for the engine's CA, by which it signs the certificates of hosts. It is PEM.
func (c *Conn) caCertificate(ctx context.Context) ([]byte, error) {
	u := *c.base
	u.Path, u.RawQuery = caPath, Query("resource", "ca-certificate", "format", "X509-PEM-CA").Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	status, body, err := c.exchange(req)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("the engine answers %d when asked for its CA", status)
	}
	return body, err
}

// ImageioAuthority is the CA that imageio's certificates on hosts and on the engine are signed by, as PEM. Unless one
// is configured it is the engine's own, asked for over the connection that is trusted already.
func (c *Conn) ImageioAuthority(ctx context.Context) (string, error) {
	if c.trust.imageioCA != "" {
		return c.trust.imageioCA, nil
	}
	data, err := c.caCertificate(ctx)
	if err != nil {
		return "", c.unreachable(ctx, "ask for the CA of", c.base.Host, err)
	}
	if certs, err := parseCerts(data); err != nil || len(certs) == 0 {
		return "", fault.New(fault.Transient, "ask for the CA of", c.base.Host, "it answers no certificate")
	}
	return string(data), nil
}
