package chunk

import (
	"encoding/hex"
	"fmt"
)

// Hash is a keyed BLAKE3-256: of a chunk, a tree node, an image root or a document. It is hex in JSON.
type Hash [32]byte

// String returns the hash in hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Short returns enough of the hash for a log line.
func (h Hash) Short() string { return hex.EncodeToString(h[:6]) }

// IsZero reports whether h is the zero value, which no object ever has as its hash.
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText writes hex.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText reads exactly 64 hex digits.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != 2*len(h) {
		return fmt.Errorf("hash has %d digits, not %d", len(text), 2*len(h))
	}
	_, err := hex.Decode(h[:], text)
	return err
}
