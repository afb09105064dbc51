package remote

import (
	"context"
	"hash/crc32"
	"slices"

	"google.golang.org/grpc"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/pack"
)

// image returns the reader of an image that the caller's ticket names. It is opened when it is not open: after a restart
// a mover goes on without noticing.
func (s *Server) image(ctx context.Context, root *mover.Root) (*store.ImageReader, error) {
	a, err := s.check(ctx)
	if err != nil {
		return nil, err
	}
	ref, err := parseRoot("read image", root)
	if err != nil {
		return nil, err
	}
	if a.Repository == nil || !slices.Contains(a.Images, ref) {
		return nil, mayNot("read image " + ref.Root.Short())
	}
	ticket, opener, err := ticketOf(ctx)
	if err != nil {
		return nil, err
	}
	k := reading{ticket, opener, ref}
	s.mu.Lock()
	r := s.reading[k]
	s.mu.Unlock()
	if r != nil {
		return r, nil
	}
	if r, err = a.Repository.OpenImage(ctx, ref); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if other := s.reading[k]; other != nil {
		s.mu.Unlock()
		_ = r.Close()
		return other, nil
	}
	s.reading[k] = r
	s.mu.Unlock()
	if _, err := s.check(ctx); err != nil { // the ticket has ended meanwhile, and End may have been called before
		s.End(ticket)
		return nil, err
	}
	return r, nil
}

// OpenImage implements the service.
func (s *Server) OpenImage(ctx context.Context, q *mover.OpenImageRequest) (_ *mover.OpenImageResponse, err error) {
	defer func() { err = s.toWire(ctx, "OpenImage", err) }()
	_, err = s.image(ctx, q.GetImage())
	return &mover.OpenImageResponse{}, err
}

// CloseImage implements the service.
func (s *Server) CloseImage(ctx context.Context, q *mover.CloseImageRequest) (_ *mover.CloseImageResponse, err error) {
	defer func() { err = s.toWire(ctx, "CloseImage", err) }()
	ticket, opener, err := ticketOf(ctx)
	if err != nil {
		return nil, err
	}
	ref, err := parseRoot("close image", q.GetImage())
	if err != nil {
		return nil, err
	}
	k := reading{ticket, opener, ref}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.reading[k]; r != nil {
		_ = r.Close()
		delete(s.reading, k)
	}
	return &mover.CloseImageResponse{}, nil
}

// Extents implements the service.
func (s *Server) Extents(ctx context.Context, q *mover.ExtentsRequest) (_ *mover.ExtentsResponse, err error) {
	defer func() { err = s.toWire(ctx, "Extents", err) }()
	i, err := s.image(ctx, q.GetImage())
	if err != nil {
		return nil, err
	}
	list, more, err := i.ExtentsFrom(ctx, q.GetFirst(), listed)
	if err != nil {
		return nil, err
	}
	m := &mover.ExtentsResponse{More: more}
	for _, e := range list {
		m.Lengths, m.Zero = append(m.Lengths, e.Length), append(m.Zero, e.Zero)
	}
	return m, nil
}

// Plan implements the service.
func (s *Server) Plan(ctx context.Context, q *mover.PlanRequest) (_ *mover.PlanResponse, err error) {
	defer func() { err = s.toWire(ctx, "Plan", err) }()
	i, err := s.image(ctx, q.GetImage())
	if err != nil {
		return nil, err
	}
	plan, err := i.Plan(ctx, q.GetFirst(), q.GetCount())
	if err != nil {
		return nil, err
	}
	m := &mover.PlanResponse{End: plan.End}
	for n := range plan.Packs {
		p := &plan.Packs[n]
		out := &mover.PlannedPack{Header: pack.AppendHeader(nil, p.Header), Subkey: p.Key[:]}
		for _, f := range p.Frames {
			leave, err := i.Leave(p.Header.ID, f.Info)
			if err != nil {
				return nil, err
			}
			out.Frames = append(out.Frames, &mover.PlannedFrame{
				Number: f.Number, Offset: f.Info.Offset, Stored: f.Info.Stored, Plain: f.Info.Plain, Codec: uint32(f.Info.Codec),
				Proof: leave, Entries: uint32(f.Entries),
			})
		}
		m.Packs = append(m.Packs, out)
	}
	for n := range plan.Chunks {
		c := &plan.Chunks[n]
		out := &mover.PlannedChunk{Numbers: c.Numbers, Id: c.ID[:], Zeros: c.Zeros}
		for _, part := range c.Parts {
			out.Parts = append(out.Parts, &mover.PlannedPart{
				Pack: uint32(part.Pack), Frame: uint32(part.Frame), Offset: part.Offset, Length: part.Length, Takes: part.Takes,
			})
		}
		m.Chunks = append(m.Chunks, out)
	}
	return m, nil
}

// maxFrames is how many frames one ReadFrames names.
const maxFrames = 1024

// ReadFrames implements the service.
func (s *Server) ReadFrames(q *mover.ReadFramesRequest, out grpc.ServerStreamingServer[mover.ReadFramesResponse]) (err error) {
	ctx := out.Context()
	defer func() { err = s.toWire(ctx, "ReadFrames", err) }()
	i, err := s.image(ctx, q.GetImage())
	if err != nil {
		return err
	}
	id, err := parseID("read pack", q.GetPack())
	if err != nil {
		return err
	}
	if len(q.GetFrames()) > maxFrames {
		return malformed("read pack", "%d frames at once", len(q.GetFrames()))
	}
	var buf []byte
	for _, f := range q.GetFrames() {
		if f.GetStored() > pack.MaxFrame+64 {
			return malformed("read pack", "a frame of %d bytes", f.GetStored())
		}
		buf = slices.Grow(buf[:0], int(f.GetStored()))[:f.GetStored()]
		if err := i.ReadFrame(ctx, id, f.GetOffset(), f.GetProof(), buf); err != nil {
			return err
		}
		for p := range slices.Chunk(buf, partBytes) {
			if err := out.Send(&mover.ReadFramesResponse{Data: p, Crc32C: crc32.Checksum(p, castagnoli)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// ReadChunk implements the service.
func (s *Server) ReadChunk(ctx context.Context, q *mover.ReadChunkRequest) (_ *mover.ReadChunkResponse, err error) {
	defer func() { err = s.toWire(ctx, "ReadChunk", err) }()
	i, err := s.image(ctx, q.GetImage())
	if err != nil {
		return nil, err
	}
	p := make([]byte, i.ChunkBytes())
	if err := i.ReadChunk(ctx, q.GetNumber(), p); err != nil {
		return nil, err
	}
	return &mover.ReadChunkResponse{Data: p}, nil
}
