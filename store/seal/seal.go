// Package seal encrypts and authenticates everything the repository stores.
//
// It knows no formats. Its invariants: every sealed text is bound to repository, type, object, number, format
// version and key set, so that none can be passed off as another; and under one subkey a nonce is used once.
package seal

import (
	"bytes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
)

// Overhead is what sealing adds to the length of a text.
const Overhead = 16

// Type is the sort of a sealed text.
type Type uint8

// The types. Their values are part of the format.
const (
	Frame     Type = 1
	Directory Type = 2
	Prints    Type = 3
	Manifest  Type = 4
	KeyWrap   Type = 5
	Journal   Type = 6
	Saved     Type = 7
)

// Cipher names an algorithm in formats.
type Cipher uint8

// The ciphers. Both are always read; which one is written is a choice of speed, not of strength.
const (
	AES256GCM Cipher = 1
	XChaCha20 Cipher = 2 // XChaCha20-Poly1305: where the CPU has no AES
)

// ID names a repository, a pack or a manifest.
type ID [16]byte

// NewID returns a random ID.
func NewID() (id ID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// Salt makes a subkey unique.
type Salt [32]byte

// NewSalt returns a random Salt.
func NewSalt() (s Salt) {
	_, _ = rand.Read(s[:])
	return s
}

// KeySet are the secrets of a repository; a random one is made with it.
type KeySet struct {
	ID   uint32   // 1, 2, ...: which set, for rotation
	Data [32]byte // subkeys for sealing are derived from it
	IDs  [32]byte // keys of hashes are derived from it
	Seed [32]byte // ed25519, signs manifests
}

// NewKeySet returns a random key set.
func NewKeySet(id uint32) *KeySet {
	k := &KeySet{ID: id}
	for _, p := range [][]byte{k.Data[:], k.IDs[:], k.Seed[:]} {
		_, _ = rand.Read(p)
	}
	return k
}

// keySetBytes is the length of a key set's secrets.
const keySetBytes = 96

// Append appends the secrets: data key, id key, signing seed.
func (k *KeySet) Append(dst []byte) []byte {
	dst = slices.Grow(dst, keySetBytes)
	return append(append(append(dst, k.Data[:]...), k.IDs[:]...), k.Seed[:]...)
}

// ParseKeySet is the inverse of Append; p has 96 bytes.
func ParseKeySet(id uint32, p []byte) *KeySet {
	p = p[:keySetBytes]
	return &KeySet{ID: id, Data: [32]byte(p), IDs: [32]byte(p[32:]), Seed: [32]byte(p[64:])}
}

// Public returns the key that proves the set's signatures.
func (k *KeySet) Public() ed25519.PublicKey {
	private := ed25519.NewKeyFromSeed(k.Seed[:])
	defer clear(private)
	return bytes.Clone(private[ed25519.SeedSize:])
}

// Wipe overwrites the secrets. The key set must not be used any more.
func (k *KeySet) Wipe() {
	for _, p := range [][]byte{k.Data[:], k.IDs[:], k.Seed[:]} {
		clear(p)
	}
}

// String keeps secrets out of messages.
func (k KeySet) String() string { return fmt.Sprintf("key set %d [redacted]", k.ID) }

// GoString keeps secrets out of %#v.
func (k KeySet) GoString() string { return k.String() }

// Format keeps secrets out of every other verb, and out of what is printed of a copy.
func (k KeySet) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// MarshalText keeps secrets out of JSON, of keys of maps and of any other text.
func (k KeySet) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// MarshalJSON keeps secrets out of JSON.
func (k KeySet) MarshalJSON() ([]byte, error) { return strconv.AppendQuote(nil, k.String()), nil }

// LogValue keeps secrets out of logs.
func (k KeySet) LogValue() slog.Value { return slog.StringValue(k.String()) }

// ErrForged is the answer to a text that was not sealed with this key in this place.
var ErrForged = errors.New("does not authenticate: damaged, forged, from another place or sealed with another key")

// Box seals and opens the texts of one object. It may be used from several goroutines.
type Box struct {
	aead cipher.AEAD
	aad  [43]byte // type, number and detail are added for each text
}

// NewBox derives the subkey of one object, for AES-256-GCM. The same salt must not be used for two objects that are
// written.
func NewBox(secret [32]byte, keyID uint32, version uint16, repository, object ID, salt Salt) (*Box, error) {
	return NewCipherBox(AES256GCM, secret, keyID, version, repository, object, salt)
}

// NewCipherBox is NewBox with a choice of the cipher. Each cipher has subkeys of its own.
func NewCipherBox(c Cipher, secret [32]byte, keyID uint32, version uint16, repository, object ID, salt Salt) (*Box, error) {
	key, err := NewSubkey(c, secret, keyID, version, repository, object, salt)
	if err != nil {
		return nil, err
	}
	defer clear(key[:])
	return key.Box(c, keyID, version, repository, object)
}

// Subkey seals and opens one object and tells nothing of any other: it can be given to whoever may write, or read, that
// object alone.
type Subkey [32]byte

// NewSubkey derives the subkey of one object.
func NewSubkey(c Cipher, secret [32]byte, keyID uint32, version uint16, repository, object ID, salt Salt) (out Subkey, err error) {
	info := make([]byte, 0, 64)
	info = append(info, "cairn box"...)
	if c != AES256GCM {
		info = append(info, byte(c))
	}
	info = append(info, repository[:]...)
	info = append(info, object[:]...)
	info = binary.LittleEndian.AppendUint32(info, keyID)
	info = binary.LittleEndian.AppendUint16(info, version)
	key, err := hkdf.Key(sha256.New, secret[:], salt[:], string(info), 32)
	if err != nil {
		return out, fmt.Errorf("derive subkey: %w", err)
	}
	copy(out[:], key)
	clear(key)
	return out, nil
}

// Format keeps the key out of messages, whatever the verb.
func (k Subkey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "subkey [redacted]") }

// LogValue keeps the key out of logs.
func (k Subkey) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// Box makes what the subkey is for. The arguments are those of NewSubkey.
func (k Subkey) Box(c Cipher, keyID uint32, version uint16, repository, object ID) (*Box, error) {
	aead, err := newAEAD(c, k[:])
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	b := &Box{aead: aead}
	aad := b.aad[:0]
	aad = append(aad, "cairn"...)
	aad = binary.LittleEndian.AppendUint16(aad, version)
	aad = binary.LittleEndian.AppendUint32(aad, keyID)
	aad = append(aad, repository[:]...)
	aad = append(aad, object[:]...)
	if len(aad) != 43 {
		return nil, fmt.Errorf("associated data of %d bytes", len(aad))
	}
	return b, nil
}

// bind returns nonce and associated data of a text: detail is whatever else its meaning depends on.
// AES takes the first 12 bytes of the nonce, XChaCha20 all 24.
func (b *Box) bind(t Type, number uint64, detail uint64) (nonce [24]byte, aad [60]byte) {
	nonce[0] = byte(t)
	binary.BigEndian.PutUint64(nonce[4:], number)
	copy(aad[:], b.aad[:])
	aad[43] = byte(t)
	binary.LittleEndian.PutUint64(aad[44:], number)
	binary.LittleEndian.PutUint64(aad[52:], detail)
	return nonce, aad
}

// Seal appends the sealed text to dst. The caller never seals twice with the same type and number.
func (b *Box) Seal(dst []byte, t Type, number, detail uint64, plain []byte) []byte {
	nonce, aad := b.bind(t, number, detail)
	return b.aead.Seal(dst, nonce[:b.aead.NonceSize()], plain, aad[:])
}

// Open appends the text of sealed to dst, or answers ErrForged.
func (b *Box) Open(dst []byte, t Type, number, detail uint64, sealed []byte) ([]byte, error) {
	nonce, aad := b.bind(t, number, detail)
	plain, err := b.aead.Open(dst, nonce[:b.aead.NonceSize()], sealed, aad[:])
	if err != nil {
		return nil, ErrForged
	}
	return plain, nil
}
