package remote

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"iter"

	"google.golang.org/grpc"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// ImageReader reads an image that the ticket names. Its methods promise what those of store.ImageReader do.
type ImageReader struct {
	c       *Client
	root    *mover.Root
	size    int64
	planned store.Planned
}

// OpenImage begins to read an image. The caller closes it.
func (c *Client) OpenImage(ctx context.Context, ref store.ImageRef) (*ImageReader, error) {
	i := &ImageReader{c: c, root: rootOf(ref), size: ref.SizeBytes}
	if _, err := call(ctx, c, "open image", &mover.OpenImageRequest{Image: i.root}, c.rpc.OpenImage); err != nil {
		return nil, err
	}
	i.planned = store.Planned{
		SizeBytes: ref.SizeBytes, ChunkBytes: c.terms.ChunkBytes, Root: ref.Root, Content: c.content, Coder: c.coder,
		Plan: i.plan, Source: i.source, Chunk: i.chunk,
	}
	i.planned.Init()
	return i, nil
}

// Size returns the image's size in bytes.
func (i *ImageReader) Size() int64 { return i.size }

// ChunkBytes returns the size of chunks; reads of whole chunks cost least.
func (i *ImageReader) ChunkBytes() int { return i.c.terms.ChunkBytes }

// Close ends the reading.
func (i *ImageReader) Close() error {
	_, err := i.c.rpc.CloseImage(i.c.with(context.Background()), &mover.CloseImageRequest{Image: i.root})
	return fromWire("close image", err)
}

// Extents yields data and zero ranges in ascending order, covering the image without gap. After an error it stops.
func (i *ImageReader) Extents(ctx context.Context) iter.Seq2[store.Extent, error] {
	return func(yield func(store.Extent, error) bool) {
		size := int64(i.ChunkBytes())
		for at, more := int64(0), i.size > 0; more; {
			q := &mover.ExtentsRequest{Image: i.root, First: at / size}
			a, err := call(ctx, i.c, "read extents", q, i.c.rpc.Extents)
			if err == nil && (len(a.GetLengths()) != len(a.GetZero()) || len(a.GetLengths()) == 0) {
				err = malformed("read extents", "%d lengths of %d extents", len(a.GetLengths()), len(a.GetZero()))
			}
			if err != nil {
				yield(store.Extent{}, err)
				return
			}
			more = a.GetMore()
			for n, length := range a.GetLengths() {
				if length <= 0 || length > i.size-at || length%size != 0 && at+length != i.size {
					yield(store.Extent{}, malformed("read extents", "%d bytes at %d of %d", length, at, i.size))
					return
				}
				if !yield(store.Extent{Offset: at, Length: length, Zero: a.GetZero()[n]}, nil) {
					return
				}
				at += length
			}
			if !more && at != i.size {
				yield(store.Extent{}, malformed("read extents", "they end at %d of %d", at, i.size))
			}
		}
	}
}

// Stream gives all data of the image, every byte proven, to fn. workers 0 is 4.
func (i *ImageReader) Stream(ctx context.Context, workers int, fn func(off int64, p []byte) error) error {
	if workers <= 0 {
		workers = 4
	}
	size := int64(i.ChunkBytes())
	return i.planned.Stream(ctx, workers, func(yield func(first, count int64) error) error {
		for e, err := range i.Extents(ctx) {
			if err != nil {
				return err
			}
			if e.Zero {
				continue
			}
			if err := yield(e.Offset/size, (e.Length+size-1)/size); err != nil {
				return err
			}
		}
		return nil
	}, fn)
}

// ReadAt implements io.ReaderAt. Every byte it returns is proven.
func (i *ImageReader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, malformed("read image", "offset %d", off)
	}
	if off >= i.size {
		return 0, io.EOF
	}
	if rest := i.size - off; int64(len(p)) > rest {
		p, err = p[:rest], io.EOF
	}
	if len(p) == 0 {
		return 0, err
	}
	size := int64(i.ChunkBytes())
	first := off / size
	count := (off+int64(len(p))+size-1)/size - first
	clear(p) // what the plans do not name is zeros
	streamErr := i.planned.Stream(context.Background(), 1, func(yield func(first, count int64) error) error {
		return yield(first, count)
	}, func(at int64, data []byte) error {
		if at < off {
			if int64(len(data)) <= off-at {
				return nil
			}
			data, at = data[off-at:], off
		}
		if at-off < int64(len(p)) {
			copy(p[at-off:], data)
		}
		return nil
	})
	if streamErr != nil {
		return 0, streamErr
	}
	return len(p), err
}

// plan asks the owner for a plan.
func (i *ImageReader) plan(ctx context.Context, first, count int64) (*store.Plan, error) {
	a, err := call(ctx, i.c, "plan the reading", &mover.PlanRequest{Image: i.root, First: first, Count: count}, i.c.rpc.Plan)
	if err != nil {
		return nil, err
	}
	if a.GetEnd() > first+count {
		return nil, malformed("plan the reading", "it goes up to %d, of %d+%d", a.GetEnd(), first, count)
	}
	out := &store.Plan{End: a.GetEnd()}
	for _, p := range a.GetPacks() {
		head, err := pack.ParseHeader(p.GetHeader())
		if err != nil || len(p.GetSubkey()) != 32 || head.Repository != i.c.terms.Repository {
			return nil, malformed("plan the reading", "a header of %d and a key of %d bytes: %v", len(p.GetHeader()), len(p.GetSubkey()), err)
		}
		pp := store.PlanPack{PackGrant: store.PackGrant{Header: head, Key: seal.Subkey(p.GetSubkey())}}
		for _, f := range p.GetFrames() {
			if f.GetCodec() > 255 || f.GetEntries() >= 1<<16 {
				return nil, malformed("plan the reading", "a frame of codec %d with %d entries", f.GetCodec(), f.GetEntries())
			}
			pp.Frames = append(pp.Frames, pack.Place{Number: f.GetNumber(), Entries: int(f.GetEntries()), Info: pack.FrameInfo{
				Offset: f.GetOffset(), Stored: f.GetStored(), Plain: f.GetPlain(), Codec: pack.Codec(f.GetCodec()),
			}, Leave: f.GetProof()})
		}
		out.Packs = append(out.Packs, pp)
	}
	for _, c := range a.GetChunks() {
		if len(c.GetId()) != 32 {
			return nil, malformed("plan the reading", "an id of %d bytes", len(c.GetId()))
		}
		pc := store.PlanChunk{ID: store.Hash(c.GetId()), Numbers: c.GetNumbers(), Zeros: c.GetZeros()}
		for _, part := range c.GetParts() {
			if part.GetPack() >= uint32(len(out.Packs)) || part.GetFrame() >= 1<<20 {
				return nil, malformed("plan the reading", "a part in pack %d, frame %d", part.GetPack(), part.GetFrame())
			}
			pc.Parts = append(pc.Parts, store.PlanPart{
				Pack: int(part.GetPack()), Frame: int(part.GetFrame()), Offset: part.GetOffset(), Length: part.GetLength(), Takes: part.GetTakes(),
			})
		}
		out.Chunks = append(out.Chunks, pc)
	}
	return out, nil
}

// chunk reads a chunk that the owner puts together.
func (i *ImageReader) chunk(ctx context.Context, number int64, dst []byte) error {
	a, err := call(ctx, i.c, "read chunk", &mover.ReadChunkRequest{Image: i.root, Number: number}, i.c.rpc.ReadChunk)
	if err != nil {
		return err
	}
	if len(a.GetData()) != len(dst) {
		return malformed("read chunk", "%d bytes of %d", len(a.GetData()), len(dst))
	}
	copy(dst, a.GetData())
	return nil
}

// source is where frames of a plan are read: on this machine, or from the owner.
func (i *ImageReader) source(p *store.Plan) func(n int) pack.Source {
	return func(n int) pack.Source {
		if i.c.o.Files != nil {
			return i.c.o.Files
		}
		return &frames{i, &p.Packs[n]}
	}
}

// frames reads frames of one pack from the owner.
type frames struct {
	i *ImageReader
	p *store.PlanPack
}

// ReadAt implements pack.Source: for the range of frames that follow each other, and for nothing else.
func (f *frames) ReadAt(ctx context.Context, _ string, p []byte, off int64) error {
	id := f.p.Header.ID
	q := &mover.ReadFramesRequest{Image: f.i.root, Pack: id[:]}
	end := off + int64(len(p))
	for at := range f.p.Frames {
		fr := &f.p.Frames[at]
		if int64(fr.Info.Offset) != off || off == end {
			continue
		}
		q.Frames = append(q.Frames, &mover.PlannedFrame{Number: fr.Number, Offset: fr.Info.Offset, Stored: fr.Info.Stored, Proof: fr.Leave})
		off += int64(fr.Info.Stored)
	}
	if off != end {
		return fault.New(fault.Internal, "read pack", pack.Name(id), "a range that is not one of frames")
	}
	return f.i.c.retryMoving(ctx, "read pack", func(ctx context.Context, moved func(int64)) error { return f.read(ctx, q, p, moved) })
}

func (f *frames) read(ctx context.Context, q *mover.ReadFramesRequest, p []byte, moved func(int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, err := f.i.c.rpc.ReadFrames(ctx, q, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	for {
		m, err := in.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if len(m.GetData()) > len(p) || crc32.Checksum(m.GetData(), castagnoli) != m.GetCrc32C() {
			return fault.New(fault.Transient, "read pack", "", "%d bytes that are not what was sent, or too many", len(m.GetData()))
		}
		p = p[copy(p, m.GetData()):]
		moved(int64(len(m.GetData())))
	}
	if len(p) > 0 {
		return fault.New(fault.Transient, "read pack", "", "%d bytes are missing", len(p))
	}
	return nil
}
