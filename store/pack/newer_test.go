package pack

import (
	"context"
	"errors"
	"testing"

	"github.com/zeebo/blake3"
)

// A flipped bit in the version of a header is damage, not a program that is too old: copies and repair are for damage.
func TestRotInTheVersionIsNotANewerFormat(t *testing.T) {
	m, _ := build(t, Zstd)
	open := func() error {
		_, err := Open(context.Background(), m, testHead.Repository, testHead.ID, int64(len(m.p)), secrets)
		return err
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	for bit := range 16 {
		m.p[8+bit/8] ^= 1 << (bit % 8)
		if err := open(); err == nil || errors.Is(err, ErrNewer) {
			t.Errorf("bit %d of the version: %v", bit, err)
		}
		m.p[8+bit/8] ^= 1 << (bit % 8)
	}

	m.p[8] = Version + 1
	cut := m.p
	m.p = cut[:len(cut)-1]
	if err := open(); err == nil || errors.Is(err, ErrNewer) {
		t.Errorf("cut short: %v", err)
	}
	m.p = cut
	stop := len(m.p) - TrailerBytes + trailerHashAt
	hash := blake3.Sum256(m.p[:stop])
	copy(m.p[stop:], hash[:])
	if err := open(); !errors.Is(err, ErrNewer) {
		t.Errorf("a later header in a whole pack: %v", err)
	}
	m.p[len(m.p)-TrailerBytes+64] = Version + 1
	if err := open(); !errors.Is(err, ErrNewer) {
		t.Errorf("a pack of a later format: %v", err)
	}
}
