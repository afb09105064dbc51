package erasure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// budget is asked before bytes are read or written; nil: no limit.
type budget func(ctx context.Context, n int) error

func (b budget) take(ctx context.Context, n int) error {
	if b == nil {
		return ctx.Err()
	}
	return b(ctx, n)
}

// Repair implements blob.Repairer. It reads every shard of an object whole, and rewrites those that are missing or not
// what was written; one that cannot be written does not keep others from it. Damage beyond parity is a Corrupt error, or
// Transient if members that are away could help; what there is of the object stays as it is.
func (s *Store) Repair(ctx context.Context, name string) (repaired bool, err error) {
	e, err := s.locate(ctx, "repair object", name, true)
	if err != nil {
		return false, err
	}
	x, err := s.examine(ctx, e, nil)
	if err != nil {
		return false, err
	}
	if len(x.bad) == 0 && x.odd != "" {
		return false, fault.New(fault.Corrupt, "repair object", name, "%s", x.odd)
	}
	n, err := s.restoreShards(ctx, e, x.fixable(), nil)
	if n > 0 {
		s.log.Warn("object repaired", "object", name, "shards", n, "damage", x.String())
	}
	return n > 0, err
}

// examination is what reading all shards of an object showed.
type examination struct {
	e    *entry
	bad  map[int]string // by slot: why a shard is not what it should be
	away map[int]bool   // by slot: the member is not there
	odd  string         // all hashes are right, and parity does not belong to the data
	read int64          // bytes
}

// fixable lists the slots that a new shard can be written to.
func (x *examination) fixable() []int {
	var out []int
	for slot := range x.bad {
		if !x.away[slot] {
			out = append(out, slot)
		}
	}
	slices.Sort(out)
	return out
}

// String names members and what is wrong with what they have.
func (x *examination) String() string {
	var out []string
	for _, slot := range slices.Sorted(maps.Keys(x.bad)) {
		out = append(out, x.e.group.members[slot].id+": "+x.bad[slot])
	}
	if x.odd != "" {
		out = append(out, x.odd)
	}
	return strings.Join(out, "; ")
}

// examine reads every shard of an object and proves header, units, trailer, length, and that parity fits the data.
func (s *Store) examine(ctx context.Context, e *entry, take budget) (*examination, error) {
	x := &examination{e: e, bad: map[int]string{}, away: map[int]bool{}}
	r := s.reader(e)
	n := r.g.n
	for slot, m := range e.group.members {
		switch {
		case !m.up() || (e.seen != nil && !e.seen[slot]):
			x.away[slot], x.bad[slot] = true, "the member is not there"
		case e.at[slot] == "":
			x.bad[slot] = "the shard is missing"
		case e.short[slot]:
			x.bad[slot] = "the shard has not the length it must have"
		default:
			x.read += headerBytes + trailerBytes
			if why := r.ends(ctx, shardOf(e.write, slot, n)); why != "" {
				x.bad[slot] = why
			}
		}
	}
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, maxRun*(unitBytes+hashBytes))
	}
	for first := int64(0); first < r.g.units(); first += maxRun {
		count := int(min(maxRun, r.g.units()-first))
		rows := make([][][]byte, n) // by shard
		for slot := range e.at {
			if x.away[slot] || e.at[slot] == "" {
				continue
			}
			length := r.g.runBytes(first, count)
			if err := take.take(ctx, length); err != nil {
				return x, err
			}
			shard := shardOf(e.write, slot, n)
			units, good := r.own(ctx, shard, first, count, bufs[shard])
			x.read += int64(length)
			if good < count && x.bad[slot] == "" {
				x.bad[slot] = r.bad[slot]
			}
			rows[shard] = units
		}
		x.parity(r, rows, first)
	}
	return x, ctx.Err()
}

// parity checks that the shards of one row belong together, where all are there.
func (x *examination) parity(r *reader, rows [][][]byte, first int64) {
	for i := range rows[0] {
		row := make([][]byte, len(rows))
		for shard := range rows {
			if rows[shard] == nil || rows[shard][i] == nil {
				return
			}
			row[shard] = rows[shard][i]
		}
		ok := true
		if r.e.k == 1 {
			for _, copied := range row[1:] {
				ok = ok && bytes.Equal(copied, row[0])
			}
		} else if good, err := r.e.group.code.Verify(row); err != nil || !good {
			ok = false
		}
		if !ok && x.odd == "" {
			x.odd = fmt.Sprintf("parity does not belong to the data at unit %d, though all hashes are right", first+int64(i))
		}
	}
}

// ends checks header and trailer of a shard.
func (r *reader) ends(ctx context.Context, shard int) (why string) {
	slot, name := r.file(shard)
	m := r.e.group.members[slot]
	b, err := m.store()
	if err != nil {
		return err.Error()
	}
	head, tail := make([]byte, headerBytes), make([]byte, trailerBytes)
	if err := m.failed(b.ReadAt(ctx, name, head, 0)); err != nil {
		return err.Error()
	}
	h, err := decodeHeader(head)
	if err != nil {
		return err.Error()
	}
	want := r.header(shard)
	h.Created = ""
	if h != want {
		return "it belongs to another write, shard or set"
	}
	if err := m.failed(b.ReadAt(ctx, name, tail, r.g.fileBytes()-trailerBytes)); err != nil {
		return err.Error()
	}
	if !bytes.Equal(tail, want.sealer().trailer(r.e.size)) {
		return "its trailer is damaged"
	}
	return ""
}

// restoreShards writes new shards for slots and proves what was written, then puts them in the place of what is there.
// Its error is about those with which that failed; the others are done.
func (s *Store) restoreShards(ctx context.Context, e *entry, slots []int, take budget) (n int, err error) {
	var errs []error
	for _, slot := range slots {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		if s.memberDoc(e.group.members[slot]).Behind {
			continue // it has to catch up first
		}
		if err := s.restoreShard(ctx, e, slot, take); err != nil {
			errs = append(errs, err)
			continue
		}
		n++
		s.stats.repairedShards.Add(1)
	}
	if len(errs) > 0 {
		return n, fault.Context("repair object", e.name, errors.Join(errs...))
	}
	return n, nil
}

func (s *Store) restoreShard(ctx context.Context, e *entry, slot int, take budget) (err error) {
	r := s.reader(e)
	m := e.group.members[slot]
	b, err := m.store()
	if err != nil {
		return err
	}
	// As in a new write: a disk that was unmounted leaves an empty directory.
	if _, err := readIdentity(ctx, b); err != nil {
		if fault.KindOf(err) == fault.NotFound { // the member, not the object
			err = fault.Wrap(fault.Transient, "use member", m.id, err)
		}
		return m.failed(err)
	}
	shard := shardOf(e.write, slot, r.g.n)
	pending := part{write: e.write, shard: shard}.pending()
	if !s.fly(e.write) {
		return fault.New(fault.Conflict, "repair object", e.name, "it is being repaired already")
	}
	defer s.land(e.write)
	if r.prove(ctx, b, pending, shard, take) == nil { // an earlier exchange came no further
		return s.exchange(context.WithoutCancel(ctx), e, slot, b, pending)
	}
	if err := ignoreMissing(b.Delete(ctx, pending)); err != nil {
		return m.failed(err)
	}
	w, err := b.Create(ctx, pending)
	if err != nil {
		return m.failed(err)
	}
	if err := r.rewrite(ctx, w, shard, take); err != nil {
		_ = w.Abort()
		return m.failed(err)
	}
	if err := w.Commit(ctx); err != nil {
		_ = w.Abort()
		return m.failed(err)
	}
	if err := r.prove(ctx, b, pending, shard, take); err != nil {
		_ = b.Delete(context.WithoutCancel(ctx), pending)
		return m.failed(err)
	}
	fault.Point("store.erasure.shard-proven")
	return s.exchange(context.WithoutCancel(ctx), e, slot, b, pending)
}

// rewrite writes a shard's file from what is good of it, and of the others.
func (r *reader) rewrite(ctx context.Context, w blob.Writer, shard int, take budget) error {
	h := r.header(shard)
	h.Created = r.e.name
	out := h.encode()
	seal := h.sealer()
	buf := make([]byte, maxRun*(unitBytes+hashBytes))
	for first := int64(0); first < r.g.units(); first += maxRun {
		count := int(min(maxRun, r.g.units()-first))
		if err := take.take(ctx, count*unitBytes); err != nil {
			return err
		}
		units, err := r.units(ctx, shard, first, count, buf)
		if err != nil {
			return err
		}
		for i, u := range units {
			out = append(out, u...)
			out = seal.sum(out, first+int64(i), u)
		}
		if _, err := w.Write(out); err != nil {
			return err
		}
		out = out[:0]
	}
	_, err := w.Write(append(out, seal.trailer(r.e.size)...))
	return err
}

// prove reads back what rewrite has written.
func (r *reader) prove(ctx context.Context, b blob.Store, file string, shard int, take budget) error {
	e := *r.e
	e.at = slices.Clone(r.e.at)
	slot, _ := r.file(shard)
	e.at[slot] = file
	check := r.s.reader(&e)
	if info, err := b.Stat(ctx, file); err != nil || info.Size != r.g.fileBytes() {
		return fault.New(fault.Corrupt, "read back shard", file, "it has not the length that was written (%v)", err)
	}
	if why := check.ends(ctx, shard); why != "" {
		return fault.New(fault.Corrupt, "read back shard", file, "%s", why)
	}
	buf := make([]byte, maxRun*(unitBytes+hashBytes))
	for first := int64(0); first < r.g.units(); first += maxRun {
		count := int(min(maxRun, r.g.units()-first))
		if err := take.take(ctx, count*unitBytes); err != nil {
			return err
		}
		if _, good := check.own(ctx, shard, first, count, buf); good != count {
			return fault.New(fault.Corrupt, "read back shard", file, "%s", check.bad[slot])
		}
	}
	return nil
}

// exchange puts a proven shard in the place of the bad one, unless the object is gone or has moved meanwhile. A name is
// never given to another file, so the bad one is put aside first; it goes when the new one has the name durably. At no
// time is there nothing that has the object's name; what a crash leaves the next owner puts right.
func (s *Store) exchange(ctx context.Context, e *entry, slot int, b blob.Store, pending string) error {
	s.gate.RLock()
	defer s.gate.RUnlock()
	defer s.lockName(e.name)()
	m := e.group.members[slot]
	now, err := s.find(ctx, e.name)
	if err != nil || len(now) == 0 || now[0].write != e.write {
		_ = b.Delete(ctx, pending)
		if err == nil {
			err = fault.New(fault.NotFound, "repair object", e.name, "it was removed or renamed meanwhile")
		}
		return err
	}
	p := now[0].part
	p.shard = shardOf(e.write, slot, e.group.n())
	s.cache.forget(e.name)
	if err := trade(ctx, b, pending, now[0].at[slot], p); err != nil {
		return m.failed(err)
	}
	s.counted(e.group, func(c *census) { c.restored(e, slot) })
	return nil
}

// trade gives the name of p to a pending shard, and takes away the file old that stood for it, "" if none did.
func trade(ctx context.Context, b blob.Store, pending, old string, p part) error {
	aside := p
	aside.aside = true
	if old == p.path() {
		if err := ignoreMissing(b.Delete(ctx, aside.path())); err != nil { // of one that was interrupted
			return err
		}
		if err := ignoreMissing(b.Rename(ctx, old, aside.path())); err != nil {
			return err
		}
		old = aside.path()
		fault.Point("store.erasure.old-shard-aside")
	}
	if err := b.Rename(ctx, pending, p.path()); err != nil {
		return err
	}
	if old == "" {
		return nil
	}
	fault.Point("store.erasure.shard-exchanged")
	return ignoreMissing(b.Delete(ctx, old))
}

// fly notes that pending shards of a write belong to somebody; false: they do already.
func (s *Store) fly(write string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flying[write] {
		return false
	}
	s.flying[write] = true
	return true
}

func (s *Store) land(write string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.flying, write)
}
