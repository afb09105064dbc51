package catalog

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/durable"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Secret is text that must not be shown: it prints, logs and marshals as "[redacted]"; only a conversion to
// string shows it.
type Secret string

const redacted = "[redacted]"

// LogValue hides the text from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// String hides the text from fmt.
func (s Secret) String() string { return redacted }

// GoString hides the text from %#v.
func (s Secret) GoString() string { return redacted }

// MarshalText hides the text from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// sealer encrypts secrets under the key-encryption key. What a secret belongs to is bound to it, so that a sealed
// secret copied to another row does not open.
type sealer struct{ aead cipher.AEAD }

const (
	keyBytes    = 32
	sealVersion = 1
)

// loadSealer reads the key file; a missing one is made when create is set.
func loadSealer(path string, create bool) (*sealer, error) {
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		key, err = createKey(path)
	}
	if err != nil {
		return nil, fault.Context("read catalog key", path, err).Explain(
			"Without this file the credentials of the connections cannot be read.",
			"Put the key file of this catalog back in its place.")
	}
	if len(key) != keyBytes {
		return nil, fault.New(fault.Invalid, "read catalog key", path, "%d bytes, want %d", len(key), keyBytes).Explain(
			"The file is not the whole key, so the credentials of the connections cannot be read.",
			"Put the key file of this catalog back from a copy.")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fault.Context("read catalog key", path, err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fault.Context("read catalog key", path, err)
	}
	return &sealer{aead: aead}, nil
}

func createKey(path string) ([]byte, error) {
	key := make([]byte, keyBytes)
	_, _ = rand.Read(key) // never fails since Go 1.24
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	return key, durable.Create(path, key, 0o400)
}

func (s *sealer) seal(owner string, secret Secret) []byte {
	if secret == "" {
		return nil
	}
	out := make([]byte, 1+s.aead.NonceSize(), 1+s.aead.NonceSize()+len(secret)+s.aead.Overhead())
	out[0] = sealVersion
	nonce := out[1:]
	_, _ = rand.Read(nonce)
	return s.aead.Seal(out, nonce, []byte(secret), []byte(owner))
}

func (s *sealer) open(owner string, sealed []byte) (Secret, error) {
	if len(sealed) == 0 {
		return "", nil
	}
	n := 1 + s.aead.NonceSize()
	if len(sealed) < n || sealed[0] != sealVersion {
		return "", fault.New(fault.Corrupt, "open secret of", owner, "unknown form")
	}
	plain, err := s.aead.Open(nil, sealed[1:n], sealed[n:], []byte(owner))
	if err != nil {
		return "", fault.Wrap(fault.Corrupt, "open secret of", owner, err).Explain(
			"The stored credentials were sealed with another key.",
			"Put the right key file back, or enter the credentials again.")
	}
	return Secret(plain), nil
}

// Seal seals a secret that another package stores; it opens with the same owner only.
func (c *Catalog) Seal(owner string, secret Secret) []byte { return c.seal.seal(owner, secret) }

// Unseal opens what Seal has sealed.
func (c *Catalog) Unseal(owner string, sealed []byte) (Secret, error) {
	return c.seal.open(owner, sealed)
}

// keyCheck is something known, sealed with the key of the catalog, so that a manager with another key is found out before it
// seals anything that the others could not open.
type keyCheck struct {
	ID     int `gorm:"primaryKey;autoIncrement:false"`
	Sealed []byte
}

const keyCheckWord = "cairn"

// checkKey refuses a key that is not the one of the catalog; of a catalog that was just made it becomes that.
func (c *Catalog) checkKey(tx *gorm.DB, version int) error {
	if version == 0 {
		return tx.Create(&keyCheck{ID: 1, Sealed: c.seal.seal("catalog", keyCheckWord)}).Error
	}
	var row keyCheck
	if err := tx.Take(&row).Error; err != nil {
		return err
	}
	if word, err := c.seal.open("catalog", row.Sealed); err != nil || word != keyCheckWord {
		return fault.New(fault.Denied, "", "", "the key file is not the one of this catalog").Explain(
			"Credentials in the catalog are sealed with the key file of the manager that made the catalog; this one is another.",
			"Copy keys/catalog.key from the data directory of a manager that works with this catalog.")
	}
	return nil
}
