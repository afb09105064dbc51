package remote

import (
	"context"
	"errors"
	"hash/crc32"
	"io"

	"google.golang.org/grpc"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/carry"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func malformed(op, format string, args ...any) error {
	return fault.New(fault.Invalid, op, "", format, args...)
}

// Begin implements the service.
func (s *Server) Begin(ctx context.Context, q *mover.BeginRequest) (_ *mover.BeginResponse, err error) {
	defer func() { err = s.toWire(ctx, "Begin", err) }()
	a, err := s.check(ctx)
	if err != nil {
		return nil, err
	}
	if a.Session == nil {
		return nil, mayNot("write")
	}
	o := store.ImageOptions{SizeBytes: q.GetSizeBytes(), Anew: q.GetAnew()}
	if q.GetParent() != nil {
		ref, err := parseRoot("begin image", q.GetParent())
		if err != nil {
			return nil, err
		}
		if a.Parent == nil || *a.Parent != ref {
			return nil, mayNot("build on image " + ref.Root.Short())
		}
		o.Parent = &ref
	}
	w, err := a.Session.Image(ctx, a.Image, o)
	if err != nil {
		return nil, err
	}
	c, err := w.Attach(ctx)
	if err != nil {
		return nil, err
	}
	return &mover.BeginResponse{Turn: c.Turn()}, nil
}

func parseRoot(op string, r *mover.Root) (store.ImageRef, error) {
	if len(r.GetRoot()) != len(store.Hash{}) || r.GetSizeBytes() < 0 {
		return store.ImageRef{}, malformed(op, "an image of %d bytes with a root of %d", r.GetSizeBytes(), len(r.GetRoot()))
	}
	return store.ImageRef{Root: store.Hash(r.GetRoot()), SizeBytes: r.GetSizeBytes()}, nil
}

func rootOf(ref store.ImageRef) *mover.Root {
	return &mover.Root{Root: ref.Root[:], SizeBytes: ref.SizeBytes}
}

// Durable implements the service.
func (s *Server) Durable(ctx context.Context, q *mover.DurableRequest) (_ *mover.DurableResponse, err error) {
	defer func() { err = s.toWire(ctx, "Durable", err) }()
	c, err := s.carrier(ctx, q.GetTurn())
	if err != nil {
		return nil, err
	}
	m := &mover.DurableResponse{}
	for r, err := range c.Durable(ctx, q.GetFrom()) {
		if err != nil {
			return nil, err
		}
		if m.More = len(m.Offsets) == listed; m.More {
			break
		}
		m.Offsets, m.Lengths = append(m.Offsets, r.Offset), append(m.Lengths, r.Length)
	}
	return m, nil
}

// listed is how many ranges one message has.
const listed = 4096

// Look implements the service.
func (s *Server) Look(ctx context.Context, q *mover.LookRequest) (_ *mover.LookResponse, err error) {
	defer func() { err = s.toWire(ctx, "Look", err) }()
	c, err := s.carrier(ctx, q.GetTurn())
	if err != nil {
		return nil, err
	}
	n := len(q.GetNumbers())
	if len(q.GetIds()) != n*len(store.Hash{}) {
		return nil, malformed("look up chunks", "%d bytes of ids for %d chunks", len(q.GetIds()), n)
	}
	chunks := make([]carry.Chunk, n)
	for i, number := range q.GetNumbers() {
		chunks[i] = carry.Chunk{Number: number, ID: store.Hash(q.GetIds()[i*32:])}
	}
	if err := c.Look(ctx, chunks); err != nil {
		return nil, err
	}
	answer := &mover.LookResponse{Store: make([]byte, n), Flush: c.Flush()}
	for i := range chunks {
		if chunks[i].Store {
			answer.Store[i] = 1
		}
	}
	return answer, nil
}

// Place implements the service.
func (s *Server) Place(ctx context.Context, q *mover.PlaceRequest) (_ *mover.PlaceResponse, err error) {
	defer func() { err = s.toWire(ctx, "Place", err) }()
	c, err := s.carrier(ctx, q.GetTurn())
	if err != nil {
		return nil, err
	}
	n := len(q.GetNumbers())
	if n == 0 {
		return &mover.PlaceResponse{}, nil
	}
	blocks := len(q.GetPrints()) / n / 16
	if len(q.GetIds()) != n*32 || len(q.GetZeros()) != n || blocks*n*16 != len(q.GetPrints()) || blocks > chunk.MaxBlocks {
		return nil, malformed("place chunks", "%d bytes of ids, %d bitmaps and %d bytes of fingerprints for %d chunks",
			len(q.GetIds()), len(q.GetZeros()), len(q.GetPrints()), n)
	}
	placings := make([]carry.Placing, n)
	for i, number := range q.GetNumbers() {
		prints := make([]chunk.Fingerprint, blocks)
		for b := range prints {
			prints[b] = chunk.Fingerprint(q.GetPrints()[(i*blocks+b)*16:])
		}
		e := pack.Entry{Type: pack.Chunk, ID: store.Hash(q.GetIds()[i*32:]), Zeros: q.GetZeros()[i]}
		placings[i] = carry.Placing{Number: number, Item: pack.Item{Entry: e, Prints: prints}}
	}
	if err := c.Place(ctx, placings); err != nil {
		return nil, err
	}
	answer := &mover.PlaceResponse{Present: make([]uint64, n), Known: make([]byte, n)}
	for i := range placings {
		if placings[i].Known {
			answer.Known[i] = 1
			continue
		}
		answer.Present[i] = placings[i].Present
		for _, ref := range placings[i].Refs {
			answer.Targets = append(answer.Targets, ref.Target[:]...)
			answer.Blocks = append(answer.Blocks, ref.Block)
		}
	}
	return answer, nil
}

// Zero implements the service.
func (s *Server) Zero(ctx context.Context, q *mover.ZeroRequest) (_ *mover.ZeroResponse, err error) {
	defer func() { err = s.toWire(ctx, "Zero", err) }()
	c, err := s.carrier(ctx, q.GetTurn())
	if err == nil {
		err = c.Zero(ctx, q.GetOffset(), q.GetLength())
	}
	return &mover.ZeroResponse{}, err
}

// NewPack implements the service.
func (s *Server) NewPack(ctx context.Context, q *mover.NewPackRequest) (_ *mover.NewPackResponse, err error) {
	defer func() { err = s.toWire(ctx, "NewPack", err) }()
	c, err := s.carrier(ctx, q.GetTurn())
	if err != nil {
		return nil, err
	}
	g, err := c.NewPack(ctx, q.GetKey())
	if err != nil {
		return nil, err
	}
	return &mover.NewPackResponse{Header: pack.AppendHeader(nil, g.Header), Subkey: g.Key[:]}, nil
}

func parseID(op string, p []byte) (seal.ID, error) {
	if len(p) != len(seal.ID{}) {
		return seal.ID{}, malformed(op, "an id of %d bytes", len(p))
	}
	return seal.ID(p), nil
}

// PutPack implements the service.
func (s *Server) PutPack(in grpc.ClientStreamingServer[mover.PutPackRequest, mover.PutPackResponse]) (err error) {
	ctx := in.Context()
	defer func() { err = s.toWire(ctx, "PutPack", err) }()
	first, err := in.Recv()
	if err != nil {
		return err
	}
	c, err := s.carrier(ctx, first.GetTurn())
	if err != nil {
		return err
	}
	id, err := parseID("write pack", first.GetId())
	if err != nil {
		return err
	}
	w, err := c.CreatePack(ctx, id)
	if err != nil {
		return err
	}
	if err := receive(in, first, w); err != nil {
		return errors.Join(err, w.Abort())
	}
	if err := w.Commit(ctx); err != nil {
		return errors.Join(err, w.Abort())
	}
	return in.SendAndClose(&mover.PutPackResponse{})
}

// receive writes the parts of a pack, of which the first is here.
func receive(in grpc.ClientStreamingServer[mover.PutPackRequest, mover.PutPackResponse], part *mover.PutPackRequest, w blob.Writer) error {
	size, at := part.GetSize(), int64(0)
	if size < pack.HeaderBytes || size > pack.MaxPack {
		return malformed("write pack", "a pack of %d bytes", size)
	}
	for {
		p := part.GetData()
		if part.GetOffset() != at || len(p) == 0 || len(p) > maxPart || int64(len(p)) > size-at {
			return malformed("write pack", "%d bytes at %d, after %d of %d", len(p), part.GetOffset(), at, size)
		}
		if crc32.Checksum(p, castagnoli) != part.GetCrc32C() {
			return fault.New(fault.Transient, "write pack", "", "%d bytes at %d are not what was sent", len(p), at)
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		at += int64(len(p))
		var err error
		if part, err = in.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	if at != size {
		return fault.New(fault.Transient, "write pack", "", "%d of %d bytes came", at, size)
	}
	return nil
}

// PackDone implements the service.
func (s *Server) PackDone(ctx context.Context, q *mover.PackDoneRequest) (_ *mover.PackDoneResponse, err error) {
	defer func() { err = s.toWire(ctx, "PackDone", err) }()
	c, err := s.carrier(ctx, q.GetTurn())
	if err != nil {
		return nil, err
	}
	id, err := parseID("index pack", q.GetId())
	if err != nil {
		return nil, err
	}
	return &mover.PackDoneResponse{}, c.PackDone(ctx, id, q.GetSize())
}

// Finish implements the service.
func (s *Server) Finish(ctx context.Context, q *mover.FinishRequest) (_ *mover.FinishResponse, err error) {
	defer func() { err = s.toWire(ctx, "Finish", err) }()
	c, err := s.carrier(ctx, q.GetTurn())
	if err != nil {
		return nil, err
	}
	ref, err := c.Finish(ctx)
	if err != nil {
		return nil, err
	}
	st := c.Stats()
	return &mover.FinishResponse{
		Image: rootOf(ref), BytesWritten: st.BytesWritten, BytesZero: st.BytesZero, BytesNew: st.BytesNew, BytesStored: st.BytesStored,
		Chunks: st.Chunks, ChunksNew: st.ChunksNew, ChunksRefs: st.ChunksRefs,
	}, nil
}

// Leave implements the service.
func (s *Server) Leave(ctx context.Context, q *mover.LeaveRequest) (_ *mover.LeaveResponse, err error) {
	defer func() { err = s.toWire(ctx, "Leave", err) }()
	c, err := s.carrier(ctx, q.GetTurn())
	if err == nil {
		err = c.Close(ctx)
	}
	return &mover.LeaveResponse{}, err
}
