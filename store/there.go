package store

import (
	"context"
	"iter"
	"maps"
	"math/bits"
)

// carried makes the image one whose content another process carries.
func (w *ImageWriter) carried() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.there == nil {
		w.there, w.owed = make([]uint64, (w.chunks+63)/64), map[int64]struct{}{}
	}
}

// settle puts a chunk that is stored, durably, into an image that a carrier writes.
func (w *ImageWriter) settle(ctx context.Context, number int64, id Hash) error {
	if w.isThere(number) {
		return nil
	}
	if err := w.setLeaf(ctx, number, id); err != nil {
		return w.s.fail(err)
	}
	w.written.Add(min(int64(w.ChunkBytes()), w.size-number*int64(w.ChunkBytes())))
	if !id.IsZero() {
		w.given.Add(1)
	}
	w.mark(number, number+1)
	return w.note(ctx, number, id)
}

func (w *ImageWriter) isThere(number int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.there[number/64]&(1<<(number%64)) != 0
}

// mark says of chunks that they are in the image.
func (w *ImageWriter) mark(from, end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := from; n < end; n++ {
		if n%64 == 0 && end-n >= 64 {
			w.there[n/64] = ^uint64(0)
			n += 63
			continue
		}
		w.there[n/64] |= 1 << (n % 64)
	}
	if end-from < int64(len(w.owed)) {
		for n := from; n < end; n++ {
			delete(w.owed, n)
		}
		return
	}
	maps.DeleteFunc(w.owed, func(n int64, _ struct{}) bool { return n >= from && n < end })
}

// Durable yields the ranges that are in the image whatever becomes of who carries its content: they need not be read
// again. Of an image that this process writes itself it yields none.
func (w *ImageWriter) Durable(ctx context.Context) iter.Seq2[Range, error] { return w.durable(ctx, 0) }

// durable is Durable from the chunk at an offset on.
func (w *ImageWriter) durable(_ context.Context, off int64) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) {
		size := int64(w.ChunkBytes())
		for at := off / size; at < w.chunks; {
			from, end := w.nextThere(at)
			if from < 0 || !yield(Range{Offset: from * size, Length: min(end*size, w.size) - from*size}, nil) {
				return
			}
			at = end
		}
	}
}

// nextThere returns the first run of chunks from number on that are in the image; -1 if there is none.
func (w *ImageWriter) nextThere(number int64) (from, end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	from = w.scan(number, 0)
	if from >= w.chunks {
		return -1, -1
	}
	return from, w.scan(from, ^uint64(0))
}

// scan returns the first chunk from number on whose bit is not that of without. w.mu is held.
func (w *ImageWriter) scan(number int64, without uint64) int64 {
	for i := number / 64; i < int64(len(w.there)); i++ {
		word := w.there[i] ^ without
		if i == number/64 {
			word &= ^uint64(0) << (number % 64)
		}
		if word != 0 {
			return min(i*64+int64(bits.TrailingZeros64(word)), w.chunks)
		}
	}
	return w.chunks
}
