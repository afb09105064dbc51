package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// NewPack gives leave to write one pack. key is the caller's number for it: who asks again with the same gets the same.
// A pack is written once: one that was begun and not finished is given up, never begun anew.
func (c *Carrier) NewPack(_ context.Context, key uint64) (PackGrant, error) {
	if err := c.enter("begin pack"); err != nil {
		return PackGrant{}, err
	}
	defer c.leave()
	r := c.w.s.r
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.grants {
		if g.key == key {
			return r.packGrant(g.head)
		}
	}
	if len(c.grants) >= maxGrants {
		return PackGrant{}, tooMany("begin pack", len(c.grants)+1, maxGrants)
	}
	head := pack.Header{Kind: pack.Data, Cipher: r.o.Cipher, Repository: r.id, ID: seal.NewID(), KeyID: r.keys.ID, Salt: seal.NewSalt()}
	r.withheld.add(head.ID)
	c.grants[head.ID] = &grant{key: key, head: head}
	return r.packGrant(head)
}

func (r *Repository) packGrant(head pack.Header) (PackGrant, error) {
	key, err := head.Subkey(r.keys.Data)
	if err != nil {
		return PackGrant{}, fault.Wrap(fault.Internal, "begin pack", pack.Name(head.ID), err)
	}
	return PackGrant{Header: head, Key: key, Blocks: r.blocks}, nil
}

// find returns a grant; c.mu is held.
func (c *Carrier) find(op string, id seal.ID) (*grant, error) {
	if g := c.grants[id]; g != nil {
		return g, nil
	}
	return nil, fault.New(fault.Denied, op, pack.Name(id), "this mover was not given leave to write it").Explain(
		"A mover may write only the packs that it was given leave for, in its own turn.", "Look at the audit log: a mover did more than its task needs.")
}

// upload is a pack that comes through this process.
type upload struct {
	c *Carrier
	g *grant

	mu   sync.Mutex
	w    blob.Writer
	size int64
	err  error
}

// CreatePack starts to write a pack that leave was given for. Another one for the same pack ends this one. Exists: all of
// it is here.
func (c *Carrier) CreatePack(ctx context.Context, id seal.ID) (blob.Writer, error) {
	if err := c.enter("write pack"); err != nil {
		return nil, err
	}
	defer c.leave()
	c.mu.Lock()
	g, err := c.find("write pack", id)
	_, done := c.done[id]
	if done || err == nil && g.stored {
		err = fault.New(fault.Exists, "write pack", pack.Name(id), "it is here")
	}
	if err == nil && g.busy {
		err = fault.New(fault.Transient, "write pack", pack.Name(id), "it is being looked at")
	}
	if err != nil {
		c.mu.Unlock()
		return nil, err
	}
	u := &upload{c: c, g: g}
	old := g.upload
	g.upload = u
	c.mu.Unlock()
	if old != nil {
		_ = old.Abort()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return nil, u.err
	}
	u.w, err = c.w.s.r.b.Create(ctx, pack.Name(id))
	return u, err
}

// Write implements blob.Writer.
func (u *upload) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return 0, u.err
	}
	if most := u.c.w.s.r.carriedPack(); u.size+int64(len(p)) > most {
		return 0, fault.New(fault.Invalid, "write pack", pack.Name(u.g.head.ID), "it grows beyond %d bytes", most)
	}
	u.size += int64(len(p))
	return u.w.Write(p)
}

// Commit implements blob.Writer.
func (u *upload) Commit(ctx context.Context) error {
	if err := u.c.enter("write pack"); err != nil {
		return err
	}
	defer u.c.leave()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return u.err
	}
	if err := u.w.Commit(ctx); err != nil {
		return err
	}
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	u.g.stored = true
	return nil
}

// Abort implements blob.Writer.
func (u *upload) Abort() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return nil
	}
	u.err = fault.New(fault.Canceled, "write pack", pack.Name(u.g.head.ID), "it was given up")
	if u.w == nil {
		return nil
	}
	return u.w.Abort()
}

// PackDone makes known a pack that was written, here or on the backend directly. What is in it is read from the backend:
// it must be what was granted, and hold nothing but chunks that were asked for, stored as was decided.
func (c *Carrier) PackDone(ctx context.Context, id seal.ID, size int64) error {
	if err := c.enter("index pack"); err != nil {
		return err
	}
	defer c.leave()
	c.mu.Lock()
	_, done := c.done[id]
	g, err := c.find("index pack", id)
	if err == nil && g.busy {
		err = fault.New(fault.Transient, "index pack", pack.Name(id), "it is being looked at")
	}
	if done {
		err = nil
	}
	if err == nil && !done {
		g.busy = true
	}
	c.mu.Unlock()
	if done || err != nil {
		return err
	}
	c.taking.Lock()
	d, err := c.inspect(ctx, g, size)
	if err == nil {
		err = c.take(ctx, g, d)
	}
	c.taking.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	g.busy = false
	return err
}

// inspect reads the directory of a pack that a mover wrote. One that is not what was asked for is removed.
func (c *Carrier) inspect(ctx context.Context, g *grant, size int64) (*pack.Directory, error) {
	r, id := c.w.s.r, g.head.ID
	info, err := r.b.Stat(ctx, pack.Name(id))
	if err != nil {
		return nil, err
	}
	if info.Size != size {
		return nil, fault.New(fault.Denied, "index pack", pack.Name(id), "it has %d bytes, not %d", info.Size, size)
	}
	if size > r.carriedPack() {
		return nil, c.refuse(ctx, g, fmt.Errorf("it has %d bytes", size))
	}
	c.mu.Lock()
	most := len(c.claims)
	c.mu.Unlock()
	rd, err := pack.OpenBounded(ctx, r.b, r.id, id, size, r.secrets, most)
	var prints []chunk.Fingerprint
	if err == nil {
		prints, err = rd.Prints(ctx)
	}
	if f, ok := errors.AsType[*fault.Error](err); err != nil && (ok && f.Kind != fault.Corrupt || ctx.Err() != nil) {
		return nil, err // of reading, and says nothing of the pack
	}
	var d *pack.Directory
	if err == nil {
		d = rd.Directory()
		err = c.agrees(g, d, prints)
	}
	if err != nil {
		return nil, c.refuse(ctx, g, err)
	}
	d.Prints = prints
	return d, nil
}

// carriedPack is how long a pack of a mover may be: full, with a frame of each of its goroutines beyond that.
func (r *Repository) carriedPack() int64 { return min(pack.MaxPack, 2*int64(r.o.packBytes)+64<<20) }

// refuse removes a pack that is not what was asked for.
func (c *Carrier) refuse(ctx context.Context, g *grant, cause error) error {
	id := g.head.ID
	c.w.s.r.log.Warn("mover wrote a pack that was not asked for; it is removed", "pack", pack.Name(id), "err", cause)
	if g.upload != nil {
		_ = g.upload.Abort() // or it could put the pack back
	}
	denied := fault.Wrap(fault.Denied, "index pack", pack.Name(id), cause).Explain(
		"What the mover wrote is not what it was asked to store. It was removed again.",
		"If this happens again, take the mover out of service and look at its machine.")
	c.mu.Lock()
	delete(c.grants, id)
	c.mu.Unlock()
	return errors.Join(denied, c.remove(context.WithoutCancel(ctx), id))
}

// agrees compares a pack with its grant and with what was decided.
func (c *Carrier) agrees(g *grant, d *pack.Directory, prints []chunk.Fingerprint) error {
	blocks := c.w.s.r.blocks
	if d.Header != g.head || d.Blocks != blocks {
		return errors.New("its header is not the one it was given")
	}
	if err := d.Tiled(pack.MaxFrame); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := make(map[Hash]struct{}, len(d.Entries))
	for i := range d.Entries {
		e := &d.Entries[i]
		cl := c.claims[e.ID]
		if _, twice := seen[e.ID]; twice || cl == nil || cl.item == nil {
			return errors.New("it holds a chunk that nobody asked for: " + e.ID.Short())
		}
		seen[e.ID] = struct{}{}
		if e.Present != cl.item.Present || e.Zeros != cl.item.Zeros || !slices.Equal(e.Refs, cl.item.Refs) {
			return errors.New("it holds a chunk in another way than was decided: " + e.ID.Short())
		}
		if !slices.Equal(prints[i*blocks:(i+1)*blocks], cl.item.Prints) {
			return errors.New("it holds other fingerprints than were given: " + e.ID.Short())
		}
	}
	return nil
}

// take makes a pack known, and the chunks in it part of the image.
func (c *Carrier) take(ctx context.Context, g *grant, d *pack.Directory) error {
	s := c.w.s
	s.pin([]seal.ID{g.head.ID}, true)
	fault.Point("store.carrier.pack-durable")
	if err := s.indexPack(d); err != nil {
		return s.fail(err)
	}
	s.r.withheld.taken(g.head.ID)
	fault.Point("store.carrier.pack-indexed")
	c.w.stored.Add(d.Size())
	for i := range d.Entries {
		c.w.countNew(&d.Entries[i])
	}
	c.mu.Lock()
	delete(c.grants, g.head.ID)
	c.done[g.head.ID] = struct{}{}
	c.mu.Unlock()
	ids := make([]Hash, len(d.Entries))
	for i := range d.Entries {
		ids[i] = d.Entries[i].ID
	}
	if err := c.fulfil(context.WithoutCancel(ctx), ids...); err != nil {
		return err
	}
	return c.w.checkpoint(ctx)
}

// dropGrants removes what was written of packs that nobody will finish. The carrier has ended.
func (c *Carrier) dropGrants(ctx context.Context) error {
	var errs []error
	for id, g := range c.grants {
		if g.upload != nil {
			errs = append(errs, g.upload.Abort())
		}
		errs = append(errs, c.remove(ctx, id))
		delete(c.grants, id)
	}
	return errors.Join(errs...)
}

// remove removes a pack that is withheld: it was not asked for, or nobody will say that it is done. One that the index
// knows nevertheless, of a taking that failed half-way, stays: others may rely on it.
func (c *Carrier) remove(ctx context.Context, id seal.ID) error {
	r := c.w.s.r
	if _, known := r.idx.Pack(id); known {
		r.withheld.taken(id)
		return nil
	}
	if err := r.fence(ctx); err != nil {
		return err
	}
	if err := r.b.Delete(ctx, pack.Name(id)); err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	r.withheld.removed(id)
	return nil
}
