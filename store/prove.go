package store

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"

	"golang.org/x/time/rate"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// packState is what reading a whole pack has found.
type packState struct {
	cause error               // the first thing that is wrong with it; nil if all of it is good
	gone  bool                // nothing in it can be read
	slots map[uint32]struct{} // entries that are not what their ids say
	count int                 // entries in it, if not gone
}

func (st *packState) spoil(err error, slots ...uint32) {
	if st.cause == nil {
		st.cause = err
	}
	for _, slot := range slots {
		st.slots[slot] = struct{}{}
	}
}

// lost reports whether an entry cannot be read. A nil state is that of a good pack.
func (st *packState) lost(slot uint32) bool {
	if st == nil {
		return false
	}
	_, bad := st.slots[slot]
	return st.gone || bad
}

// meter counts and slows down the reading of packs.
type meter struct {
	b      blob.Store
	limit  *rate.Limiter // nil: none
	bytes  atomic.Int64
	frames atomic.Int64
}

// meterStep is how much is let through at once.
const meterStep = 256 << 10

func newMeter(b blob.Store, bytesPerSecond int64) *meter {
	m := &meter{b: b}
	if bytesPerSecond > 0 {
		m.limit = rate.NewLimiter(rate.Limit(bytesPerSecond), meterStep)
	}
	return m
}

// ReadAt implements pack.Source.
func (m *meter) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if m.limit != nil {
		for n := len(p); n > 0; n -= meterStep {
			if err := m.limit.WaitN(ctx, min(n, meterStep)); err != nil {
				return err
			}
		}
	}
	m.bytes.Add(int64(len(p)))
	return m.b.ReadAt(ctx, name, p, off)
}

// prover reads packs from end to end and proves everything in them by its id.
type prover struct {
	r *Repository
	m *meter
}

// pack reads one pack, each frame once. Damage is in the state; an error says that it could not be read now, and
// NotFound that it is not there. If the backend can repair the pack, it is asked to, and the pack is read again.
func (pr *prover) pack(ctx context.Context, id seal.ID, size int64) (*packState, error) {
	st, err := pr.once(ctx, id, size)
	if err == nil && st.cause != nil && pr.r.mend(ctx, pack.Name(id), st.cause) {
		return pr.once(ctx, id, size)
	}
	return st, err
}

func (pr *prover) once(ctx context.Context, id seal.ID, size int64) (*packState, error) {
	st := &packState{slots: map[uint32]struct{}{}}
	rd, err := pack.Open(ctx, pr.m, pr.r.id, id, size, pr.r.secrets)
	if err == nil && rd.Directory().Blocks != pr.r.blocks {
		err = fmt.Errorf("it has chunks of %d blocks, the repository of %d", rd.Directory().Blocks, pr.r.blocks)
	}
	if err != nil {
		if undecided(err) {
			return nil, err
		}
		st.gone = true
		st.spoil(err)
		return st, nil
	}
	st.count = len(rd.Directory().Entries)
	run := &proving{prover: pr, rd: rd, st: st, byFrame: entriesByFrame(rd.Directory())}
	if run.prints, err = rd.Prints(ctx); err != nil {
		if undecided(err) {
			return nil, err
		}
		st.spoil(err)
	}
	err = rd.ReadWhole(ctx, pr.r.coder(), func(number uint32, plain []byte, damage error) error {
		return run.frame(ctx, number, plain, damage)
	})
	if err != nil && undecided(err) {
		return nil, err
	}
	if err != nil {
		st.spoil(err)
		st.unread(run.byFrame)
	}
	return st, nil
}

// undecided reports whether a failure to read says nothing about what is stored.
func undecided(err error) bool {
	if errors.Is(err, pack.ErrNewer) {
		return true
	}
	if kind := fault.KindOf(err); kind == fault.Canceled || kind == fault.Transient {
		return true
	}
	f, ok := errors.AsType[*fault.Error](err)
	return ok && f.Kind != fault.Corrupt
}

// entriesByFrame lists the entries of each frame.
func entriesByFrame(d *pack.Directory) [][]uint32 {
	out := make([][]uint32, len(d.Frames))
	for i := range d.Entries {
		f := d.Entries[i].Frame
		out[f] = append(out[f], uint32(i))
	}
	return out
}

// unread counts the entries of frames that could not be reached as lost.
func (st *packState) unread(byFrame [][]uint32) {
	for _, slots := range byFrame {
		for _, slot := range slots {
			st.slots[slot] = struct{}{}
		}
	}
}

// proving is the reading of one pack.
type proving struct {
	*prover
	rd      *pack.Reader
	st      *packState
	prints  []chunk.Fingerprint // nil if they are damaged
	byFrame [][]uint32          // of frames that are not read yet
	whole   []byte
	got     [chunk.MaxBlocks]chunk.Fingerprint
}

func (p *proving) frame(ctx context.Context, number uint32, plain []byte, damage error) error {
	p.m.frames.Add(1)
	slots := p.byFrame[number]
	p.byFrame[number] = nil
	if damage != nil {
		p.st.spoil(damage, slots...)
		return nil
	}
	for _, slot := range slots {
		e := &p.rd.Directory().Entries[slot]
		data := plain[e.Offset : e.Offset+e.Length]
		err := ctx.Err()
		switch {
		case err != nil:
		case e.Type != pack.Chunk:
			p.expect(e, slot, p.r.objectID(e.Type, data))
		case len(e.Refs) == 0:
			p.chunk(e, slot, data)
		default:
			err = p.referring(ctx, e, slot, data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *proving) expect(e *pack.Entry, slot uint32, got Hash) {
	if got != e.ID {
		p.st.spoil(fmt.Errorf("%s %s in frame %d has the content of %s", typeName(e.Type), e.ID.Short(), e.Frame, got.Short()), slot)
	}
}

// chunk proves a chunk that is here as a whole, and the fingerprints that others which refer to its blocks are proven by.
func (p *proving) chunk(e *pack.Entry, slot uint32, data []byte) {
	n := p.r.blocks
	if len(data) < n*chunk.BlockBytes {
		if p.whole == nil {
			p.whole = make([]byte, n*chunk.BlockBytes)
		}
		for i := range n {
			block := p.whole[i*chunk.BlockBytes : (i+1)*chunk.BlockBytes]
			if e.Present&(1<<i) == 0 {
				clear(block)
				continue
			}
			copy(block, data)
			data = data[chunk.BlockBytes:]
		}
		data = p.whole
	}
	p.expect(e, slot, p.r.hasher.Chunk(data))
	if p.prints == nil {
		return
	}
	p.r.hasher.Prints(data, p.got[:n])
	for i := range n {
		if p.got[i] != p.prints[int(slot)*n+i] {
			p.st.spoil(fmt.Errorf("the fingerprint of block %d of chunk %s is another's", i, e.ID.Short()))
		}
	}
}

// referring proves a chunk that refers to blocks of others without reading those: its fingerprints, which were sealed
// together with its id, must be those of the blocks that are here, and those that the packs with the others have of
// them. Where that does not settle it, the chunk is put together and hashed.
func (p *proving) referring(ctx context.Context, e *pack.Entry, slot uint32, data []byte) error {
	ok, err := p.byPrints(ctx, e, slot, data)
	if ok || err != nil {
		return err
	}
	whole := make([]byte, p.r.config.ChunkBytes)
	if err := p.r.assemble(ctx, p.rd, e, whole); err != nil {
		if !damaged(err) {
			return err
		}
		return nil // what it refers to is damaged or gone, not what is here
	}
	p.expect(e, slot, p.r.hasher.Chunk(whole))
	return nil
}

func (p *proving) byPrints(ctx context.Context, e *pack.Entry, slot uint32, data []byte) (bool, error) {
	if p.prints == nil {
		return false, nil
	}
	n := p.r.blocks
	ours := p.prints[int(slot)*n : (int(slot)+1)*n]
	p.r.hasher.Prints(data, p.got[:bits.OnesCount64(e.Present)])
	got, refs := p.got[:], e.Refs
	var buf [4]index.Location
	var target Hash // whose places these are: most references are to one chunk
	var places []index.Location
	for i := range n {
		want := chunk.Fingerprint{}
		switch bit := uint64(1) << i; {
		case e.Present&bit != 0:
			want, got = got[0], got[1:]
		case e.Zeros&bit != 0:
		default:
			ref := refs[0]
			refs = refs[1:]
			if ref.Target != target {
				var err error
				if places, err = p.r.idx.Lookup(buf[:0], ref.Target); err != nil {
					return false, fault.Wrap(fault.Internal, "look up", ref.Target.Short(), err)
				}
				target = ref.Target
			}
			if ok, err := p.r.hasPrint(ctx, places, ref, ours[i]); !ok || err != nil {
				return false, err
			}
			continue
		}
		if ours[i] != want {
			return false, nil
		}
	}
	return true, nil
}

// hasPrint reports whether one of the places of a chunk that has the block referred to says that it has this fingerprint.
func (r *Repository) hasPrint(ctx context.Context, places []index.Location, ref pack.Ref, want chunk.Fingerprint) (bool, error) {
	for _, at := range places {
		rd, e, err := r.entry(ctx, at)
		if err == nil && (e.ID != ref.Target || e.Type != pack.Chunk) {
			continue
		}
		var blocks *pack.Blocks
		if err == nil {
			blocks, err = r.blocksOf(ctx, rd)
		}
		if err != nil && !damaged(err) {
			return false, err
		}
		if err != nil {
			continue
		}
		if _, ok := blockAt(e, ref.Block); ok && blocks.Of(int(at.Slot))[ref.Block] == want {
			return true, nil
		}
	}
	return false, nil
}

// mend asks the backend to repair an object in which damage was read, and reports whether reading it again is worth
// while. What could not be repaired is not asked for again until the next verification or sweep.
func (r *Repository) mend(ctx context.Context, name string, damage error) bool {
	if r.o.ReadOnly {
		return false
	}
	r.mu.Lock()
	_, tried := r.unmended[name]
	r.mu.Unlock()
	if tried {
		return false
	}
	repaired, err := blob.Repair(ctx, r.b, name)
	if repaired { // a part that could not be put right may not be one that a read needs
		r.log.Warn("damaged object was repaired by the backend", "object", name, "damage", damage, "err", err)
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unmended == nil {
		r.unmended = map[string]struct{}{}
	}
	r.unmended[name] = struct{}{}
	if err != nil {
		r.log.Warn("damaged object cannot be repaired by the backend", "object", name, "err", err)
	}
	return false
}

// askAgain lets the backend be asked for repairs again.
func (r *Repository) askAgain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.unmended)
}

// again reads an object, and once more if the backend repaired the damage that was found.
func (r *Repository) again(ctx context.Context, name string, read func() error) error {
	err := read()
	if err != nil && !undecided(err) && r.mend(ctx, name, err) {
		return read()
	}
	return err
}
