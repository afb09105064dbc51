package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-backup/cairn/internal/durable"
	"github.com/cairn-backup/cairn/internal/fault"
)

// secretBytes is the length of every random secret made here.
const secretBytes = 32

func randomSecret(prefix string) string {
	b := make([]byte, secretBytes)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return prefix + base64.RawURLEncoding.EncodeToString(b)
}

// hashSecret is enough for secrets of 256 random bits; passwords need argon2.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// PrepareSetUp returns a new one-time set-up token as long as there is no user, and "" afterwards. Only its hash is
// kept, so each start of the appliance makes a new one and the one before is void.
func (s *Service) PrepareSetUp(ctx context.Context) (string, error) {
	n, err := s.store.CountUsers(ctx)
	if err != nil {
		return "", err
	}
	if n > 0 {
		return "", s.forgetSetUp()
	}
	token := randomSecret("setup_")
	if err := writeFile(s.setUpFile, []byte(hashSecret(token)+"\n"), 0o600); err != nil {
		return "", fault.Context("keep set-up token", s.setUpFile, err)
	}
	return token, nil
}

// checkSetUp compares a token with the one that is kept.
func (s *Service) checkSetUp(token string) error {
	want, err := os.ReadFile(s.setUpFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Context("read set-up token", s.setUpFile, err)
	}
	got := hashSecret(token)
	if subtle.ConstantTimeCompare([]byte(got), []byte(strings.TrimSpace(string(want)))) != 1 {
		return fault.Wrap(fault.Denied, "", "", ErrCredentials).Explain(
			"This is not the set-up token that the appliance printed when it was last started.",
			"Look for the token in the output or the journal of cairnd; starting it again prints a new one.")
	}
	return nil
}

func (s *Service) forgetSetUp() error {
	if err := os.Remove(s.setUpFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Context("remove set-up token", s.setUpFile, err)
	}
	return nil
}

// writeFile replaces a file, in a directory that is made if need be.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.Replace(path, data, mode)
}
