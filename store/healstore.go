package store

import (
	"context"
	"errors"
	"math/bits"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
)

// mend looks for an object whose copies are all in damaged packs or missing, and stores it anew.
func (h *healing) mend(ctx context.Context, typ pack.EntryType, id Hash) ([]byte, bool, error) {
	if ok, tried := h.found[id]; tried && typ == pack.Chunk {
		return nil, ok, nil
	}
	p, err := h.fetch(ctx, typ, id)
	if err != nil {
		return nil, false, err
	}
	h.found[id] = p != nil
	if p == nil {
		h.report.Remaining++
		h.hidden = h.hidden || typ == pack.Node || typ == pack.Image
		return nil, false, nil
	}
	if h.s == nil {
		return p, true, nil
	}
	if typ == pack.Chunk {
		err = h.storeChunk(ctx, id, p)
	} else {
		_, err = h.s.putObject(ctx, typ, p)
	}
	return p, err == nil, err
}

// fetch returns an object proven by its id, or nil; what it returns is good until the next call.
func (h *healing) fetch(ctx context.Context, typ pack.EntryType, id Hash) ([]byte, error) {
	p, err := h.read(ctx, h.r, typ, id)
	if p != nil || err != nil {
		h.report.Moved.count(h.r, p)
		return p, err
	}
	for i, from := range h.o.From {
		p, err := h.read(ctx, from, typ, id)
		if err != nil {
			return nil, err
		}
		if p == nil {
			continue
		}
		for len(h.report.Healed) <= i {
			h.report.Healed = append(h.report.Healed, HealSource{Repository: h.o.From[len(h.report.Healed)].b.Location()})
		}
		h.report.Healed[i].count(from, p)
		return p, nil
	}
	return nil, nil
}

func (s *HealSource) count(r *Repository, p []byte) {
	if p == nil {
		return
	}
	s.Repository = r.b.Location()
	s.Objects++
	s.Bytes += int64(len(p))
}

// read returns an object of a repository, nil if it does not have it in good shape.
func (h *healing) read(ctx context.Context, from *Repository, typ pack.EntryType, id Hash) (p []byte, err error) {
	if typ == pack.Chunk {
		if h.buf == nil {
			h.buf = make([]byte, h.r.config.ChunkBytes)
		}
		p, err = h.buf, from.chunk(ctx, id, h.buf)
	} else {
		p, err = from.object(ctx, typ, id)
	}
	if err != nil && !damaged(err) {
		return nil, err
	}
	if err != nil {
		return nil, nil
	}
	return p, nil
}

// storeChunk stores a chunk without references.
func (h *healing) storeChunk(ctx context.Context, id Hash, p []byte) error {
	prints := make([]chunk.Fingerprint, h.r.blocks)
	zeros := h.r.hasher.Prints(p, prints)
	if h.r.hasher.Chunk(p) != id {
		return fault.New(fault.Internal, "heal", id.Short(), "a chunk changed while it was stored")
	}
	present := h.r.allBlocks() &^ zeros
	n := bits.OnesCount64(present) * chunk.BlockBytes
	if len(h.data.plain)+n > frameTarget {
		if err := h.flushData(ctx); err != nil {
			return err
		}
	}
	h.data.items = append(h.data.items, pack.Item{Prints: prints, Entry: pack.Entry{
		Type: pack.Chunk, ID: id, Offset: uint32(len(h.data.plain)), Length: uint32(n), Present: present, Zeros: zeros,
	}})
	for i := range h.r.blocks {
		if present&(1<<i) != 0 {
			h.data.plain = append(h.data.plain, p[i*chunk.BlockBytes:(i+1)*chunk.BlockBytes]...)
		}
	}
	return nil
}

func (h *healing) flushData(ctx context.Context) error {
	if len(h.data.items) == 0 {
		return nil
	}
	_, err := h.s.storeFrame(ctx, pack.Data, &h.data)
	h.data.plain, h.data.items = h.data.plain[:0], nil
	return err
}

// settle makes what was stored durable and known, and reads it back.
func (h *healing) settle(ctx context.Context) error {
	if h.s == nil {
		return nil
	}
	err := errors.Join(h.flushData(ctx), h.s.storeMeta(ctx))
	if err != nil {
		return err
	}
	done, err := h.s.flush(ctx, pack.Data, pack.Meta)
	if err != nil {
		return err
	}
	fault.Point("store.heal.packs-durable")
	for _, d := range done {
		if err := h.s.indexPack(d); err != nil {
			return err
		}
	}
	pr := &prover{h.r, newMeter(h.r.b, 0)}
	for _, p := range h.r.idx.Packs() {
		h.s.mu.Lock()
		_, ours := h.s.pins[p.ID]
		h.s.mu.Unlock()
		if h.before[p.ID] || !ours {
			continue
		}
		st, err := pr.pack(ctx, p.ID, p.Size)
		if err != nil {
			return err
		}
		if st.cause != nil {
			h.r.suspect(p.ID, st.cause)
			return fault.Wrap(fault.Corrupt, "read back", pack.Name(p.ID), st.cause)
		}
	}
	return nil
}
