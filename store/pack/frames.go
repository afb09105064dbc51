package pack

import (
	"context"
	"fmt"
	"slices"

	"github.com/cairn-backup/cairn/store/seal"
)

// FrameReader reads frames of packs one after the other into memory of its own. It is for one goroutine.
type FrameReader struct {
	coder                *Coder
	sealed, coded, plain []byte
}

// NewFrameReader returns a reader without memory; it grows to what the largest read needs.
func NewFrameReader(coder *Coder) *FrameReader { return &FrameReader{coder: coder} }

// Each reads frames that follow each other in a pack by one read and calls use with each plaintext, which is good
// until use returns, or with what is wrong with it. The error is that of use or of reading.
func (f *FrameReader) Each(ctx context.Context, r *Reader, numbers []uint32, use func(i int, plain []byte, damage error) error) error {
	if len(numbers) == 0 {
		return nil
	}
	first, last := r.dir.Frames[numbers[0]], r.dir.Frames[numbers[len(numbers)-1]]
	length := int64(last.Offset) + int64(last.Stored) - int64(first.Offset)
	if length < 0 || length > MaxPack {
		return fmt.Errorf("frames at %d and %d are not in order", first.Offset, last.Offset)
	}
	f.sealed = slices.Grow(f.sealed[:0], int(length))[:length]
	if err := r.src.ReadAt(ctx, r.name, f.sealed, int64(first.Offset)); err != nil {
		return err
	}
	for i, number := range numbers {
		info := r.dir.Frames[number]
		from := int64(info.Offset) - int64(first.Offset)
		if from < 0 || from+int64(info.Stored) > length {
			return fmt.Errorf("frame at %d is not in order", info.Offset)
		}
		plain, damage := f.open(r, number, info, f.sealed[from:from+int64(info.Stored)])
		if err := use(i, plain, damage); err != nil {
			return err
		}
	}
	return nil
}

func (f *FrameReader) open(r *Reader, number uint32, info FrameInfo, sealed []byte) ([]byte, error) {
	f.coded = slices.Grow(f.coded[:0], len(sealed))
	coded, err := r.box.Open(f.coded, seal.Frame, uint64(number), frameDetail(info.Codec, int(info.Plain)), sealed)
	if err != nil {
		return nil, fmt.Errorf("frame %d at offset %d %w", number, info.Offset, err)
	}
	f.coded = coded[:0]
	f.plain = slices.Grow(f.plain[:0], int(info.Plain)+decodeSlack)
	plain, err := f.coder.Decode(f.plain, coded, info.Codec, int(info.Plain))
	if err != nil {
		return nil, fmt.Errorf("frame %d at offset %d: %w", number, info.Offset, err)
	}
	return plain, nil
}
