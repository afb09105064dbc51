package pack

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/bits"
	"sync"

	"github.com/zeebo/blake3"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// Item is an entry to be written with the fingerprints of its blocks, if it is a chunk.
type Item struct {
	Entry
	Prints []chunk.Fingerprint
}

// SetLength makes Length that of the blocks that are present. It is for chunks.
func (e *Entry) SetLength() { e.Length = uint32(bits.OnesCount64(e.Present) * chunk.BlockBytes) }

// Writer writes one pack. AddFrame may be called from several goroutines: compressing and sealing happen in the
// caller's, only the append is one at a time.
type Writer struct {
	head   Header
	blocks int
	coder  *Coder
	box    *seal.Box
	out    Sink
	bufs   *sync.Pool

	mu      sync.Mutex
	err     error // final
	next    uint64
	size    int64
	hash    *blake3.Hasher
	frames  []FrameInfo
	entries []Entry
	prints  []chunk.Fingerprint
}

// Sink is where a pack is written to.
type Sink interface {
	io.Writer
	Commit(ctx context.Context) error
	Abort() error
}

// NewWriter starts a pack. The writer owns out from now on; every NewWriter needs a new head.Salt.
func NewWriter(out Sink, head Header, secret [32]byte, blocks int, coder *Coder, bufs *sync.Pool) (*Writer, error) {
	key, err := head.Subkey(secret)
	if err != nil {
		return nil, err
	}
	defer clear(key[:])
	return NewKeyedWriter(out, head, key, blocks, coder, bufs)
}

// NewKeyedWriter is NewWriter for who has the pack's subkey alone.
func NewKeyedWriter(out Sink, head Header, key seal.Subkey, blocks int, coder *Coder, bufs *sync.Pool) (*Writer, error) {
	box, err := head.box(key)
	if err != nil {
		return nil, err
	}
	w := &Writer{head: head, blocks: blocks, coder: coder, box: box, out: out, bufs: bufs, hash: blake3.New()}
	if err := w.append(AppendHeader(nil, head)); err != nil {
		return nil, err
	}
	return w, nil
}

// ID returns the pack's id.
func (w *Writer) ID() seal.ID { return w.head.ID }

// Size returns how many bytes have been written.
func (w *Writer) Size() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.size
}

// append writes p; w.mu is held or nobody else has w.
func (w *Writer) append(p []byte) error {
	if w.err != nil {
		return w.err
	}
	if w.size+int64(len(p)) > MaxPack {
		return fmt.Errorf("pack grows beyond %d bytes", MaxPack)
	}
	if _, err := w.out.Write(p); err != nil {
		w.err = err
		return err
	}
	_, _ = w.hash.Write(p) // never fails
	w.size += int64(len(p))
	return nil
}

// Buffers are the scratch memory of one AddFrame.
type Buffers struct{ coded, scratch, sealed []byte }

// NewBufferPool returns a pool for NewWriter; frames up to n bytes need no allocation.
func NewBufferPool(n int) *sync.Pool {
	return &sync.Pool{New: func() any {
		return &Buffers{make([]byte, 0, n+n/8+64), make([]byte, 0, n+decodeSlack), make([]byte, 0, n+n/8+64)}
	}}
}

// AddFrame stores one frame and the items that lie in it (whose Frame is set here), and returns the bytes it took.
func (w *Writer) AddFrame(plain []byte, items []Item) (int, error) {
	if len(plain) > MaxFrame {
		return 0, fmt.Errorf("frame of %d bytes", len(plain))
	}
	w.mu.Lock()
	number := w.next
	w.next++
	err := w.err
	w.mu.Unlock()
	if err != nil {
		return 0, err
	}
	b := w.bufs.Get().(*Buffers)
	defer w.bufs.Put(b)
	coded, codec, err := w.coder.Encode(b.coded, b.scratch, plain)
	if err != nil {
		return 0, err
	}
	return w.seal(b, number, codec, coded, len(plain), items)
}

// seal appends a frame that is compressed already.
func (w *Writer) seal(b *Buffers, number uint64, codec Codec, coded []byte, plain int, items []Item) (int, error) {
	b.sealed = w.box.Seal(b.sealed[:0], seal.Frame, number, frameDetail(codec, plain), coded)

	w.mu.Lock()
	defer w.mu.Unlock()
	at := w.size
	if err := w.append(b.sealed); err != nil {
		return 0, err
	}
	for uint64(len(w.frames)) <= number {
		w.frames = append(w.frames, FrameInfo{})
	}
	w.frames[number] = FrameInfo{Offset: uint32(at), Stored: uint32(len(b.sealed)), Plain: uint32(plain), Codec: codec}
	for i := range items {
		e := items[i].Entry
		e.Frame = uint32(number)
		w.entries = append(w.entries, e)
		w.prints = append(w.prints, items[i].Prints...)
	}
	return len(b.sealed), nil
}

// frameDetail binds a frame's codec and length into its seal.
func frameDetail(codec Codec, plain int) uint64 { return uint64(codec)<<32 | uint64(uint32(plain)) }

// directoryDetail binds a pack's kind and the directory's length into its seal.
func directoryDetail(kind Kind, plain int) uint64 { return uint64(kind)<<32 | uint64(uint32(plain)) }

// Finish writes directory and trailer and makes the pack durable. No AddFrame may be running.
func (w *Writer) Finish(ctx context.Context) (*Directory, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, w.err
	}
	if uint64(len(w.frames)) != w.next || len(w.entries) > math.MaxUint32 {
		return nil, fmt.Errorf("%d of %d frames written", len(w.frames), w.next)
	}
	plain := appendDirectory(nil, w.blocks, w.frames, w.entries)
	dir := w.box.Seal(nil, seal.Directory, 0, directoryDetail(w.head.Kind, len(plain)), plain)
	prints := appendPrints(nil, w.prints)
	prints = w.box.Seal(nil, seal.Prints, 0, uint64(len(prints)), prints)
	t := trailer{directory: uint64(w.size), dirLen: uint32(len(dir)), printsLen: uint32(len(prints)), pack: w.head.ID}
	end := appendTrailer(nil, t)
	for _, p := range [][]byte{dir, prints, end[:trailerHashAt]} {
		if err := w.append(p); err != nil {
			return nil, err
		}
	}
	w.hash.Sum(end[trailerHashAt:trailerHashAt])
	if err := w.append(end[trailerHashAt:]); err != nil {
		return nil, err
	}
	if err := w.out.Commit(ctx); err != nil {
		w.err = err
		return nil, err
	}
	d := &Directory{Header: w.head, Blocks: w.blocks, Frames: w.frames, Entries: w.entries, Prints: w.prints, size: w.size}
	d.prints = span{int64(t.directory) + int64(t.dirLen), int64(t.printsLen)}
	return d, nil
}

// Abort throws the pack away. No AddFrame may be running.
func (w *Writer) Abort() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = context.Canceled
	}
	return w.out.Abort()
}
