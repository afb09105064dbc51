package pack

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Codec is how a frame's plaintext is compressed.
type Codec uint8

// The codecs.
const (
	None Codec = 0
	Zstd Codec = 1
	S2   Codec = 2
)

// errMiscoded: the compressor's output does not decode to its input. It has happened to others; so it is checked.
var errMiscoded = errors.New("compressed data does not decode to what it was made of")

// Coder compresses and decompresses frames. It may be used from several goroutines.
type Coder struct {
	codec Codec
	auto  *auto // of Auto
	enc   *zstd.Encoder
	dec   *zstd.Decoder
}

// NewCoder returns a coder that compresses by how, and decompresses whatever there is.
func NewCoder(how Compression) (*Coder, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(how.level()), zstd.WithEncoderCRC(false),
		zstd.WithAllLitEntropyCompression(true), // of frames of 1 MiB 0.5 % less, in the same time
		zstd.WithWindowSize(how.FrameBytes()), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("make compressor: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithDecoderMaxMemory(MaxFrame),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("make decompressor: %w", err)
	}
	c := &Coder{codec: how.codec(), enc: enc, dec: dec}
	if how == Auto {
		c.auto = newAuto()
	}
	return c, nil
}

// Close frees what the coder holds.
func (c *Coder) Close() {
	_ = c.enc.Close()
	c.dec.Close()
}

// Encode compresses plain into dst's memory, or returns plain itself where that does not save at least 5 %. scratch
// is where the result is decoded to be compared; it should have the capacity of plain and decodeSlack.
func (c *Coder) Encode(dst, scratch, plain []byte) ([]byte, Codec, error) {
	codec := c.codec
	if c.auto != nil {
		codec = c.auto.pick()
		start := time.Now()
		defer func() { c.auto.done(codec, len(plain), start, time.Now()) }()
	}
	var out []byte
	switch codec {
	case Zstd:
		out = c.enc.EncodeAll(plain, dst[:0])
	case S2:
		out = s2.Encode(dst[:cap(dst)], plain)
	default:
		return plain, None, nil
	}
	if len(out) > len(plain)/20*19 {
		return plain, None, nil
	}
	back, err := c.Decode(scratch, out, codec, len(plain))
	if err != nil {
		return nil, None, fmt.Errorf("%w: %w", errMiscoded, err)
	}
	if !bytes.Equal(back, plain) {
		return nil, None, errMiscoded
	}
	return out, codec, nil
}

// decodeSlack is room behind a frame's plaintext: without it the last block of each frame is decoded by code that takes
// more than half as long again, as it minds the end of memory at each byte.
const decodeSlack = 16

// Decode decompresses a frame of exactly n bytes into dst's memory, if that is larger by decodeSlack. With codec None it
// returns coded itself.
func (c *Coder) Decode(dst, coded []byte, codec Codec, n int) ([]byte, error) {
	if n > MaxFrame {
		return nil, fmt.Errorf("frame of %d bytes", n)
	}
	if codec != None && cap(dst) < n+decodeSlack {
		dst = make([]byte, 0, n+decodeSlack)
	}
	var out []byte
	var err error
	switch codec {
	case None:
		out = coded
	case Zstd:
		out, err = c.dec.DecodeAll(coded, dst[:0:n+decodeSlack])
	case S2:
		if m, lenErr := s2.DecodedLen(coded); lenErr != nil || m != n {
			return nil, fmt.Errorf("compressed frame is for %d bytes, not %d", m, n)
		}
		out, err = s2.Decode(dst[:n], coded)
	default:
		return nil, fmt.Errorf("unknown codec %d", codec)
	}
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if len(out) != n {
		return nil, fmt.Errorf("frame has %d bytes, not %d", len(out), n)
	}
	return out, nil
}
