package pack

import (
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// Compression is how a writer compresses. Readers need not know it, since each frame names its codec.
type Compression string

// The compressions.
const (
	Standard Compression = "standard" // zstd's fastest level
	High     Compression = "high"     // zstd's default level, in larger frames: smaller, for about half as much CPU time again
	Fast     Compression = "fast"     // S2: larger, for about two thirds of the CPU time
	Auto     Compression = "auto"     // Fast while the processors are the bottleneck, else Standard
	Off      Compression = "none"
)

// Compressions lists all of them.
func Compressions() []Compression { return []Compression{Standard, High, Fast, Auto, Off} }

// ParseCompression returns the compression that is called name; "" is Standard.
func ParseCompression(name string) (Compression, error) {
	c := Compression(name)
	if c == "" {
		c = Standard
	}
	if !slices.Contains(Compressions(), c) {
		return "", fmt.Errorf("there is no compression %q, only %v", name, Compressions())
	}
	return c, nil
}

// FrameBytes is the size of the frames that are made of chunks that follow each other on a disk. What is larger
// compresses better, and more has to be decoded for who wants little of it.
func (c Compression) FrameBytes() int {
	if c == High {
		return MaxFrame
	}
	return 1 << 20
}

// codec is that of what shrinks; of Auto the one it begins with.
func (c Compression) codec() Codec {
	switch c {
	case Fast:
		return S2
	case Off:
		return None
	}
	return Zstd
}

func (c Compression) level() zstd.EncoderLevel {
	if c == High {
		return zstd.SpeedDefault
	}
	return zstd.SpeedFastest
}
