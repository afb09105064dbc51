package erasure

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/oklog/ulid/v2"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// writer cuts one new object into shards. Up to one stripe is in memory; a small object is until its Commit.
type writer struct {
	s     *Store
	ctx   context.Context //nolint:containedctx // io.Writer has no other way
	name  string
	write string
	group *group
	k     int // 0: not begun

	buf    []byte
	parity [][]byte
	parts  []*partWriter // by slot
	size   int64
	units  int64
	failed error
	done   bool
}

// partWriter writes one shard.
type partWriter struct {
	m       *member
	shard   int
	w       blob.Writer
	seal    *sealer
	out     []byte
	err     error
	pending bool // its file is durable under its pending name
}

// Create implements blob.Store. Members that fail are left behind as long as enough others do not.
func (s *Store) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	w := &writer{s: s, ctx: ctx, name: name, write: strings.ToLower(ulid.Make().String()), group: s.choose()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flying[w.write] = true
	return w, nil
}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	if w.failed != nil {
		return 0, w.failed
	}
	if w.size+int64(len(p)) > maxObject {
		return 0, w.fail(fault.New(fault.Invalid, "write object", w.name, "larger than an object may be"))
	}
	written := 0
	for len(p) > 0 {
		stripe := w.group.layout.Data * chunkBytes
		if w.buf == nil {
			w.buf = make([]byte, 0, min(stripe, max(len(p), 4096)))
		}
		n := min(len(p), stripe-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		p, written, w.size = p[n:], written+n, w.size+int64(n)
		if len(w.buf) == stripe && w.size > wholeLimit {
			if err := w.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

func (w *writer) fail(err error) error {
	if w.failed == nil {
		w.failed = err
	}
	return w.failed
}

// begin opens the shards' files.
func (w *writer) begin(k int) error {
	w.k = k
	n := w.group.n()
	w.parts = make([]*partWriter, n)
	for slot, m := range w.group.members {
		w.parts[slot] = &partWriter{m: m, shard: shardOf(w.write, slot, n)}
	}
	id, err := writeID(w.write)
	if err != nil {
		return err
	}
	return w.all(func(p *partWriter) error {
		if w.s.memberDoc(p.m).Behind {
			return fault.New(fault.Transient, "write to member", p.m.id, "it has to catch up first")
		}
		b, err := p.m.store()
		if err != nil {
			return err
		}
		// A disk that was unmounted leaves an empty directory: nothing must go there.
		if err := answers(w.ctx, b); err != nil {
			return err
		}
		p.w, err = b.Create(w.ctx, part{write: w.write, shard: p.shard}.pending())
		if err != nil {
			return err
		}
		h := shardHeader{
			Set: w.s.set, Write: id, Group: uint32(w.group.number), K: uint8(k), N: uint8(n), Shard: uint8(p.shard),
			Chunk: chunkBytes, Unit: unitBytes, Created: w.name,
		}
		p.seal = h.sealer()
		p.out = append(make([]byte, 0, maxRun*(unitBytes+hashBytes)), h.encode()...)
		return nil
	})
}

// all runs f for every shard that has not failed, at once, and is an error if too few are left.
func (w *writer) all(f func(*partWriter) error) error {
	var wg sync.WaitGroup
	for _, p := range w.parts {
		if p.err == nil {
			wg.Go(func() {
				if err := f(p); err != nil {
					p.err = p.m.failed(err)
				}
			})
		}
	}
	wg.Wait()
	good := 0
	var errs []error
	for _, p := range w.parts {
		if p.err == nil {
			good++
		}
		errs = append(errs, p.err)
	}
	if err := w.ctx.Err(); err != nil {
		return w.fail(err)
	}
	if good < w.s.need(w.group) {
		return w.fail(tooFew("write object", w.name, good, w.s.need(w.group), errs))
	}
	return nil
}

func tooFew(op, name string, good, need int, errs []error) error {
	err := worst(op, name, errs...)
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind == fault.Canceled {
		return err
	}
	if meaning, _ := fault.Explanation(err); meaning != "" {
		return err // the member's own words, that it is full for example
	}
	return f.Explain("Too few members of the erasure set could be written to, so this was given up. What was stored before is untouched.",
		"Look at the set's health for which members fail, and bring them back or replace them.")
}

// flush encodes what is in buf, a whole stripe or the last one.
func (w *writer) flush() error {
	if w.k == 0 {
		if err := w.begin(w.group.layout.Data); err != nil {
			return err
		}
	}
	chunk := (len(w.buf) + w.k - 1) / w.k
	padded := w.buf[:len(w.buf):len(w.buf)]
	if pad := chunk*w.k - len(w.buf); pad > 0 {
		padded = append(padded, make([]byte, pad)...)
	}
	shards := make([][]byte, w.group.n())
	for i := range shards {
		if w.k == 1 {
			shards[i] = padded
		} else if i < w.k {
			shards[i] = padded[i*chunk : (i+1)*chunk]
		} else {
			shards[i] = w.parityBuf(i - w.k)[:chunk]
		}
	}
	if w.k > 1 && chunk > 0 {
		if err := w.group.code.Encode(shards); err != nil {
			return w.fail(fault.Wrap(fault.Internal, "encode object", w.name, err))
		}
	}
	first := w.units
	w.units += int64((chunk + unitBytes - 1) / unitBytes)
	w.buf = w.buf[:0]
	return w.all(func(p *partWriter) error { return p.units(first, shards[p.shard]) })
}

func (w *writer) parityBuf(i int) []byte {
	for len(w.parity) <= i {
		w.parity = append(w.parity, make([]byte, chunkBytes))
	}
	return w.parity[i]
}

// units writes the units of one chunk, each with its hash behind it.
func (p *partWriter) units(first int64, chunk []byte) error {
	for u := first; len(chunk) > 0; u++ {
		n := min(unitBytes, len(chunk))
		p.out = append(p.out, chunk[:n]...)
		p.out = p.seal.sum(p.out, u, chunk[:n])
		chunk = chunk[n:]
		if len(p.out) >= maxRun*unitBytes {
			if err := p.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *partWriter) flush() error {
	_, err := p.w.Write(p.out)
	p.out = p.out[:0]
	return err
}

// Commit implements blob.Writer. First enough shards become durable under a pending name, then one gets its final
// name: from that on the object is there, and the next owner completes what a crash cuts off. The others follow.
func (w *writer) Commit(ctx context.Context) error {
	if w.failed != nil {
		return w.failed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.done {
		return fault.New(fault.Internal, "commit object", w.name, "written already")
	}
	w.ctx = ctx
	if err := w.finish(); err != nil {
		return err
	}
	fault.Point("store.erasure.shards-pending")
	return w.publish(ctx)
}

// finish makes the shards durable.
func (w *writer) finish() error {
	if w.k == 0 && w.size <= wholeLimit {
		if err := w.begin(1); err != nil {
			return err
		}
	}
	if len(w.buf) > 0 {
		if err := w.flush(); err != nil {
			return err
		}
	}
	return w.all(func(p *partWriter) error {
		p.out = append(p.out, p.seal.trailer(w.size)...)
		if err := p.flush(); err != nil {
			return err
		}
		if err := p.w.Commit(w.ctx); err != nil {
			return err
		}
		p.pending = true
		return nil
	})
}

// publish makes the object visible, and takes it back if it cannot be acknowledged.
func (w *writer) publish(ctx context.Context) error {
	w.s.gate.RLock()
	defer w.s.gate.RUnlock()
	defer w.s.lockName(w.name)()
	if err := w.free(ctx); err != nil {
		return w.fail(err)
	}
	// Cancelling now would leave it open whether the object is there.
	ctx = context.WithoutCancel(ctx)
	w.ctx = ctx
	n := w.group.n()
	e := &entry{
		part: part{name: w.name, write: w.write, size: w.size, k: w.k}, group: w.group,
		at: make([]string, n), aside: make([]string, n), short: make([]bool, n),
	}
	err := w.nameShards(ctx, e)
	if err == nil {
		fault.Point("store.erasure.need-reached")
		err = w.alone(ctx)
	}
	if err == nil {
		err = w.s.missed(ctx, w.group, e.missing())
	}
	w.forget()
	w.s.counted(w.group, func(c *census) { c.add(e) })
	if err != nil {
		// Nobody has been told that it is there: take it back.
		return w.fail(errors.Join(err, w.s.kill(ctx, e)))
	}
	w.done = true
	w.s.cache.put(w.name, e)
	if whole := e.whole(); whole < n {
		w.s.stats.degradedWrites.Add(1)
		w.s.log.Warn("object has fewer shards than it should", "object", w.name, "shards", whole, "of", n)
	}
	return nil
}

// nameShards gives one shard its final name, from which on the object is there, then the others theirs at once.
func (w *writer) nameShards(ctx context.Context, e *entry) error {
	name := func(p *partWriter) error {
		final := e.part
		final.shard = p.shard
		b, err := p.m.store()
		if err == nil {
			err = b.Rename(ctx, final.pending(), final.path())
		}
		if err == nil {
			e.at[p.m.slot], p.pending = final.path(), false
		}
		return err
	}
	for _, p := range w.parts {
		if p.err != nil {
			continue
		}
		if err := name(p); err != nil {
			p.err = p.m.failed(err)
			continue
		}
		fault.Point("store.erasure.first-named")
		break
	}
	return w.all(func(p *partWriter) error {
		if e.at[p.m.slot] != "" {
			return nil
		}
		return name(p)
	})
}

// free answers Exists if the name is taken.
func (w *writer) free(ctx context.Context) error {
	all, err := w.s.find(ctx, w.name)
	if err != nil {
		return fault.Context("commit object", w.name, err)
	}
	if len(all) > 0 {
		return fault.New(fault.Exists, "commit object", w.name, "it is there already")
	}
	return nil
}

// alone answers Exists if another process has committed the same name meanwhile. Whoever sees the other gives way, so
// of two at least one does.
func (w *writer) alone(ctx context.Context) error {
	all, err := w.s.find(ctx, w.name)
	if err != nil {
		return fault.Context("commit object", w.name, err)
	}
	for _, e := range all {
		if e.write != w.write {
			return fault.New(fault.Exists, "commit object", w.name, "it is there already")
		}
	}
	return nil
}

func (w *writer) forget() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	delete(w.s.flying, w.write)
}

// Abort implements blob.Writer.
func (w *writer) Abort() error {
	if w.done {
		return nil
	}
	if w.failed == nil {
		w.failed = fault.New(fault.Canceled, "write object", w.name, "given up")
	}
	ctx := context.WithoutCancel(w.ctx)
	var wg sync.WaitGroup
	for _, p := range w.parts {
		if p.w == nil {
			continue
		}
		wg.Go(func() {
			_ = p.w.Abort() // what it leaves, the next owner removes
			if b, err := p.m.store(); err == nil && p.pending {
				_ = b.Delete(ctx, part{write: w.write, shard: p.shard}.pending())
				p.pending = false
			}
		})
	}
	wg.Wait()
	w.forget()
	return nil
}
