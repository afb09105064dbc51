package store

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
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

// Format keeps the secret out of every other verb, %d for one.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

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
	p, err := readSecret(path, 200)
	defer clear(p)
	if errors.Is(err, fs.ErrNotExist) {
		return Key{}, fault.Wrap(fault.NotFound, "read key file", path, err).Explain(
			"The file with the repository's key is not there. Without it no backup can be written and none be read.",
			"Put the key file back from the copy that was kept elsewhere.")
	}
	if len(p) == 0 && err != nil {
		return Key{}, fault.Wrap(fault.KindOf(err), "read key file", path, err)
	}
	k, ok := parseKey(string(bytes.TrimSpace(p)))
	if !ok {
		return Key{}, fault.New(fault.Invalid, "read key file", path, "not a key of Cairn, or one that was altered").Explain(
			"The file does not hold a whole key.", "Put the key file back from the copy that was kept elsewhere.")
	}
	return k, nil
}

// LoadKey reads a key from where source says: "file:<path>" or an absolute path, "env:<NAME>" (an environment variable with the line
// of a key file in it) or "credential:<name>" (a credential that systemd handed to the service, by LoadCredential= or
// LoadCredentialEncrypted=).
func LoadKey(ctx context.Context, source string) (Key, error) {
	if err := ctx.Err(); err != nil {
		return Key{}, err
	}
	kind, rest, ok := strings.Cut(source, ":")
	switch {
	case filepath.IsAbs(source):
		return LoadKeyFile(source)
	case ok && kind == "file" && rest != "":
		return LoadKeyFile(rest)
	case ok && kind == "env" && rest != "":
		return keyFromEnvironment(rest)
	case ok && kind == "credential" && rest != "":
		return keyFromCredential(rest)
	}
	// The source is not shown: somebody may have given the key itself.
	return Key{}, fault.New(fault.Invalid, "read key", "", "the place of the key is not understood").Explain(
		"Where the repository's key is kept was not given in a form that Cairn knows.",
		"Write file:/path, env:NAME or credential:NAME.")
}

func keyFromEnvironment(name string) (Key, error) {
	text, ok := os.LookupEnv(name)
	if !ok {
		return Key{}, fault.New(fault.NotFound, "read key from environment", name, "the variable is not set").Explain(
			"The environment variable that should hold the repository's key is not set.",
			"Set it to the line of the key file for this process, or keep the key in a file or a systemd credential.")
	}
	k, ok := parseKey(strings.TrimSpace(text))
	if !ok {
		return Key{}, fault.New(fault.Invalid, "read key from environment", name, "not a key of Cairn, or one that was altered").Explain(
			"The environment variable does not hold a whole key.", "Set it to the one line of the key file.")
	}
	return k, nil
}

func keyFromCredential(name string) (Key, error) {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return Key{}, fault.New(fault.NotFound, "read key from credential", name, "CREDENTIALS_DIRECTORY is not set").Explain(
			"systemd has handed no credentials to this process.",
			"Add LoadCredentialEncrypted="+name+" (or LoadCredential="+name+":/path) to the service's unit and restart it.")
	}
	if name != filepath.Base(name) || name == "." || name == ".." {
		return Key{}, fault.New(fault.Invalid, "read key from credential", name, "not the name of a credential")
	}
	return LoadKeyFile(filepath.Join(dir, name))
}

// ParseKey reads the content of a key file.
func ParseKey(text string) (Key, error) {
	k, ok := parseKey(strings.TrimSpace(text))
	if !ok {
		return Key{}, fault.New(fault.Invalid, "read key", "", "not a key of Cairn, or one that was altered").Explain(
			"What was given is not a whole key.", "Give the one line of the key file.")
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
