// Package manifest seals and signs the record of a restore point.
//
// It does not know what a record says. Its invariant: a record that opens was written by a holder of the
// repository's signing key, for this repository and under this very id.
package manifest

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cairn-backup/cairn/store/seal"
)

// Version is the format version written by this package.
const Version = 1

const (
	headBytes = 128
	domain    = "cairn manifest\x00"
)

var (
	magic = [8]byte{'C', 'A', 'I', 'R', 'N', 'M', 'A', 'N'}
	le    = binary.LittleEndian
)

// ErrNewer is matched by errors about manifests of a later format version.
var ErrNewer = errors.New("written by a newer version of Cairn")

// Encode returns the object that holds body.
func Encode(keys *seal.KeySet, repository, id seal.ID, body []byte) ([]byte, error) {
	salt := seal.NewSalt()
	box, err := seal.NewBox(keys.Data, keys.ID, Version, repository, id, salt)
	if err != nil {
		return nil, err
	}
	private := ed25519.NewKeyFromSeed(keys.Seed[:])
	signature := ed25519.Sign(private, message(repository, id, keys.ID, body))
	plain := append(signature, body...)

	p := make([]byte, headBytes, headBytes+len(plain)+seal.Overhead)
	copy(p, magic[:])
	le.PutUint16(p[8:], Version)
	le.PutUint16(p[10:], headBytes)
	p[12] = byte(seal.AES256GCM)
	copy(p[16:], repository[:])
	copy(p[32:], id[:])
	le.PutUint32(p[48:], keys.ID)
	copy(p[56:], salt[:])
	le.PutUint32(p[88:], uint32(len(plain)))
	return box.Seal(p, seal.Manifest, 0, uint64(len(plain)), plain), nil
}

func message(repository, id seal.ID, keyID uint32, body []byte) []byte {
	m := append([]byte(domain), repository[:]...)
	m = append(m, id[:]...)
	m = le.AppendUint32(m, keyID)
	return append(m, body...)
}

// Decode proves an object and returns its body.
func Decode(keys *seal.KeySet, repository, id seal.ID, p []byte) ([]byte, error) {
	if len(p) < headBytes || [8]byte(p) != magic {
		return nil, errors.New("not a manifest")
	}
	if v := le.Uint16(p[8:]); v > Version {
		return nil, fmt.Errorf("manifest format %d: %w", v, ErrNewer)
	} else if v != Version || le.Uint16(p[10:]) != headBytes || p[12] != byte(seal.AES256GCM) {
		return nil, errors.New("head of unknown version, length or cipher")
	}
	if seal.ID(p[16:32]) != repository || seal.ID(p[32:48]) != id {
		return nil, errors.New("it belongs to another repository or name")
	}
	if !zero(p[13:16]) || !zero(p[52:56]) || !zero(p[92:headBytes]) {
		return nil, errors.New("head with reserved bytes in use")
	}
	if keyID := le.Uint32(p[48:]); keyID != keys.ID {
		return nil, fmt.Errorf("sealed with key set %d", keyID)
	}
	n := int64(le.Uint32(p[88:]))
	if n < ed25519.SignatureSize || n != int64(len(p)-headBytes-seal.Overhead) {
		return nil, fmt.Errorf("%d bytes for a body of %d", len(p), n)
	}
	box, err := seal.NewBox(keys.Data, keys.ID, Version, repository, id, seal.Salt(p[56:88]))
	if err != nil {
		return nil, err
	}
	plain, err := box.Open(nil, seal.Manifest, 0, uint64(n), p[headBytes:])
	if err != nil {
		return nil, err
	}
	public := ed25519.NewKeyFromSeed(keys.Seed[:]).Public().(ed25519.PublicKey)
	signature, body := plain[:ed25519.SignatureSize], plain[ed25519.SignatureSize:]
	if !ed25519.Verify(public, message(repository, id, keys.ID, body), signature) {
		return nil, errors.New("its signature is not by this repository's key")
	}
	return body, nil
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
