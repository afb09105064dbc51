package lvm2

import (
	"encoding/binary"
	"os"
	"testing"
)

// Wraps reports whether the committed text in a device's first metadata area goes beyond the ring's end.
func Wraps(t testing.TB, name string) bool {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var h [mdaHeader]byte
	if _, err := f.ReadAt(h[:], 4096); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	return le.Uint64(h[40:])+le.Uint64(h[48:]) > le.Uint64(h[32:])
}
