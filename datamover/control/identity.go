package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/durable"
	"github.com/cairn-backup/cairn/internal/fault"
)

// The files of the state directory.
const (
	identityFile = "identity.pem" // key, certificate and authority in one, so that they cannot part
	pendingFile  = "pending.pem"  // the key of an enrolment whose answer may have been lost
)

// identity is what a mover shows, and by what it knows its manager.
type identity struct {
	pair      tls.Certificate
	authority *x509.Certificate
}

func (i *identity) ends() time.Time { return i.pair.Leaf.NotAfter }

// halfLife is when a new certificate is due.
func (i *identity) halfLife() time.Time {
	leaf := i.pair.Leaf
	return leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 2)
}

func (i *identity) fingerprint() string { return fingerprintOf(i.authority) }

func fingerprintOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// loadIdentity reads the identity; fs.ErrNotExist if there is none.
func loadIdentity(dir string) (*identity, error) {
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(b, b)
	if err == nil && len(pair.Certificate) != 2 {
		err = errors.New("it has no certificate of the manager's authority")
	}
	var authority *x509.Certificate
	if err == nil {
		authority, err = x509.ParseCertificate(pair.Certificate[1])
	}
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, "read identity", path, err).Explain(
			"The mover's own key and certificate cannot be read, so the manager will not know it.",
			"Remove the file and start the mover with a new token: `cairn mover token --name NAME --replace`.")
	}
	return &identity{pair, authority}, nil
}

// HasIdentity says whether a state directory is that of a mover that has enrolled, or tries to.
func HasIdentity(dir string) bool {
	for _, name := range []string{identityFile, pendingFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return true // also if it cannot be known
		}
	}
	return false
}

// keep makes an identity of a key and an answer of the manager, and writes it.
func keep(dir string, key *ecdsa.PrivateKey, c *pb.Certificate) (*identity, error) {
	leaf, err := x509.ParseCertificate(c.GetCertificate())
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "read the manager's answer", "", err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, fault.New(fault.Internal, "read the manager's answer", "", "the certificate is for another key")
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	out := keyPEM
	for _, der := range [][]byte{c.GetCertificate(), c.GetAuthority()} {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	path := filepath.Join(dir, identityFile)
	if err := durable.Replace(path, out, 0o600); err != nil {
		return nil, fault.Context("keep identity", path, err)
	}
	if err := os.Remove(filepath.Join(dir, pendingFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Context("remove used key", dir, err)
	}
	return loadIdentity(dir)
}

// pendingKey is the key for an enrolment: the one of an attempt before, if its answer was lost, or a new one.
func pendingKey(dir string) (*ecdsa.PrivateKey, error) {
	path := filepath.Join(dir, pendingFile)
	if b, err := os.ReadFile(path); err == nil {
		if block, _ := pem.Decode(b); block != nil {
			if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
				if key, ok := key.(*ecdsa.PrivateKey); ok {
					return key, nil
				}
			}
		}
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	b, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Context("create state directory", dir, err)
	}
	if err := durable.Replace(path, b, 0o600); err != nil {
		return nil, fault.Context("keep key", path, err)
	}
	return key, nil
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func requestFor(key *ecdsa.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

func newIncarnation() string { return rand.Text() }
