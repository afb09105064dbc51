package pack

import (
	"context"
	"fmt"

	"github.com/cairn-backup/cairn/store/seal"
)

// CopyFrame takes over a frame of another pack: what is compressed stays as it is and is sealed anew. items are the
// entries that lie in it, as they were there. An error of reading, which leaves the writer as it was, is the first one.
func (w *Writer) CopyFrame(ctx context.Context, from *Reader, number uint32, items []Item) (size int, readErr, err error) {
	b := w.bufs.Get().(*Buffers)
	defer w.bufs.Put(b)
	f, coded, err := from.coded(ctx, number, b)
	if err != nil {
		return 0, err, nil
	}
	w.mu.Lock()
	next := w.next
	w.next++
	err = w.err
	w.mu.Unlock()
	if err != nil {
		return 0, nil, err
	}
	size, err = w.seal(b, next, f.Codec, coded, int(f.Plain), items)
	return size, nil, err
}

// coded returns a frame's authentic bytes, compressed as they are, in b's memory.
func (r *Reader) coded(ctx context.Context, number uint32, b *Buffers) (f FrameInfo, coded []byte, err error) {
	if int64(number) >= int64(len(r.dir.Frames)) {
		return f, nil, fmt.Errorf("there is no frame %d", number)
	}
	f = r.dir.Frames[number]
	if cap(b.sealed) < int(f.Stored) {
		b.sealed = make([]byte, 0, f.Stored)
	}
	sealed := b.sealed[:f.Stored]
	if err := r.src.ReadAt(ctx, r.name, sealed, int64(f.Offset)); err != nil {
		return f, nil, err
	}
	if cap(b.coded) < len(sealed) {
		b.coded = make([]byte, 0, len(sealed))
	}
	coded, err = r.box.Open(b.coded[:0], seal.Frame, uint64(number), frameDetail(f.Codec, int(f.Plain)), sealed)
	if err != nil {
		return f, nil, fmt.Errorf("frame %d at offset %d %w", number, f.Offset, err)
	}
	return f, coded, nil
}

// Shares divides the size of the pack among its entries: a frame's bytes by the entries' lengths, everything else
// equally. They add up to the size, unless there is no entry.
func (d *Directory) Shares() []int64 {
	total := make([]int64, len(d.Frames)) // plaintext of entries, by frame
	for i := range d.Entries {
		total[d.Entries[i].Frame] += int64(d.Entries[i].Length)
	}
	rest := d.size
	for i, f := range d.Frames {
		if total[i] > 0 {
			rest -= int64(f.Stored)
		}
	}
	out := make([]int64, len(d.Entries))
	done := make([]int64, len(d.Frames))
	n := int64(len(d.Entries))
	for i := range d.Entries {
		out[i] = rest*int64(i+1)/n - rest*int64(i)/n
		f := d.Entries[i].Frame
		if total[f] == 0 {
			continue
		}
		stored := int64(d.Frames[f].Stored)
		before := stored * done[f] / total[f]
		done[f] += int64(d.Entries[i].Length)
		out[i] += stored*done[f]/total[f] - before
	}
	return out
}
