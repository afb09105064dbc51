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

	"github.com/zeebo/blake3"

	"github.com/cairn-backup/cairn/store/seal"
)

// Version is the format version written by this package.
const Version = 1

const (
	headBytes = 128
	hashAt    = 92 // of the stored-bytes hash, in the head
	domain    = "cairn manifest\x00"
)

var (
	magic = [8]byte{'C', 'A', 'I', 'R', 'N', 'M', 'A', 'N'}
	le    = binary.LittleEndian
)

var errDamaged = errors.New("its bytes are not those that were written")

// ErrNewer is matched by errors about manifests of a later format version.
var ErrNewer = errors.New("written by a newer version of Cairn")

// Encode returns the object that holds body.
func Encode(keys *seal.KeySet, c seal.Cipher, repository, id seal.ID, body []byte) ([]byte, error) {
	return EncodeSalted(keys, c, repository, id, seal.NewSalt(), body)
}

// EncodeSalted is Encode with a salt that is given: for test vectors. No salt is used twice with one key set.
func EncodeSalted(keys *seal.KeySet, c seal.Cipher, repository, id seal.ID, salt seal.Salt, body []byte) ([]byte, error) {
	box, err := seal.NewCipherBox(c, keys.Data, keys.ID, Version, repository, id, salt)
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
	p[12] = byte(c)
	copy(p[16:], repository[:])
	copy(p[32:], id[:])
	le.PutUint32(p[48:], keys.ID)
	copy(p[56:], salt[:])
	le.PutUint32(p[88:], uint32(len(plain)))
	p = box.Seal(p, seal.Manifest, 0, uint64(len(plain)), plain)
	sum := storedHash(p)
	copy(p[hashAt:], sum[:])
	return p, nil
}

// storedHash is over every byte but those of the hash itself.
func storedHash(p []byte) (sum [32]byte) {
	h := blake3.New()
	_, _ = h.Write(p[:hashAt])
	_, _ = h.Write(p[hashAt+32:])
	h.Sum(sum[:0])
	return sum
}

// Scrub compares an object with its stored-bytes hash. It needs no keys; it finds rot, not forgery.
func Scrub(p []byte) error {
	if len(p) < headBytes || [8]byte(p) != magic {
		return errors.New("not a manifest")
	}
	if v := le.Uint16(p[8:]); v != Version {
		return fmt.Errorf("manifest format %d: %w", v, ErrNewer)
	}
	if n := int64(le.Uint32(p[88:])); n != int64(len(p)-headBytes-seal.Overhead) {
		return fmt.Errorf("%d bytes for a body of %d", len(p), n)
	}
	if storedHash(p) != [32]byte(p[hashAt:]) {
		return errDamaged
	}
	return nil
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
	} else if v != Version || le.Uint16(p[10:]) != headBytes || !seal.Cipher(p[12]).Known() {
		return nil, errors.New("head of unknown version, length or cipher")
	}
	if seal.ID(p[16:32]) != repository || seal.ID(p[32:48]) != id {
		return nil, errors.New("it belongs to another repository or name")
	}
	if !zero(p[13:16]) || !zero(p[52:56]) || !zero(p[hashAt+32:headBytes]) {
		return nil, errors.New("head with reserved bytes in use")
	}
	if keyID := le.Uint32(p[48:]); keyID != keys.ID {
		return nil, fmt.Errorf("sealed with key set %d", keyID)
	}
	n := int64(le.Uint32(p[88:]))
	if n < ed25519.SignatureSize || n != int64(len(p)-headBytes-seal.Overhead) {
		return nil, fmt.Errorf("%d bytes for a body of %d", len(p), n)
	}
	if storedHash(p) != [32]byte(p[hashAt:]) {
		return nil, errDamaged
	}
	box, err := seal.NewCipherBox(seal.Cipher(p[12]), keys.Data, keys.ID, Version, repository, id, seal.Salt(p[56:88]))
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
