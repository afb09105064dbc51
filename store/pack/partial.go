package pack

import (
	"errors"
	"fmt"

	"github.com/cairn-backup/cairn/store/seal"
)

// Place is a frame of a pack as its directory has it.
type Place struct {
	Number  uint32
	Info    FrameInfo
	Entries int    // in the frame
	Leave   []byte // to read it where that is asked for; this package does not know it
}

// maxPartial bounds the number of a frame that NewPartial takes: what comes from elsewhere makes no large table.
const maxPartial = 1 << 20

// NewPartial returns a reader of some frames of a pack, for who was given the pack's subkey and told where they lie. Its
// directory has no entries.
func NewPartial(src Source, head Header, key seal.Subkey, blocks int, places []Place) (*Reader, error) {
	box, err := head.box(key)
	if err != nil {
		return nil, err
	}
	size := 0
	for _, p := range places {
		if p.Number >= maxPartial {
			return nil, fmt.Errorf("frame %d", p.Number)
		}
		size = max(size, int(p.Number)+1)
	}
	d := &Directory{Header: head, Blocks: blocks, Frames: make([]FrameInfo, size)}
	counts := make([]uint16, size)
	for _, p := range places {
		f := p.Info
		if f.Offset < HeaderBytes || int64(f.Offset)+int64(f.Stored) > MaxPack || f.Stored < seal.Overhead ||
			f.Plain > MaxFrame || f.Stored > MaxFrame+seal.Overhead || f.Codec > S2 || p.Entries < 1 || p.Entries >= 1<<16 {
			return nil, fmt.Errorf("frame %d with an impossible place or size: %+v", p.Number, f)
		}
		if counts[p.Number] != 0 {
			return nil, errors.New("a frame is named twice")
		}
		d.Frames[p.Number], counts[p.Number] = f, uint16(p.Entries)
	}
	d.places.once.Do(func() { d.places.slots, d.places.frames = make([]uint32, 4), counts })
	return &Reader{src: src, name: Name(head.ID), dir: d, box: box}, nil
}
