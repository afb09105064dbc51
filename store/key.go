package store

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"github.com/cairn-backup/cairn/internal/durable"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Key is a key-encryption key: it opens the repository's own random keys. Its secret is never printed.
type Key struct{ secret [32]byte }

const keyFilePrefix = "cairn-key-1:"

// String names the key by its fingerprint.
func (k Key) String() string { return "key " + k.Fingerprint() }

// GoString keeps the secret out of %#v.
func (k Key) GoString() string { return k.String() }

// LogValue keeps the secret out of logs.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Fingerprint names the key without telling it.
func (k Key) Fingerprint() string {
	p, err := hkdf.Key(sha256.New, k.secret[:], nil, "cairn key fingerprint", 8)
	if err != nil {
		panic(err) // only an absurd length can fail
	}
	return hex.EncodeToString(p)
}

// NewKeyFile makes a random key and writes it to a new file that only its owner may read. On return the file is
// durable. Without this file, or a copy of it, the repository cannot be read by anybody.
func NewKeyFile(path string) (Key, error) {
	var k Key
	_, _ = rand.Read(k.secret[:]) // never fails
	if err := durable.Create(path, []byte(k.text()+"\n"), 0o400); err != nil {
		return Key{}, fault.Wrap(fault.KindOf(err), "make key file", path, err)
	}
	return k, nil
}

// text is the one line of a key file: the secret with a checksum against slips of the pen.
func (k Key) text() string {
	return fmt.Sprintf("%s%x:%08x", keyFilePrefix, k.secret, crc32.ChecksumIEEE(k.secret[:]))
}

// LoadKeyFile reads a key file.
func LoadKeyFile(path string) (Key, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Key{}, fault.Wrap(fault.NotFound, "read key file", path, err).Explain(
			"The file with the repository's key is not there. Without it no backup can be written and none be read.",
			"Put the key file back from the copy that was kept elsewhere.")
	}
	if err != nil {
		return Key{}, fault.Wrap(fault.KindOf(err), "read key file", path, err)
	}
	defer f.Close()
	p := make([]byte, 200)
	n, _ := f.Read(p)
	k, ok := parseKey(strings.TrimSpace(string(p[:n])))
	if !ok {
		return Key{}, fault.New(fault.Invalid, "read key file", path, "not a key of Cairn, or one that was altered").Explain(
			"The file does not hold a whole key.", "Put the key file back from the copy that was kept elsewhere.")
	}
	return k, nil
}

func parseKey(text string) (k Key, ok bool) {
	if len(text) != len(keyFilePrefix)+64+1+8 || !strings.HasPrefix(text, keyFilePrefix) {
		return Key{}, false
	}
	if _, err := hex.Decode(k.secret[:], []byte(text[len(keyFilePrefix):len(keyFilePrefix)+64])); err != nil {
		return Key{}, false
	}
	return k, k.text() == text
}
