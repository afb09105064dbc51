package pack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/zeebo/blake3"
)

// errRotten is the answer to a pack whose bytes are not those that were written.
var errRotten = errors.New("its bytes are not those that were written")

// passage is one reading of a whole pack, from its first byte to its last.
type passage struct {
	r    *Reader
	hash *blake3.Hasher
	at   int64 // what lies before it was read and hashed
	buf  []byte
}

// ReadWhole reads the pack from its start to its end, every byte once and in order. Each frame is opened and decoded
// and given to use, with its plaintext, which is good until use returns, or with what is wrong with it: damage of one
// frame does not hide the others. At the end all of the pack is compared with its stored-bytes hash. The error is that
// of use, one of reading (of any kind), or says that the pack is not what was written.
func (r *Reader) ReadWhole(ctx context.Context, coder *Coder, use func(frame uint32, plain []byte, damage error) error) error {
	p := &passage{r: r, hash: blake3.New()}
	frames := NewFrameReader(coder)
	order := make([]uint32, len(r.dir.Frames))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int { return cmp.Compare(r.dir.Frames[a].Offset, r.dir.Frames[b].Offset) })
	for _, number := range order {
		f := r.dir.Frames[number]
		if err := p.skipTo(ctx, int64(f.Offset)); err != nil {
			return err
		}
		sealed, err := p.next(ctx, int64(f.Stored))
		if err != nil {
			return err
		}
		plain, damage := frames.open(r, number, f, sealed)
		if err := use(number, plain, damage); err != nil {
			return err
		}
	}
	stop := r.dir.size - TrailerBytes + trailerHashAt
	if err := p.skipTo(ctx, stop); err != nil {
		return err
	}
	var want [32]byte
	if err := r.src.ReadAt(ctx, r.name, want[:], stop); err != nil {
		return err
	}
	if [32]byte(p.hash.Sum(nil)) != want {
		return errRotten
	}
	return nil
}

// next reads and hashes what follows; it is good until the next call.
func (p *passage) next(ctx context.Context, n int64) ([]byte, error) {
	p.buf = slices.Grow(p.buf[:0], int(n))[:n]
	if err := p.r.src.ReadAt(ctx, p.r.name, p.buf, p.at); err != nil {
		return nil, err
	}
	_, _ = p.hash.Write(p.buf)
	p.at += n
	return p.buf, nil
}

// skipTo reads and hashes what is not in frames.
func (p *passage) skipTo(ctx context.Context, end int64) error {
	if end < p.at {
		return fmt.Errorf("its frames overlap at offset %d", end)
	}
	for p.at < end {
		if _, err := p.next(ctx, min(end-p.at, 256<<10)); err != nil {
			return err
		}
	}
	return nil
}
