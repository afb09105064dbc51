package store

import (
	"context"
	"encoding/binary"
	"iter"
	"sync"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/carry"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// Limits of what a carrier has under way. From the soft ones on it is asked to finish its pack.
const (
	softClaims  = 1 << 14
	hardClaims  = 1 << 16
	softWaiting = 1 << 16
	hardWaiting = 1 << 18
	maxGrants   = 8
	maxAsk      = 1 << 12 // chunks in one call
)

// Carrier is the owner's half of writing an image whose content another process carries: what that process may do is what
// the methods here do. It is given no data key, indexes nothing that it was not asked for, and removes nothing. Its
// methods may be called from several goroutines; a call may be repeated when its answer was lost.
//
// A chunk is in the image once it lies in a durable, indexed pack, not before: so whatever happens to the other process,
// what Durable names is there, and all else is as if it had never been sent.
type Carrier struct {
	w    *ImageWriter
	turn uint64

	// life is held shared by each call, behind the session's; exclusively by what ends the carrier or its image.
	life sync.RWMutex
	over bool

	// taking is held while a pack is compared with the claims and taken: each claim is satisfied once.
	taking sync.Mutex

	mu      sync.Mutex
	claims  map[Hash]*claim
	waiting int // places of claims
	grants  map[seal.ID]*grant
	done    map[seal.ID]struct{}
}

// claim is a chunk that the carrier was asked to store.
type claim struct {
	numbers []int64    // where the image has it; the first is who was asked
	item    *pack.Item // how it is to be stored, once that is decided
}

// grant is a pack that the carrier may write.
type grant struct {
	key    uint64 // of the call that asked for it
	head   pack.Header
	upload *upload // through this process, the last one
	stored bool    // through this process
	busy   bool
}

// PackGrant is the leave to write one pack.
type PackGrant struct {
	Header pack.Header
	Key    seal.Subkey
	Blocks int // per chunk
}

// Attach makes the caller the one who carries the content of an image; who did so before is refused from now on, and
// what it had not made durable is owed anew.
func (w *ImageWriter) Attach(ctx context.Context) (*Carrier, error) {
	if err := w.s.enter(); err != nil {
		return nil, err
	}
	defer w.s.leave()
	turn := seal.NewID() // random, so that none of a process before is taken for one of this
	c := &Carrier{w: w, turn: binary.LittleEndian.Uint64(turn[:]), claims: map[Hash]*claim{}, grants: map[seal.ID]*grant{}, done: map[seal.ID]struct{}{}}
	w.mu.Lock()
	old := w.carrier
	w.carrier = c
	w.mu.Unlock()
	w.carried()
	w.s.mu.Lock()
	w.s.carriers[c] = struct{}{}
	w.s.mu.Unlock()
	if old != nil {
		return c, old.end(ctx)
	}
	return c, nil
}

// enter lets a call in. leave must follow.
func (c *Carrier) enter(op string) error {
	if err := c.w.s.enter(); err != nil {
		if c.w.s.ended() {
			return takenOver(op, c.w.s.o.Series)
		}
		return err
	}
	c.life.RLock()
	if !c.over {
		return nil
	}
	c.leave()
	return takenOver(op, c.w.s.o.Series)
}

func (c *Carrier) leave() {
	c.life.RUnlock()
	c.w.s.leave()
}

// Look implements carry.Decider. More than a few thousand chunks at once are refused.
func (c *Carrier) Look(ctx context.Context, chunks []carry.Chunk) error {
	if err := c.enter("look up chunks"); err != nil {
		return err
	}
	defer c.leave()
	if len(chunks) > maxAsk {
		return tooMany("look up chunks", len(chunks), maxAsk)
	}
	if err := c.w.check("write image", 0, 0); err != nil {
		return err
	}
	for i := range chunks {
		if err := ctx.Err(); err != nil {
			return err
		}
		// What has begun is done: a caller that goes away must not leave half of it to the session.
		if err := c.look(context.WithoutCancel(ctx), &chunks[i]); err != nil {
			return err
		}
	}
	return nil
}

func tooMany(op string, n, limit int) error {
	return fault.New(fault.Invalid, op, "", "%d at once, of at most %d", n, limit)
}

func (c *Carrier) look(ctx context.Context, k *carry.Chunk) error {
	k.Store = false
	if err := c.inImage(k.Number); err != nil {
		return err
	}
	if c.w.isThere(k.Number) {
		return nil // asked before, and the answer was lost
	}
	if k.ID.IsZero() {
		c.w.zero.Add(int64(c.w.ChunkBytes()))
		return c.w.settle(ctx, k.Number, k.ID)
	}
	var last parentOf
	same, err := c.w.inherited(ctx, k, &last)
	if err != nil {
		return err
	}
	if same {
		return c.w.settle(ctx, k.Number, k.ID)
	}
	return c.claim(k)
}

func (c *Carrier) inImage(number int64) error {
	if number >= 0 && number < c.w.chunks {
		return nil
	}
	return fault.New(fault.Invalid, "write image", c.w.s.o.Series, "chunk %d of an image of %d", number, c.w.chunks)
}

// claim asks for a chunk. Whether it is stored elsewhere is said when it is placed, to who has shown to have it. Whoever
// finishes packs, as Flush says, is never refused.
func (c *Carrier) claim(k *carry.Chunk) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := c.claims[k.ID]
	k.Store = cl == nil || cl.numbers[0] == k.Number
	switch {
	case cl != nil && k.Store:
		return nil // asked before, and the answer was lost
	case len(c.claims) >= hardClaims && cl == nil, c.waiting >= hardWaiting:
		k.Store = false
		return fault.New(fault.Transient, "write image", c.w.s.o.Series, "%d chunks that were asked for have not come", c.waiting)
	case cl == nil:
		c.claims[k.ID] = &claim{numbers: []int64{k.Number}}
	default:
		cl.numbers = append(cl.numbers, k.Number)
	}
	c.waiting++
	return nil
}

// fulfil puts chunks that are stored into the image.
func (c *Carrier) fulfil(ctx context.Context, ids ...Hash) error {
	numbers := make([][]int64, len(ids))
	c.mu.Lock()
	for i, id := range ids {
		if cl := c.claims[id]; cl != nil { // the same call twice at once
			numbers[i] = cl.numbers
			c.waiting -= len(cl.numbers)
			delete(c.claims, id)
		}
	}
	c.mu.Unlock()
	for i, id := range ids {
		for _, n := range numbers[i] {
			if err := c.w.settle(ctx, n, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// Flush reports whether the carrier should finish the pack it fills before it asks for more.
func (c *Carrier) Flush() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.claims) >= softClaims || c.waiting >= softWaiting
}

// Place implements carry.Decider.
func (c *Carrier) Place(ctx context.Context, placings []carry.Placing) error {
	if err := c.enter("place chunks"); err != nil {
		return err
	}
	defer c.leave()
	if len(placings) > maxAsk {
		return tooMany("place chunks", len(placings), maxAsk)
	}
	var t trail
	for i := range placings {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.place(context.WithoutCancel(ctx), &t, &placings[i]); err != nil {
			return err
		}
	}
	return nil
}

func (c *Carrier) place(ctx context.Context, t *trail, p *carry.Placing) error {
	if err := c.inImage(p.Number); err != nil {
		return err
	}
	c.mu.Lock()
	cl := c.claims[p.ID]
	var item *pack.Item
	asked := cl != nil && cl.numbers[0] == p.Number
	if asked {
		item = cl.item
	}
	c.mu.Unlock()
	switch {
	case !asked && c.w.isThere(p.Number): // said before, and the answer was lost
		p.Known = true
		return nil
	case !asked:
		return fault.New(fault.Denied, "place chunk", p.ID.Short(), "nobody asked for it")
	case item != nil:
		p.Item = *item
		return nil
	}
	all := c.w.s.r.allBlocks()
	if p.Zeros&^all != 0 || p.Zeros == all || len(p.Prints) != c.w.s.r.blocks {
		return fault.New(fault.Invalid, "place chunk", p.ID.Short(), "zero blocks %x and %d fingerprints, of %d blocks", p.Zeros, len(p.Prints), c.w.s.r.blocks)
	}
	for i := range p.Prints {
		if (p.Prints[i] == chunk.Fingerprint{}) != (p.Zeros&(1<<i) != 0) {
			return fault.New(fault.Invalid, "place chunk", p.ID.Short(), "block %d is zero and is not", i)
		}
	}
	p.Entry = pack.Entry{Type: pack.Chunk, ID: p.ID, Zeros: p.Zeros, Present: all &^ p.Zeros}
	known, err := c.w.possessed(ctx, t, p)
	if err != nil {
		return err
	}
	if p.Known = known; known {
		return c.fulfil(ctx, p.ID)
	}
	if err := c.w.place(ctx, p, parentOf{number: -1}); err != nil {
		return err
	}
	p.SetLength()
	decided := p.Item
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl.item != nil { // the same call twice at once: one answer counts
		p.Item = *cl.item
		return nil
	}
	cl.item = &decided
	return nil
}

var _ carry.Decider = (*Carrier)(nil)

// Zero says that a range is all zeros.
func (c *Carrier) Zero(ctx context.Context, off, n int64) error {
	if err := c.enter("write image"); err != nil {
		return err
	}
	defer c.leave()
	if err := c.w.check("write image", off, n); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err := c.w.zeroRange(ctx, off, n); err != nil {
		return err
	}
	size := int64(c.w.ChunkBytes())
	c.w.mark(off/size, tree.Chunks(off+n, int(size)))
	return c.w.noteZeros(ctx, off/size, tree.Chunks(off+n, int(size)))
}

// Finish is ImageWriter.Finish. It refuses while content that was asked for has not come.
func (c *Carrier) Finish(ctx context.Context) (ImageRef, error) {
	if err := c.w.s.enter(); err != nil {
		return ImageRef{}, err
	}
	defer c.w.s.leave()
	c.life.Lock()
	defer c.life.Unlock()
	if c.over {
		return ImageRef{}, takenOver("finish image", c.w.s.o.Series)
	}
	c.w.mu.Lock()
	owed, ref := len(c.w.owed), c.w.ref
	c.w.mu.Unlock()
	if ref != nil {
		return *ref, nil
	}
	if missing := len(c.claims) + owed; missing > 0 {
		return ImageRef{}, fault.New(fault.Conflict, "finish image", c.w.s.o.Series, "content that was asked for has not come: %d chunks", missing)
	}
	out, err := c.w.finish(context.WithoutCancel(ctx))
	if err != nil {
		return ImageRef{}, c.w.s.fail(err)
	}
	return out, nil
}

// Close gives up what is not durable; the image stays, for another carrier.
func (c *Carrier) Close(ctx context.Context) error {
	if err := c.w.s.enter(); err != nil {
		return nil //nolint:nilerr // the session has ended and taken the carrier with it
	}
	defer c.w.s.leave()
	return c.end(ctx)
}

// end is Close for who has entered the session, or ends it.
func (c *Carrier) end(ctx context.Context) error {
	c.life.Lock()
	defer c.life.Unlock()
	if c.over {
		return nil
	}
	c.over = true
	c.w.mu.Lock()
	for _, cl := range c.claims {
		for _, n := range cl.numbers {
			c.w.owed[n] = struct{}{}
		}
	}
	c.w.mu.Unlock()
	c.claims = nil
	c.w.s.mu.Lock()
	delete(c.w.s.carriers, c)
	c.w.s.mu.Unlock()
	return c.dropGrants(context.WithoutCancel(ctx))
}

// Image returns the image that was begun in this session with a key, or begins it. So a mover that takes a transfer over
// goes on with what the one before has made durable. It is one disk at one instant: size and parent must be the same.
func (s *Session) Image(ctx context.Context, key string, o ImageOptions) (*ImageWriter, error) {
	if key == "" || len(key) > maxImageKey {
		return nil, fault.New(fault.Invalid, "begin image", s.o.Series, "a key of %d bytes", len(key))
	}
	if o.SizeBytes > maxCarried {
		return nil, fault.New(fault.Invalid, "begin image", s.o.Series, "a disk of %d bytes, of at most %d", o.SizeBytes, int64(maxCarried)).Explain(
			"A mover can back up disks of at most 64 TiB.", "If the disk has this size, exclude it; else look at the mover that says so.")
	}
	s.keying.Lock()
	defer s.keying.Unlock()
	anew := 0
	if w := s.keyed[key]; w != nil && o.Anew {
		if anew = w.anew + 1; anew > maxAnew {
			return nil, fault.New(fault.Conflict, "begin image", s.o.Series, "it was begun anew %d times", maxAnew).Explain(
				"The transfer of this disk begins from its start again and again.", "See why its source cannot be trusted to stay the same, then run the backup again.")
		}
		if err := w.giveUp(ctx); err != nil {
			return nil, err
		}
	} else if w != nil {
		if o.SizeBytes != w.size || (o.Parent == nil) != (w.o.Parent == nil) || o.Parent != nil && *o.Parent != *w.o.Parent {
			return nil, fault.New(fault.Conflict, "begin image", key, "it was begun with another size or parent").Explain(
				"A transfer that goes on must be of the same disk at the same instant as when it began.", "Begin the backup anew.")
		}
		return w, nil
	}
	w, err := s.NewImage(ctx, o)
	if err != nil {
		return nil, err
	}
	w.key, w.anew = key, anew
	if anew > 0 {
		w.restore(s.keyed[key].counts())
	}
	if s.o.Resumable {
		if err := s.enter(); err != nil {
			return nil, err
		}
		defer s.leave()
		if err := w.beginJournal(context.WithoutCancel(ctx)); err != nil {
			return nil, err
		}
	}
	s.keyed[key] = w
	return w, nil
}

// Limits of what is carried: the owner holds a bit for each chunk, and a record for each beginning.
const (
	maxImageKey = 256
	maxCarried  = 64 << 40 // bytes of an image
	maxAnew     = 100      // times that one is begun anew
)

// giveUp ends who carries the image, which nobody will finish.
func (w *ImageWriter) giveUp(ctx context.Context) error {
	w.mu.Lock()
	c := w.carrier
	w.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.Close(ctx)
}

// Terms are what a process that carries images of a repository has to know of it.
type Terms struct {
	Repository  seal.ID
	ChunkBytes  int
	FrameBytes  int
	PackBytes   int
	Compression pack.Compression
	Keys        chunk.Keys
}

// Terms returns the terms of the repository.
func (r *Repository) Terms() Terms {
	how := r.coding.Load().how
	return Terms{
		Repository: r.id, ChunkBytes: r.config.ChunkBytes, FrameBytes: how.FrameBytes(), PackBytes: r.o.packBytes, Compression: how,
		Keys: chunk.NewKeys(r.keys.IDs),
	}
}

// Terms returns the terms of the session's repository.
func (s *Session) Terms() Terms { return s.r.Terms() }

// Carrier returns who carries the image that was begun with a key, if that is turn.
func (s *Session) Carrier(key string, turn uint64) (*Carrier, error) {
	s.keying.Lock()
	w := s.keyed[key]
	s.keying.Unlock()
	if w != nil {
		w.mu.Lock()
		c := w.carrier
		w.mu.Unlock()
		if c != nil && c.turn == turn {
			return c, nil
		}
	}
	return nil, takenOver("carry image", s.o.Series)
}

// Turn tells this carrier of the image from those before and after it.
func (c *Carrier) Turn() uint64 { return c.turn }

// Stats returns the counts of the image so far.
func (c *Carrier) Stats() ImageStats { return c.w.Stats() }

// Durable is that of the image, from the chunk at an offset on.
func (c *Carrier) Durable(ctx context.Context, off int64) iter.Seq2[Range, error] {
	return c.w.durable(ctx, max(0, off))
}

func takenOver(op, subject string) error {
	return fault.New(fault.Denied, op, subject, "another mover has taken this image over, or its session has ended").Explain(
		"The manager gave the transfer to another mover, or began it anew.", "Nothing is to be done: what was durable is not sent again.")
}
