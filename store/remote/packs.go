package remote

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// packsHeld is how many packs a mover has at once for an image: one that is filled and others on their way.
const packsHeld = 3

// packs are the packs of an image that are being written. A pack is kept whole until the owner has it, so that it can be
// sent again; with Files it is written there, and nothing of it is kept.
type packs struct {
	w    *ImageWriter
	room chan struct{} // one token for each pack that is held
	free chan []byte   // memory of packs sent

	making sync.Mutex // held while a pack is begun
	next   uint64

	mu  sync.Mutex
	cur *filling
	all map[*filling]struct{}
	err error // final
}

// filling is a pack being filled.
type filling struct {
	w     *pack.Writer
	spool *spool // nil with Files
	users int
	full  bool
}

// spool is a pack in memory.
type spool struct{ p []byte }

func (s *spool) Write(p []byte) (int, error) {
	s.p = append(s.p, p...)
	return len(p), nil
}

// Commit implements pack.Sink: what is in memory waits to be sent.
func (s *spool) Commit(context.Context) error { return nil }

// Abort implements pack.Sink.
func (s *spool) Abort() error { return nil }

func (ps *packs) init(w *ImageWriter) {
	ps.w, ps.room, ps.free, ps.all = w, make(chan struct{}, packsHeld), make(chan []byte, packsHeld), map[*filling]struct{}{}
}

func (ps *packs) failed() error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.err
}

// fail makes err final for this writer: what was asked for may be lost with it.
func (ps *packs) fail(err error) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.err == nil {
		ps.err = err
	}
	return err
}

// storeFrame is what the frames of the image are given to.
func (ps *packs) storeFrame(ctx context.Context, plain []byte, items []pack.Item) error {
	f, err := ps.borrow(ctx)
	if err != nil {
		return err
	}
	_, err = f.w.AddFrame(plain, items)
	return errors.Join(err, ps.giveBack(ctx, f))
}

func (ps *packs) take() *filling {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.cur != nil {
		ps.cur.users++
	}
	return ps.cur
}

// borrow returns the pack that is being filled; it waits while as many are held as may be.
func (ps *packs) borrow(ctx context.Context) (*filling, error) {
	if f := ps.take(); f != nil {
		return f, nil
	}
	ps.making.Lock()
	defer ps.making.Unlock()
	if f := ps.take(); f != nil {
		return f, nil
	}
	if err := ps.failed(); err != nil {
		return nil, err
	}
	select {
	case ps.room <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	f, err := ps.begin(ctx)
	if err != nil {
		<-ps.room
		return nil, err
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.cur = f
	ps.all[f] = struct{}{}
	return f, nil
}

// begin asks for leave to write a pack, and starts it.
func (ps *packs) begin(ctx context.Context) (*filling, error) {
	c := ps.w.c
	ps.next++
	a, err := call(ctx, c, "begin pack", &mover.NewPackRequest{Turn: ps.w.turn, Key: ps.next}, c.rpc.NewPack)
	if err != nil {
		return nil, err
	}
	head, err := pack.ParseHeader(a.GetHeader())
	if err != nil || len(a.GetSubkey()) != 32 || head.Repository != c.terms.Repository {
		return nil, malformed("begin pack", "a header of %d and a key of %d bytes: %v", len(a.GetHeader()), len(a.GetSubkey()), err)
	}
	f := &filling{users: 1}
	var out pack.Sink
	if c.o.Files != nil {
		if out, err = c.o.Files.Create(ctx, pack.Name(head.ID)); err != nil {
			return nil, fault.Context("begin pack", "", err)
		}
	} else {
		f.spool = &spool{}
		select {
		case f.spool.p = <-ps.free:
		default:
			f.spool.p = make([]byte, 0, c.terms.PackBytes+c.terms.PackBytes/8)
		}
		out = f.spool
	}
	f.w, err = pack.NewKeyedWriter(out, head, seal.Subkey(a.GetSubkey()), c.terms.ChunkBytes/4096, c.coder, c.bufs)
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.Internal, "begin pack", "", err), out.Abort())
	}
	return f, nil
}

// giveBack ends a use; the last user of a full pack makes it durable.
func (ps *packs) giveBack(ctx context.Context, f *filling) error {
	size := f.w.Size()
	ps.mu.Lock()
	f.users--
	if ps.cur == f && size >= int64(ps.w.c.terms.PackBytes) {
		f.full, ps.cur = true, nil
	}
	last := f.full && f.users == 0
	ps.mu.Unlock()
	if !last {
		return nil
	}
	return ps.deliver(ctx, f)
}

// flush makes the pack durable that is being filled.
func (ps *packs) flush(ctx context.Context) error {
	ps.mu.Lock()
	f := ps.cur
	ps.cur = nil
	if f == nil {
		ps.mu.Unlock()
		return nil
	}
	f.full = true
	last := f.users == 0
	ps.mu.Unlock()
	if !last {
		return nil // its last user does it
	}
	return ps.deliver(ctx, f)
}

// deliver makes a pack durable and has the owner take it.
func (ps *packs) deliver(ctx context.Context, f *filling) error {
	defer func() { <-ps.room }()
	if err := ps.failed(); err != nil {
		return err
	}
	d, err := f.w.Finish(ctx)
	if err != nil {
		return fault.Context("write pack", "", err)
	}
	ps.mu.Lock()
	delete(ps.all, f)
	ps.mu.Unlock()
	id := d.Header.ID
	if f.spool != nil {
		if err := ps.send(ctx, id, f.spool.p); err != nil {
			return err
		}
		select {
		case ps.free <- f.spool.p[:0]:
		default:
		}
	}
	c := ps.w.c
	if _, err = call(ctx, c, "index pack", &mover.PackDoneRequest{Turn: ps.w.turn, Id: id[:], Size: d.Size()}, c.rpc.PackDone); err != nil {
		return err
	}
	ps.w.count(func(s *store.ImageStats) { s.BytesStored += d.Size() })
	return nil
}

// send gives a pack to the owner, from its start each time it does not arrive.
func (ps *packs) send(ctx context.Context, id seal.ID, p []byte) error {
	err := ps.w.c.retryMoving(ctx, "write pack", func(ctx context.Context, moved func(int64)) error { return ps.sendOnce(ctx, id, p, moved) })
	if fault.KindOf(err) == fault.Exists {
		return nil // the answer was lost
	}
	return err
}

func (ps *packs) sendOnce(ctx context.Context, id seal.ID, p []byte, moved func(int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream where it is left in the middle
	out, err := ps.w.c.rpc.PutPack(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	for at := 0; at < len(p); at += partBytes {
		part := &mover.PutPackRequest{Offset: int64(at), Data: p[at:min(at+partBytes, len(p))]}
		part.Crc32C = crc32.Checksum(part.Data, castagnoli)
		if at == 0 {
			part.Turn, part.Id, part.Size = ps.w.turn, id[:], int64(len(p))
		}
		if err := out.Send(part); errors.Is(err, io.EOF) {
			break // the answer says why
		} else if err != nil {
			return err
		}
		moved(int64(len(part.Data)))
	}
	_, err = out.CloseAndRecv()
	return err
}

// drop throws away what is not durable.
func (ps *packs) drop() {
	_ = ps.fail(fault.New(fault.Canceled, "write image", "", "it was given up"))
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for f := range ps.all {
		if f.users == 0 {
			_ = f.w.Abort()
			delete(ps.all, f)
		}
	}
	ps.cur = nil
}
