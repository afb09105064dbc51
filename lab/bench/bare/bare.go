// Package bare does the least that a backup and a restore of an image can cost on a machine, with nothing around it: no
// index, no deduplication, no tree, no promise. It is the ceiling that engines are compared with.
//
// Writing is: read what is not a hole, keyed BLAKE3 of each chunk of 64 KiB, GMAC and one AES block of each block of 4 KiB,
// compress frames of 1 MiB, AES-256-GCM, write to one file. Restoring is the way back, with the hashes of chunks. It is
// no backup format; its invariant is only that Restore undoes Write.
package bare

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/lab/bench/images"
)

const (
	workers    = 2
	frameBytes = 1 << 20
	chunkBytes = 64 << 10
	blockBytes = 4 << 10
)

// frame is where a range of the image is in the output.
type frame struct {
	Extent images.Extent
	At     int64
	Stored int64
	Plain  bool // not compressed
}

var zeroes [chunkBytes]byte

// pipe is what a run shares.
type pipe struct {
	in, out *os.File
	codec   string
	aead    cipher.AEAD
	mask    cipher.Block

	mu     sync.Mutex
	at     int64
	frames []frame
}

// Write runs the pipeline over an image. codec is "zstd", "s2" or "" for reading and hashing only; then nothing is
// written. The file at path gets the frames, the one with ".frames" added says where they are.
func Write(ctx context.Context, image, path, codec string) (err error) {
	p := &pipe{codec: codec}
	if p.in, err = os.Open(image); err != nil {
		return err
	}
	defer p.in.Close()
	info, err := p.in.Stat()
	if err != nil {
		return err
	}
	if codec != "" {
		if p.out, err = os.Create(path); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.out.Close()) }()
	}
	if p.aead, p.mask, err = sealer(); err != nil {
		return err
	}
	data, err := images.DataExtents(p.in, info.Size())
	if err != nil {
		return err
	}
	if err := p.each(ctx, pieces(data), p.writer); err != nil || codec == "" {
		return err
	}
	table := binary.LittleEndian.AppendUint64(nil, uint64(info.Size()))
	for _, f := range p.frames {
		plain := uint64(0)
		if f.Plain {
			plain = 1
		}
		for _, v := range []uint64{uint64(f.Extent.Offset), uint64(f.Extent.Length), uint64(f.At), uint64(f.Stored), plain} {
			table = binary.LittleEndian.AppendUint64(table, v)
		}
	}
	return os.WriteFile(path+".frames", table, 0o644)
}

func sealer() (cipher.AEAD, cipher.Block, error) {
	block, err := aes.NewCipher(make([]byte, 32)) // what the key is makes no difference to the cost
	if err != nil {
		return nil, nil, err
	}
	aead, err := cipher.NewGCM(block)
	return aead, block, err
}

// pieces cuts extents into frames.
func pieces(data []images.Extent) (out []images.Extent) {
	for _, e := range data {
		for at := e.Offset; at < e.Offset+e.Length; {
			n := min(e.Offset+e.Length-at, frameBytes-at%frameBytes)
			out = append(out, images.Extent{Offset: at, Length: n})
			at += n
		}
	}
	return out
}

// each hands out extents to the workers.
func (p *pipe) each(ctx context.Context, list []images.Extent, worker func() func(images.Extent) error) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan images.Extent, workers)
	g.Go(func() error {
		defer close(queue)
		for _, e := range list {
			select {
			case queue <- e:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			do := worker()
			for e := range queue {
				if err := do(e); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// writer is one worker of Write with its buffers.
func (p *pipe) writer() func(images.Extent) error {
	enc, err := encoder(p.codec)
	hasher, keyErr := blake3.NewKeyed(make([]byte, 32))
	if err = errors.Join(err, keyErr); err != nil {
		return func(images.Extent) error { return err }
	}
	plain, coded, sealed := make([]byte, frameBytes), make([]byte, 0, 2*frameBytes), make([]byte, 0, 2*frameBytes)
	return func(e images.Extent) error {
		buf := plain[:e.Length]
		if _, err := io.ReadFull(io.NewSectionReader(p.in, e.Offset, e.Length), buf); err != nil {
			return err
		}
		if hashChunks(hasher, buf) || p.codec == "" {
			return nil
		}
		p.fingerprints(buf)
		coded = enc(coded[:0], buf)
		f := frame{Extent: e, Plain: len(coded) >= len(buf)}
		from := coded
		if f.Plain {
			from = buf
		}
		f.Stored = int64(len(from) + p.aead.Overhead())
		p.mu.Lock()
		f.At = p.at
		p.at += f.Stored
		p.frames = append(p.frames, f)
		p.mu.Unlock()
		var nonce [12]byte
		binary.LittleEndian.PutUint64(nonce[:], uint64(e.Offset))
		sealed = p.aead.Seal(sealed[:0], nonce[:], from, nil)
		_, err := p.out.WriteAt(sealed, f.At)
		return err
	}
}

// hashChunks computes the hashes of a frame's chunks and reports whether all of it is zeros.
func hashChunks(h *blake3.Hasher, p []byte) (zero bool) {
	var sum [32]byte
	zero = true
	for len(p) > 0 {
		c := p[:min(chunkBytes, len(p))]
		p = p[len(c):]
		if bytes.Equal(c, zeroes[:len(c)]) {
			continue
		}
		zero = false
		h.Reset()
		_, _ = h.Write(c) // never fails
		h.Sum(sum[:0])
	}
	return zero
}

// fingerprints computes those of a frame's blocks.
func (p *pipe) fingerprints(frame []byte) {
	var nonce [12]byte
	var out [16]byte
	for at := 0; at < len(frame); at += blockBytes {
		b := frame[at:min(at+blockBytes, len(frame))]
		if bytes.Equal(b, zeroes[:len(b)]) {
			continue
		}
		p.aead.Seal(out[:0], nonce[:], nil, b)
		p.mask.Encrypt(out[:], out[:])
	}
}

func encoder(codec string) (func(dst, src []byte) []byte, error) {
	switch codec {
	case "":
		return nil, nil
	case "s2":
		return func(dst, src []byte) []byte { return s2.Encode(dst[:cap(dst)], src) }, nil
	case "zstd":
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return func(dst, src []byte) []byte { return enc.EncodeAll(src, dst) }, nil
	}
	return nil, fmt.Errorf("unknown codec %q", codec)
}

func decoder(codec string) (func(dst, src []byte) ([]byte, error), error) {
	switch codec {
	case "s2":
		return func(dst, src []byte) ([]byte, error) { return s2.Decode(dst[:cap(dst)], src) }, nil
	case "zstd":
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return func(dst, src []byte) ([]byte, error) { return dec.DecodeAll(src, dst[:0]) }, nil
	}
	return nil, fmt.Errorf("unknown codec %q", codec)
}

// Restore writes what Write wrote to a new sparse file.
func Restore(ctx context.Context, path, target, codec string) (err error) {
	table, err := os.ReadFile(path + ".frames")
	if err != nil {
		return err
	}
	p := &pipe{codec: codec}
	if p.aead, p.mask, err = sealer(); err != nil {
		return err
	}
	if p.in, err = os.Open(path); err != nil {
		return err
	}
	defer p.in.Close()
	if p.out, err = os.OpenFile(target, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.out.Close()) }()
	if err := p.out.Truncate(int64(binary.LittleEndian.Uint64(table))); err != nil {
		return err
	}
	byOffset := map[int64]frame{}
	var list []images.Extent
	for t := table[8:]; len(t) >= 40; t = t[40:] {
		v := func(i int) int64 { return int64(binary.LittleEndian.Uint64(t[8*i:])) }
		f := frame{Extent: images.Extent{Offset: v(0), Length: v(1)}, At: v(2), Stored: v(3), Plain: v(4) == 1}
		byOffset[f.Extent.Offset] = f
		list = append(list, f.Extent)
	}
	return p.each(ctx, list, func() func(images.Extent) error { return p.reader(byOffset) })
}

// reader is one worker of Restore.
func (p *pipe) reader(frames map[int64]frame) func(images.Extent) error {
	dec, err := decoder(p.codec)
	hasher, keyErr := blake3.NewKeyed(make([]byte, 32))
	if err = errors.Join(err, keyErr); err != nil {
		return func(images.Extent) error { return err }
	}
	sealed, coded, plain := make([]byte, 2*frameBytes), make([]byte, 0, 2*frameBytes), make([]byte, 0, frameBytes)
	return func(e images.Extent) error {
		f := frames[e.Offset]
		if _, err := p.in.ReadAt(sealed[:f.Stored], f.At); err != nil {
			return err
		}
		var nonce [12]byte
		binary.LittleEndian.PutUint64(nonce[:], uint64(e.Offset))
		out, err := p.aead.Open(coded[:0], nonce[:], sealed[:f.Stored], nil)
		if err == nil && !f.Plain {
			out, err = dec(plain, out)
		}
		if err != nil {
			return fmt.Errorf("frame at %d: %w", e.Offset, err)
		}
		hashChunks(hasher, out)
		_, err = p.out.WriteAt(out, e.Offset)
		return err
	}
}
