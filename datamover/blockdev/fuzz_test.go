//go:build linux

package blockdev

import (
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/boundary"
)

// page is the page 83h of a LUN with three designators: T10, NAA, and one of the port.
func page(t testing.TB) []byte {
	t.Helper()
	p, err := hex.DecodeString("00830030" +
		"02010014" + "4945542020202020" + "303030312030303120202020" +
		"01030010" + "60014051234567890abcdef012345678" +
		"61940004" + "00000001")
	if err != nil {
		t.Fatal(err)
	}
	p[3] = byte(len(p) - 4)
	return p
}

func TestDesignators(t *testing.T) {
	want := []string{"t10.IET     0001 001", "60014051234567890abcdef012345678"}
	if diff := cmp.Diff(want, designators(page(t))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzDesignators(f *testing.F) {
	base := page(f)
	boundary.Add(f, base, boundary.Binary(base))
	f.Fuzz(func(t *testing.T, p []byte) {
		boundary.Bounded(t, len(p), 64, func() { designators(p) })
	})
}
