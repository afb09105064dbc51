package store

import (
	"context"
	"errors"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// move writes the needed entries of packs into a new one.
type move struct {
	c    *compaction
	kind pack.Kind
	w    *pack.Writer // made when there is something to write
	rest frame        // of entries of frames that are not needed as a whole
	err  error        // of writing, final
	to   *pack.Directory

	prints []chunk.Fingerprint // read back from the new pack when they are needed
}

// pack moves what is needed of one pack. Its error is one of reading, unless m.err is set.
func (m *move) pack(ctx context.Context, p index.Pack) error {
	r := m.c.r
	rd, err := r.openPack(ctx, p.ID, p.Size)
	if err != nil {
		return err
	}
	var prints []chunk.Fingerprint
	if m.kind == pack.Data {
		err := r.again(ctx, pack.Name(p.ID), func() (err error) {
			prints, err = rd.Prints(ctx)
			return err
		})
		if err != nil {
			return r.packError(p.ID, err)
		}
	}
	frames := make([][]pack.Item, len(rd.Directory().Frames))
	total := make([]int, len(frames))
	for slot := range rd.Directory().Entries {
		e := &rd.Directory().Entries[slot]
		total[e.Frame]++
		if !m.c.m.packs[p.ID].has(uint32(slot)) {
			continue
		}
		if there, err := m.c.elsewhere(ctx, p.ID, e); err != nil {
			return err
		} else if there {
			continue
		}
		item := pack.Item{Entry: *e}
		if prints != nil {
			item.Prints = prints[slot*r.blocks : (slot+1)*r.blocks]
		}
		frames[e.Frame] = append(frames[e.Frame], item)
	}
	for number, items := range frames {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case len(items) == 0:
		case len(items) == total[number]:
			err = m.copyFrame(ctx, rd, uint32(number), items)
		default:
			err = m.takeApart(ctx, rd, uint32(number), items)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyFrame takes over a frame as it is.
func (m *move) copyFrame(ctx context.Context, rd *pack.Reader, number uint32, items []pack.Item) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	id := rd.Directory().Header.ID
	var writeErr error
	err := m.c.r.again(ctx, pack.Name(id), func() (err error) {
		_, err, writeErr = m.w.CopyFrame(ctx, rd, number, items)
		return err
	})
	if writeErr != nil {
		return m.fail(writeErr)
	}
	if err != nil {
		return m.c.r.packError(id, err)
	}
	return nil
}

// takeApart puts the needed entries of a frame together with those of others.
func (m *move) takeApart(ctx context.Context, rd *pack.Reader, number uint32, items []pack.Item) error {
	plain, err := m.c.r.frame(ctx, rd, number)
	if err != nil {
		return err
	}
	for _, item := range items {
		if len(m.rest.items) > 0 && len(m.rest.plain)+int(item.Length) > frameTarget {
			if err := m.flush(ctx); err != nil {
				return err
			}
		}
		part := plain[item.Offset : item.Offset+item.Length]
		item.Offset = uint32(len(m.rest.plain))
		m.rest.plain = append(m.rest.plain, part...)
		m.rest.items = append(m.rest.items, item)
	}
	return nil
}

func (m *move) flush(ctx context.Context) error {
	if len(m.rest.items) == 0 {
		return nil
	}
	if err := m.begin(ctx); err != nil {
		return err
	}
	if _, err := m.w.AddFrame(m.rest.plain, m.rest.items); err != nil {
		return m.fail(err)
	}
	m.rest.plain, m.rest.items = m.rest.plain[:0], nil
	return nil
}

func (m *move) begin(ctx context.Context) error {
	if m.w != nil {
		return nil
	}
	r := m.c.r
	id := seal.NewID()
	out, err := r.b.Create(ctx, pack.Name(id))
	if err != nil {
		return m.fail(err)
	}
	head := pack.Header{Kind: m.kind, Cipher: r.o.Cipher, Repository: r.id, ID: id, KeyID: r.keys.ID, Salt: seal.NewSalt()}
	if m.w, err = pack.NewWriter(out, head, r.keys.Data, r.blocks, r.coder(), r.bufs); err != nil {
		return m.fail(errors.Join(err, out.Abort()))
	}
	fault.Point("store.compact.pack-created")
	return nil
}

func (m *move) fail(err error) error {
	m.err = fault.Context("rewrite packs", "", err)
	return m.err
}

func (m *move) abort() error {
	if m.w == nil || m.to != nil {
		return nil
	}
	return m.w.Abort()
}

// finish makes the new pack durable, then known.
func (m *move) finish(ctx context.Context) error {
	if err := m.flush(ctx); err != nil {
		return errors.Join(err, m.abort())
	}
	if m.w == nil {
		return nil
	}
	d, err := m.w.Finish(ctx)
	if err != nil {
		return errors.Join(m.fail(err), m.abort())
	}
	fault.Point("store.compact.pack-durable")
	m.to = d
	if err := m.c.r.idx.Add(d); err != nil {
		return m.undo(ctx, err)
	}
	m.c.report.BytesWritten += d.Size()
	return nil
}

// undo removes a new pack that the index did not take. That its disk is full says nothing of the repository's.
func (m *move) undo(ctx context.Context, cause error) error {
	name := pack.Name(m.to.Header.ID)
	err := error(fault.New(fault.Internal, "index pack", name, "%v", cause).Explain(
		"The index did not take a pack that was rewritten, so it was removed again; the packs it is made of stay.",
		"Look at the folder of the index: its disk may be full or failing."))
	ctx = context.WithoutCancel(ctx)
	if fenceErr := m.c.r.fence(ctx); fenceErr != nil {
		return errors.Join(err, fenceErr) // the next owner may have come to rely on it
	}
	return errors.Join(err, m.c.r.b.Delete(ctx, name))
}

// prove reads what was written: each object by its id, or, if what it refers to is gone, its blocks by their fingerprints.
func (m *move) prove(ctx context.Context) error {
	if m.to == nil {
		return nil
	}
	r := m.c.r
	if d, err := r.pack(ctx, m.to.Header.ID); err != nil {
		return err
	} else if !slices.EqualFunc(d.Directory().Entries, m.to.Entries, sameEntry) {
		return fault.New(fault.Corrupt, "rewrite packs", pack.Name(m.to.Header.ID), "the new pack does not hold what was written to it")
	}
	for slot := range m.to.Entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := &m.to.Entries[slot]
		at := index.Location{Pack: m.to.Header.ID, Slot: uint32(slot), Refs: len(e.Refs) > 0}
		err := r.proveCopy(ctx, e.ID, at)
		if err != nil && damaged(err) && at.Refs {
			err = m.proveBlocks(ctx, at)
		}
		if err != nil {
			return fault.Context("rewrite packs", pack.Name(m.to.Header.ID), err)
		}
	}
	return nil
}

// proveBlocks is for an entry that cannot be put together: that must be so because what it refers to is gone.
func (m *move) proveBlocks(ctx context.Context, at index.Location) error {
	if _, ok, err := m.c.r.needs(ctx, at); err != nil {
		return err
	} else if ok {
		return fault.New(fault.Corrupt, "rewrite packs", pack.Name(at.Pack), "entry %d cannot be put together", at.Slot)
	}
	rd, err := m.c.r.pack(ctx, at.Pack)
	if err == nil && m.prints == nil {
		m.prints, err = rd.Prints(ctx)
	}
	if err != nil {
		return err
	}
	n := m.c.r.blocks
	return m.c.r.provePresent(ctx, rd, &rd.Directory().Entries[at.Slot], m.prints[int(at.Slot)*n:int(at.Slot+1)*n])
}

func sameEntry(a, b pack.Entry) bool {
	return a.Type == b.Type && a.ID == b.ID && a.Frame == b.Frame && a.Offset == b.Offset && a.Length == b.Length &&
		a.Present == b.Present && a.Zeros == b.Zeros && slices.Equal(a.Refs, b.Refs)
}
