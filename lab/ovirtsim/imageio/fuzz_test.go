package imageio

import (
	"testing"

	"github.com/cairn-backup/cairn/internal/boundary"
)

// FuzzRanges reads the headers that say which bytes are meant.
func FuzzRanges(f *testing.F) {
	for _, h := range []string{"bytes=0-511", "bytes=512-", "bytes 0-511/*", "bytes=-5", "bytes=0-1,2-3"} {
		f.Add(h)
		for p := range boundary.Text([]byte(h)) {
			f.Add(string(p))
		}
	}
	f.Fuzz(func(t *testing.T, h string) {
		if first, last, err := byteRange(h); err == nil && (first < 0 || last < -1 || last >= 0 && last < first) {
			t.Errorf("range %q is from %d to %d", h, first, last)
		}
		if off, err := contentRange(h); err == nil && off < 0 {
			t.Errorf("content range %q begins at %d", h, off)
		}
	})
}
