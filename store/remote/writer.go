package remote

import (
	"context"
	"encoding/hex"
	"iter"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/carry"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

func hexID(id seal.ID) string { return hex.EncodeToString(id[:]) }

// askAtOnce bounds the chunks of one question, askBytes the fingerprints in it.
const (
	askAtOnce = 256
	askBytes  = 1 << 20
)

// ImageWriter writes the ticket's image. Its methods promise what those of store.ImageWriter do, except that a failure
// is not final for the session: whoever begins the image again goes on from what Durable then names.
type ImageWriter struct {
	c     *Client
	turn  uint64
	size  int64
	carry *carry.Writer
	packs packs

	flushing atomic.Bool
	mu       sync.Mutex
	stats    store.ImageStats
}

// NewImage begins the ticket's image, or goes on with it. Whoever carried it before is refused from now on.
func (c *Client) NewImage(ctx context.Context, o store.ImageOptions) (*ImageWriter, error) {
	if !c.write {
		return nil, fault.New(fault.Denied, "begin image", "", "the ticket does not allow writing")
	}
	q := &mover.BeginRequest{SizeBytes: o.SizeBytes, Anew: o.Anew}
	if o.Parent != nil {
		q.Parent = rootOf(*o.Parent)
	}
	a, err := call(ctx, c, "begin image", q, c.rpc.Begin)
	if err != nil {
		return nil, err
	}
	w := &ImageWriter{c: c, turn: a.GetTurn(), size: o.SizeBytes}
	w.packs.init(w)
	perChunk := c.terms.ChunkBytes/4096*16 + 64
	w.carry = carry.New(carry.Options{
		Hasher: c.content, ChunkBytes: c.terms.ChunkBytes, FrameBytes: c.terms.FrameBytes,
		Group: max(1, min(askAtOnce, askBytes/perChunk)), Store: w.packs.storeFrame,
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.image = w
	return w, nil
}

// ChunkBytes returns the alignment of Write and Zero.
func (w *ImageWriter) ChunkBytes() int { return w.c.terms.ChunkBytes }

// FrameBytes is as in store.ImageWriter.
func (w *ImageWriter) FrameBytes() int { return w.c.terms.FrameBytes }

// Stats returns the counts of what was given to this writer; after Finish, those of the whole image.
func (w *ImageWriter) Stats() store.ImageStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

func (w *ImageWriter) count(fn func(s *store.ImageStats)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn(&w.stats)
}

// Write gives the content of a range. Hashing, compressing, sealing and sending happen in the caller's goroutine.
func (w *ImageWriter) Write(ctx context.Context, off int64, p []byte) error {
	size := int64(w.ChunkBytes())
	if n := int64(len(p)); off < 0 || off%size != 0 || n > w.size-off || n%size != 0 && off+n != w.size {
		return fault.New(fault.Invalid, "write image", "", "range %d+%d of an image of %d bytes, in chunks of %d", off, n, w.size, size)
	}
	if err := w.packs.failed(); err != nil {
		return err
	}
	if err := w.carry.Write(ctx, asking{w}, off/size, p); err != nil {
		return w.packs.fail(err)
	}
	w.count(func(s *store.ImageStats) { s.BytesWritten += int64(len(p)) })
	if w.flushing.CompareAndSwap(true, false) {
		return w.flush(ctx)
	}
	return nil
}

// flush makes what is new durable, as far as it is not in a Write's hands.
func (w *ImageWriter) flush(ctx context.Context) error {
	err := w.carry.Flush(ctx)
	if err == nil {
		err = w.packs.flush(ctx)
	}
	if err != nil {
		return w.packs.fail(err)
	}
	return nil
}

// Zero says that a range is all zeros.
func (w *ImageWriter) Zero(ctx context.Context, off, n int64) error {
	_, err := call(ctx, w.c, "write zeros", &mover.ZeroRequest{Turn: w.turn, Offset: off, Length: n}, w.c.rpc.Zero)
	if err == nil {
		w.count(func(s *store.ImageStats) { s.BytesWritten, s.BytesZero = s.BytesWritten+n, s.BytesZero+n })
	}
	return err
}

// Finish makes everything durable and ends the image.
func (w *ImageWriter) Finish(ctx context.Context) (store.ImageRef, error) {
	if err := w.packs.failed(); err != nil {
		return store.ImageRef{}, err
	}
	if err := w.flush(ctx); err != nil {
		return store.ImageRef{}, err
	}
	a, err := call(ctx, w.c, "finish image", &mover.FinishRequest{Turn: w.turn}, w.c.rpc.Finish)
	if err != nil {
		return store.ImageRef{}, err
	}
	w.c.mu.Lock()
	w.c.image = nil
	w.c.mu.Unlock()
	w.count(func(s *store.ImageStats) {
		*s = store.ImageStats{
			BytesWritten: a.GetBytesWritten(), BytesZero: a.GetBytesZero(), BytesNew: a.GetBytesNew(), BytesStored: a.GetBytesStored(),
			Chunks: a.GetChunks(), ChunksNew: a.GetChunksNew(), ChunksRefs: a.GetChunksRefs(),
		}
	})
	return parseRoot("finish image", a.GetImage())
}

// Close gives up what is not durable, so that its room is free at once. It may be left out.
func (w *ImageWriter) Close(ctx context.Context) error {
	w.packs.drop()
	_, err := w.c.rpc.Leave(w.c.with(ctx), &mover.LeaveRequest{Turn: w.turn})
	return fromWire("leave image", err)
}

// Durable yields what need not be read again.
func (w *ImageWriter) Durable(ctx context.Context) iter.Seq2[store.Range, error] {
	return func(yield func(store.Range, error) bool) {
		for q := (&mover.DurableRequest{Turn: w.turn}); ; {
			a, err := call(ctx, w.c, "ask what is durable", q, w.c.rpc.Durable)
			if err == nil && (len(a.GetOffsets()) != len(a.GetLengths()) || a.GetMore() && len(a.GetOffsets()) == 0) {
				err = malformed("ask what is durable", "%d offsets, %d lengths", len(a.GetOffsets()), len(a.GetLengths()))
			}
			if err != nil {
				yield(store.Range{}, err)
				return
			}
			for i, off := range a.GetOffsets() {
				n := a.GetLengths()[i]
				if off < q.From || n <= 0 || n > w.size-off {
					yield(store.Range{}, malformed("ask what is durable", "%d+%d after %d", off, n, q.GetFrom()))
					return
				}
				if !yield(store.Range{Offset: off, Length: n}, nil) {
					return
				}
				q.From = off + n
			}
			if !a.GetMore() {
				return
			}
		}
	}
}

// asking is a carry.Decider that asks the owner.
type asking struct{ w *ImageWriter }

// Look implements carry.Decider.
func (d asking) Look(ctx context.Context, chunks []carry.Chunk) error {
	q := &mover.LookRequest{Turn: d.w.turn, Numbers: make([]int64, len(chunks)), Ids: make([]byte, 0, 32*len(chunks))}
	zeros := int64(0)
	for i, c := range chunks {
		q.Numbers[i] = c.Number
		q.Ids = append(q.Ids, c.ID[:]...)
		if c.ID.IsZero() {
			zeros++
		}
	}
	a, err := call(ctx, d.w.c, "look up chunks", q, d.w.c.rpc.Look)
	if err != nil {
		return err
	}
	if len(a.GetStore()) != len(chunks) {
		return malformed("look up chunks", "%d answers for %d chunks", len(a.GetStore()), len(chunks))
	}
	for i := range chunks {
		chunks[i].Store = a.GetStore()[i] != 0 && !chunks[i].ID.IsZero()
	}
	if a.GetFlush() {
		d.w.flushing.Store(true)
	}
	d.w.count(func(s *store.ImageStats) {
		s.Chunks += int64(len(chunks)) - zeros
		s.BytesZero += zeros * int64(d.w.ChunkBytes())
	})
	return nil
}

// Place implements carry.Decider.
func (d asking) Place(ctx context.Context, placings []carry.Placing) error {
	q := &mover.PlaceRequest{Turn: d.w.turn}
	for i := range placings {
		p := &placings[i]
		q.Numbers, q.Zeros = append(q.Numbers, p.Number), append(q.Zeros, p.Zeros)
		q.Ids = append(q.Ids, p.ID[:]...)
		for b := range p.Prints {
			q.Prints = append(q.Prints, p.Prints[b][:]...)
		}
	}
	a, err := call(ctx, d.w.c, "place chunks", q, d.w.c.rpc.Place)
	if err != nil {
		return err
	}
	if len(a.GetPresent()) != len(placings) || len(a.GetKnown()) != len(placings) || len(a.GetTargets()) != 32*len(a.GetBlocks()) {
		return malformed("place chunks", "%d and %d answers for %d chunks, with %d and %d bytes of references",
			len(a.GetPresent()), len(a.GetKnown()), len(placings), len(a.GetTargets()), len(a.GetBlocks()))
	}
	targets, blocks := a.GetTargets(), a.GetBlocks()
	for i := range placings {
		p := &placings[i]
		if p.Known = a.GetKnown()[i] != 0; p.Known {
			continue
		}
		n := bits.OnesCount64(p.Present &^ a.GetPresent()[i])
		if a.GetPresent()[i]&^p.Present != 0 || n > len(blocks) {
			return malformed("place chunks", "blocks %x of %x, %d references left", a.GetPresent()[i], p.Present, len(blocks))
		}
		p.Present = a.GetPresent()[i]
		p.Refs = make([]pack.Ref, n)
		for r := range p.Refs {
			p.Refs[r] = pack.Ref{Target: store.Hash(targets[32*r:]), Block: blocks[r]}
		}
		if distinct(p.Refs) > pack.MaxTargets {
			return malformed("place chunks", "references to %d chunks", distinct(p.Refs))
		}
		targets, blocks = targets[32*n:], blocks[n:]
	}
	d.w.count(func(s *store.ImageStats) {
		for i := range placings {
			if placings[i].Known {
				continue
			}
			s.ChunksNew++
			s.BytesNew += int64(bits.OnesCount64(placings[i].Present) * 4096)
			if len(placings[i].Refs) > 0 {
				s.ChunksRefs++
			}
		}
	})
	return nil
}

func distinct(refs []pack.Ref) int {
	var seen []store.Hash
	for _, r := range refs {
		if !slices.Contains(seen, r.Target) {
			seen = append(seen, r.Target)
		}
	}
	return len(seen)
}
