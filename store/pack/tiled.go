package pack

import (
	"fmt"
	"math"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// maxDirectory is how long a sealed directory of so many entries can be, with a frame for each.
func maxDirectory(entries int) int64 {
	const each = frameBytes + entryBytes + chunkTailBytes + MaxTargets*32 + chunk.MaxBlocks*2
	return dirHeadBytes + seal.Overhead + int64(entries)*each
}

// bounded refuses the plaintext of a directory of more frames or entries than a limit, before anything is made of it.
func bounded(plain []byte, entries int) error {
	if entries == math.MaxInt32 || len(plain) < dirHeadBytes {
		return nil
	}
	if f, e := le.Uint32(plain), le.Uint32(plain[4:]); f > uint32(entries) || e > uint32(entries) {
		return fmt.Errorf("directory with %d frames and %d entries, of at most %d", f, e, entries)
	}
	return nil
}

// Tiled answers why the frames of a pack that was opened are not its content, each byte once and in the order of the
// entries, or why one of them is larger than most bytes.
func (d *Directory) Tiled(most int) error {
	at, runs := int64(HeaderBytes), 0
	for i := 0; i < len(d.Entries); runs++ {
		number := d.Entries[i].Frame
		f := &d.Frames[number]
		if int64(f.Offset) != at || int64(f.Plain) > int64(most) {
			return fmt.Errorf("frame %d of %d bytes is at %d, not at %d", number, f.Plain, f.Offset, at)
		}
		filled := uint32(0)
		for ; i < len(d.Entries) && d.Entries[i].Frame == number; i++ {
			if d.Entries[i].Offset != filled {
				return fmt.Errorf("entry %d is at %d of its frame, not at %d", i, d.Entries[i].Offset, filled)
			}
			filled += d.Entries[i].Length
		}
		if filled != f.Plain {
			return fmt.Errorf("frame %d has %d bytes for entries of %d", number, f.Plain, filled)
		}
		at += int64(f.Stored)
	}
	if runs != len(d.Frames) || at != d.end {
		return fmt.Errorf("%d frames up to %d, of %d up to %d", runs, at, len(d.Frames), d.end)
	}
	return nil
}
