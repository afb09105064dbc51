package remote

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/profile"
	"github.com/cairn-backup/cairn/internal/fault"
)

// FingerprintOf returns "sha256:" and the SHA-256 of a certificate, as the appliance prints it.
func FingerprintOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// errPin says that no CA of the server's chain has the fingerprint that was pinned.
var errPin = errors.New("the server's certificate chain holds no CA with the pinned fingerprint")

// trust builds the TLS configuration of a context: pinned by the fingerprint of the CA, by a CA file, or by what the
// operating system trusts.
func trust(c profile.Context) (*tls.Config, error) {
	u, err := url.Parse(c.Server)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "read address", c.Server, err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: u.Hostname()}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fault.Wrap(fault.KindOf(err), "read CA certificate", c.CAFile, err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.New(fault.Invalid, "read CA certificate", c.CAFile, "there is no PEM certificate in it")
		}
	}
	if c.CAFingerprint != "" {
		// The standard verification needs the CA itself; only its fingerprint is known, so it is replaced by the same
		// verification against the one CA of the chain that has it. VerifyConnection also runs when a session resumes.
		cfg.InsecureSkipVerify = true
		roots := cfg.RootCAs
		cfg.VerifyConnection = func(s tls.ConnectionState) error { return verifyPinned(s, c.CAFingerprint, u.Hostname(), roots) }
	}
	return cfg, nil
}

func verifyPinned(s tls.ConnectionState, pin, host string, roots *x509.CertPool) error {
	if len(s.PeerCertificates) == 0 {
		return errPin
	}
	options := x509.VerifyOptions{DNSName: host, Intermediates: x509.NewCertPool(), Roots: x509.NewCertPool()}
	found := false
	for _, cert := range s.PeerCertificates[1:] {
		if cert.IsCA && FingerprintOf(cert) == pin {
			options.Roots.AddCert(cert)
			found = true
		} else {
			options.Intermediates.AddCert(cert)
		}
	}
	if !found {
		return errPin
	}
	if _, err := s.PeerCertificates[0].Verify(options); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
	}
	if roots == nil {
		return nil
	}
	options.Roots = roots
	_, err := s.PeerCertificates[0].Verify(options)
	return err
}

// errSeen ends the handshake of Probe before anything is sent.
var errSeen = errors.New("chain seen")

// Probe returns the fingerprint of the CA that a server presents, so that a person can compare it with what the
// appliance printed. Nothing is sent: the handshake is broken off once the chain is seen.
func Probe(ctx context.Context, server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, "read address", server, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var seen string
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: u.Hostname(), InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if chain := s.PeerCertificates; len(chain) > 1 && chain[len(chain)-1].IsCA {
				seen = FingerprintOf(chain[len(chain)-1])
			}
			return errSeen
		},
	}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", hostPort(u))
	if err == nil {
		err = conn.Close()
	}
	if errors.Is(err, errSeen) {
		if seen == "" {
			return "", fault.New(fault.Denied, "look at", server, "the server presents no CA certificate").
				Explain("It is not an appliance with its own CA, or a proxy stands before it.", "Give the CA with --cacert FILE.")
		}
		return seen, nil
	}
	return "", explain(server, err)
}

// TrustedBySystem reports whether the operating system trusts the server's certificate already.
func TrustedBySystem(ctx context.Context, server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: u.Hostname()}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", hostPort(u))
	if err != nil {
		return false
	}
	_ = conn.Close() // it was opened only to be looked at
	return true
}

func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), "443")
}
