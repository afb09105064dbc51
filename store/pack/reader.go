package pack

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"math"

	"github.com/zeebo/blake3"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// Source is where packs are read from; any blob.Store is one.
type Source interface {
	ReadAt(ctx context.Context, name string, p []byte, off int64) error
}

// Secrets answers the data key of a key set.
type Secrets func(keyID uint32) (secret [32]byte, err error)

// Reader reads the parts of one pack. It may be used from several goroutines.
type Reader struct {
	src  Source
	name string
	dir  *Directory
	box  *seal.Box
}

// tailGuess is read at once from a pack's end: it holds the trailer and most directories.
const tailGuess = 64 << 10

// Open reads and proves the header and the directory of the pack id of size bytes.
func Open(ctx context.Context, src Source, repository, id seal.ID, size int64, secrets Secrets) (*Reader, error) {
	return OpenBounded(ctx, src, repository, id, size, secrets, math.MaxInt32)
}

// OpenBounded is Open for a pack by who is not trusted: memory is taken for at most so many entries, and as many frames.
func OpenBounded(ctx context.Context, src Source, repository, id seal.ID, size int64, secrets Secrets, entries int) (*Reader, error) {
	name := Name(id)
	if size < HeaderBytes+2*seal.Overhead+TrailerBytes || size > MaxPack {
		return nil, fmt.Errorf("pack of %d bytes", size)
	}
	headBytes := make([]byte, HeaderBytes)
	if err := src.ReadAt(ctx, name, headBytes, 0); err != nil {
		return nil, err
	}
	head, err := ParseHeader(headBytes)
	if errors.Is(err, ErrNewer) {
		return nil, newerOrRotten(ctx, src, name, size, err)
	}
	if err != nil {
		return nil, err
	}
	if head.Repository != repository || head.ID != id {
		return nil, errors.New("header names another repository or pack")
	}
	tail := make([]byte, min(size-HeaderBytes, tailGuess))
	if err := src.ReadAt(ctx, name, tail, size-int64(len(tail))); err != nil {
		return nil, err
	}
	t, err := parseTrailer(tail[len(tail)-TrailerBytes:], size)
	if err != nil {
		return nil, err
	}
	if t.pack != id {
		return nil, errors.New("trailer names another pack")
	}
	if int64(t.dirLen) > maxDirectory(entries) {
		return nil, fmt.Errorf("directory of %d bytes for at most %d entries", t.dirLen, entries)
	}
	sealed := make([]byte, t.dirLen)
	if from := int64(len(tail)) - (size - int64(t.directory)); from >= 0 {
		copy(sealed, tail[from:])
	} else if err := src.ReadAt(ctx, name, sealed, int64(t.directory)); err != nil {
		return nil, err
	}
	secret, err := secrets(head.KeyID)
	if err != nil {
		return nil, err
	}
	box, err := seal.NewCipherBox(head.Cipher, secret, head.KeyID, Version, repository, id, head.Salt)
	if err != nil {
		return nil, err
	}
	plain, err := box.Open(nil, seal.Directory, 0, directoryDetail(head.Kind, len(sealed)-seal.Overhead), sealed)
	if err != nil {
		return nil, fmt.Errorf("directory %w", err)
	}
	if err := bounded(plain, entries); err != nil {
		return nil, err
	}
	dir, err := parseDirectory(plain, int64(t.directory))
	if err != nil {
		return nil, err
	}
	for i := range dir.Entries {
		if (dir.Entries[i].Type == Chunk) != (head.Kind == Data) {
			return nil, fmt.Errorf("entry %d of type %d in a pack of kind %s", i, dir.Entries[i].Type, head.Kind)
		}
	}
	dir.Header, dir.size, dir.end = head, size, int64(t.directory)
	dir.prints = span{int64(t.directory) + int64(t.dirLen), int64(t.printsLen)}
	return &Reader{src: src, name: name, dir: dir, box: box}, nil
}

// Directory returns what the pack holds. It must not be changed.
func (r *Reader) Directory() *Directory { return r.dir }

// Frame returns the plaintext of a frame in new memory.
func (r *Reader) Frame(ctx context.Context, number uint32, coder *Coder, bufs *Buffers) ([]byte, error) {
	if int64(number) >= int64(len(r.dir.Frames)) {
		return nil, fmt.Errorf("there is no frame %d", number)
	}
	f := r.dir.Frames[number]
	if cap(bufs.sealed) < int(f.Stored) {
		bufs.sealed = make([]byte, 0, f.Stored)
	}
	sealed := bufs.sealed[:f.Stored]
	if err := r.src.ReadAt(ctx, r.name, sealed, int64(f.Offset)); err != nil {
		return nil, err
	}
	dst := bufs.coded[:0]
	if f.Codec == None {
		dst = make([]byte, 0, f.Plain) // it becomes the result
	}
	coded, err := r.box.Open(dst, seal.Frame, uint64(number), frameDetail(f.Codec, int(f.Plain)), sealed)
	if err != nil {
		return nil, fmt.Errorf("frame %d at offset %d %w", number, f.Offset, err)
	}
	plain, err := coder.Decode(nil, coded, f.Codec, int(f.Plain))
	if err != nil {
		return nil, fmt.Errorf("frame %d at offset %d: %w", number, f.Offset, err)
	}
	return plain, nil
}

// Prints returns the fingerprints of the blocks of a data pack, Blocks for each entry; of a meta pack, none.
func (r *Reader) Prints(ctx context.Context) ([]chunk.Fingerprint, error) {
	want := int64(len(r.dir.Entries)) * int64(r.dir.Blocks) * 16
	if r.dir.Header.Kind != Data {
		want = 0
	}
	if r.dir.prints.length != want+seal.Overhead {
		return nil, fmt.Errorf("%d bytes of fingerprints for %d chunks", r.dir.prints.length, len(r.dir.Entries))
	}
	sealed := make([]byte, r.dir.prints.length)
	if err := r.src.ReadAt(ctx, r.name, sealed, r.dir.prints.offset); err != nil {
		return nil, err
	}
	plain, err := r.box.Open(sealed[:0], seal.Prints, 0, uint64(want), sealed)
	if err != nil {
		return nil, fmt.Errorf("fingerprints %w", err)
	}
	out := make([]chunk.Fingerprint, len(plain)/16)
	for i := range out {
		copy(out[i][:], plain[i*16:])
	}
	return out, nil
}

// Scrub reads a pack of size bytes from end to end and compares it with its stored-bytes hash. It needs no keys; it
// finds rot, not forgery.
func Scrub(ctx context.Context, src Source, name string, size int64) error {
	if size < HeaderBytes+TrailerBytes || size > MaxPack {
		return fmt.Errorf("pack of %d bytes", size)
	}
	end := make([]byte, TrailerBytes)
	if err := src.ReadAt(ctx, name, end, size-TrailerBytes); err != nil {
		return err
	}
	t, err := parseTrailer(end, size)
	if err != nil {
		return err
	}
	h := blake3.New()
	buf := make([]byte, 1<<20)
	for off, stop := int64(0), size-TrailerBytes+trailerHashAt; off < stop; {
		p := buf[:min(int64(len(buf)), stop-off)]
		if err := src.ReadAt(ctx, name, p, off); err != nil {
			return err
		}
		_, _ = h.Write(p)
		off += int64(len(p))
	}
	if subtle.ConstantTimeCompare(h.Sum(nil), t.hash[:]) != 1 {
		return errRotten
	}
	return nil
}
