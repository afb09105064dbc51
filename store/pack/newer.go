package pack

import (
	"bytes"
	"context"
	"fmt"

	"github.com/zeebo/blake3"
)

// newerOrRotten judges a pack whose header names a later format. One flipped bit makes such a header too, and whoever
// meets ErrNewer gives up where damage is worked around; so it stands only if the pack is not known to be rotten: a
// trailer of this format with a hash that is not that of the bytes, or no trailer at all, is damage.
func newerOrRotten(ctx context.Context, src Source, name string, size int64, newer error) error {
	end := make([]byte, TrailerBytes)
	if err := src.ReadAt(ctx, name, end, size-TrailerBytes); err != nil {
		return err
	}
	if bytes.Equal(end[72:], endMagic[:]) && le.Uint16(end[64:]) > Version {
		return newer
	}
	t, err := parseTrailer(end, size)
	if err != nil {
		return fmt.Errorf("header names a later format, and %w", err)
	}
	h, buf := blake3.New(), make([]byte, tailGuess)
	stop := size - TrailerBytes + trailerHashAt
	for at := int64(0); at < stop; {
		n := min(stop-at, int64(len(buf)))
		if err := src.ReadAt(ctx, name, buf[:n], at); err != nil {
			return err
		}
		_, _ = h.Write(buf[:n])
		at += n
	}
	if !bytes.Equal(h.Sum(nil), t.hash[:]) {
		return fmt.Errorf("header names a later format: %w", errRotten)
	}
	return newer
}
