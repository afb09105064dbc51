package erasure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/internal/fault"
)

// maxRun is how many units are read from a shard at a time.
const maxRun = chunkBytes / unitBytes

// runPool keeps buffers of one run of units with their hashes.
var runPool = sync.Pool{New: func() any {
	p := make([]byte, maxRun*(unitBytes+hashBytes))
	return &p
}}

// reader reads one write of an object. Its methods may be called from several goroutines.
type reader struct {
	s *Store
	e *entry
	g geometry

	mu  sync.Mutex
	bad map[int]string // by slot: why a shard could not be used
}

func (s *Store) reader(e *entry) *reader {
	return &reader{s: s, e: e, g: e.geometry(), bad: map[int]string{}}
}

func (r *reader) header(shard int) shardHeader {
	w, _ := writeID(r.e.write)
	return shardHeader{
		Set: r.s.set, Write: w, Group: uint32(r.e.group.number), K: uint8(r.e.k), N: uint8(r.g.n), Shard: uint8(shard),
		Chunk: chunkBytes, Unit: unitBytes,
	}
}

// file is where a shard lies. One whose name is still to come after a crash lies among the pending ones.
func (r *reader) file(shard int) (slot int, name string) {
	slot = slotOf(r.e.write, shard, r.g.n)
	if name = r.e.at[slot]; name == "" {
		name = part{write: r.e.write, shard: shard}.pending()
	}
	return slot, name
}

// ReadAt implements blob.Store. Damage in up to Parity shards of a stripe is made good on the way.
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	e, err := s.locate(ctx, "read object", name, false)
	if err != nil {
		return err
	}
	err = s.readEntry(ctx, e, p, off)
	if err == nil || ctx.Err() != nil {
		return err
	}
	// Where the shards are may have been told by the cache, and not be true any more.
	again, locErr := s.locate(ctx, "read object", name, true)
	if locErr != nil {
		return locErr
	}
	return s.readEntry(ctx, again, p, off)
}

func (s *Store) readEntry(ctx context.Context, e *entry, p []byte, off int64) error {
	if off < 0 || off > e.size || int64(len(p)) > e.size-off {
		return fault.New(fault.Corrupt, "read object", e.name, "it ends before offset %d", off+int64(len(p)))
	}
	r := s.reader(e)
	err := r.read(ctx, p, off)
	if len(r.bad) > 0 {
		s.stats.degradedReads.Add(1)
		s.log.Debug("read around damage", "object", e.name, "shards", len(r.bad))
	}
	return err
}

// span is a range of one shard's units and where its bytes go.
type span struct {
	shard int
	at    int64
	p     []byte
}

func (r *reader) read(ctx context.Context, p []byte, off int64) error {
	var spans []span
	for len(p) > 0 {
		shard, at, run := r.g.place(off)
		n := min(int(run), len(p))
		spans = append(spans, span{shard, at, p[:n]})
		p, off = p[n:], off+int64(n)
	}
	if len(spans) == 1 {
		return r.readSpan(ctx, spans[0])
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(4)
	for _, sp := range spans {
		work.Go(func() error { return r.readSpan(ctx, sp) })
	}
	return work.Wait()
}

func (r *reader) readSpan(ctx context.Context, sp span) error {
	first, last := sp.at/unitBytes, (sp.at+int64(len(sp.p))-1)/unitBytes
	buf := runPool.Get().(*[]byte)
	defer runPool.Put(buf)
	units, err := r.units(ctx, sp.shard, first, int(last-first+1), *buf)
	if err != nil {
		return err
	}
	in := int(sp.at - first*unitBytes)
	for done := 0; done < len(sp.p); {
		u := units[(in+done)/unitBytes]
		done += copy(sp.p[done:], u[(in+done)%unitBytes:])
	}
	return nil
}

// units returns count units of a shard, proven: from the shard itself, or computed from others. They may lie in buf.
func (r *reader) units(ctx context.Context, shard int, first int64, count int, buf []byte) ([][]byte, error) {
	slot, _ := r.file(shard)
	units, good := make([][]byte, count), 0
	if r.e.at[slot] != "" && r.e.group.members[slot].ready() {
		units, good = r.own(ctx, shard, first, count, buf)
	}
	if good < count {
		good = r.donated(ctx, shard, first, units)
	}
	if good == count {
		return units, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return r.rebuild(ctx, shard, first, units, nil)
}

// own reads units from the shard's own file and proves them; the ones that are not good are nil.
func (r *reader) own(ctx context.Context, shard int, first int64, count int, buf []byte) (units [][]byte, good int) {
	slot, name := r.file(shard)
	return r.from(ctx, r.e.group.members[slot], name, shard, first, count, buf)
}

// from is own, for a file of any member.
func (r *reader) from(ctx context.Context, m *member, name string, shard int, first int64, count int, buf []byte) (units [][]byte, good int) {
	units = make([][]byte, count)
	buf = buf[:r.g.runBytes(first, count)]
	slot, _ := r.file(shard)
	b, err := m.store()
	if err == nil {
		err = m.failed(b.ReadAt(ctx, name, buf, unitAt(first)))
	}
	if err != nil && fault.KindOf(err) == fault.Corrupt && count > 1 {
		// The disk could not read some of it, or it ends early: what can be read is.
		for i := range units {
			var n int
			at := i * (unitBytes + hashBytes)
			one, n := r.from(ctx, m, name, shard, first+int64(i), 1, buf[at:min(len(buf), at+unitBytes+hashBytes)])
			units[i], good = one[0], good+n
		}
		return units, good
	}
	if err != nil {
		r.note(slot, err.Error())
		return units, 0
	}
	seal := r.header(shard).sealer()
	var sum [hashBytes]byte
	for i := range units {
		n := r.g.unitLen(first + int64(i))
		u := buf[:n:n]
		if bytes.Equal(seal.sum(sum[:0], first+int64(i), u), buf[n:n+hashBytes]) {
			units[i] = u
			good++
		} else {
			r.s.stats.badUnits.Add(1)
			r.note(slot, fmt.Sprintf("its unit %d is not what was written", first+int64(i)))
		}
		buf = buf[n+hashBytes:]
	}
	return units, good
}

func (r *reader) note(slot int, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bad[slot] == "" {
		r.bad[slot] = why
	}
}

// rebuild computes the units that are nil from those of other shards. avoid, if set, names shards not to be used.
func (r *reader) rebuild(ctx context.Context, shard int, first int64, units [][]byte, avoid func(int) bool) ([][]byte, error) {
	count := len(units)
	shards := make([][][]byte, r.g.n) // by shard, by unit
	for _, other := range r.order(shard) {
		if r.enough(shards, units) {
			break
		}
		if avoid != nil && avoid(other) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		good := 0
		if shards[other], good = r.own(ctx, other, first, count, make([]byte, maxRun*(unitBytes+hashBytes))); good < count {
			r.donated(ctx, other, first, shards[other])
		}
	}
	if !r.enough(shards, units) {
		return nil, r.beyond()
	}
	for i := range units {
		if units[i] != nil {
			continue
		}
		if r.e.k == 1 { // a copy
			for _, other := range shards {
				if other != nil && other[i] != nil {
					units[i] = other[i]
				}
			}
			continue
		}
		row := make([][]byte, r.g.n)
		for j := range shards {
			if shards[j] != nil {
				row[j] = shards[j][i]
			}
		}
		want := make([]bool, r.g.n)
		want[shard] = true
		if err := r.e.group.code.ReconstructSome(row, want); err != nil {
			return nil, fault.Wrap(fault.Corrupt, "read object", r.e.name, err)
		}
		units[i] = row[shard]
	}
	r.s.stats.rebuiltUnits.Add(int64(count))
	return units, nil
}

// order returns the other shards, those of members that are well first.
func (r *reader) order(shard int) (out []int) {
	var later []int
	for i := 1; i < r.g.n; i++ {
		other := (shard + i) % r.g.n
		slot, _ := r.file(other)
		m := r.e.group.members[slot]
		switch {
		case r.e.at[slot] != "" && m.ready():
			out = append(out, other)
		case m.up():
			later = append(later, other)
		default:
			r.note(slot, "the member is not there")
		}
	}
	return append(out, later...)
}

// enough reports whether each unit that is wanted can be computed.
func (r *reader) enough(shards [][][]byte, units [][]byte) bool {
	for i := range units {
		if units[i] != nil {
			continue
		}
		n := 0
		for _, s := range shards {
			if s != nil && s[i] != nil {
				n++
			}
		}
		if n < r.e.k {
			return false
		}
	}
	return true
}

// beyond is the error for more damage than there is parity. If members that are away could help, it may work later.
func (r *reader) beyond() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	away, bad := 0, 0
	for slot, m := range r.e.group.members {
		why := r.bad[slot]
		switch {
		case !m.up():
			away++
			names = append(names, m.id+" is missing")
		case why != "":
			bad++
			names = append(names, m.id+": "+why)
		case r.e.at[slot] == "":
			bad++
			names = append(names, m.id+" has no part of it")
		}
	}
	err := errors.New(strings.Join(names, "; "))
	if bad <= r.g.n-r.e.k {
		return fault.Wrap(fault.Transient, "read object", r.e.name, err).Explain(
			fmt.Sprintf("Of the %d parts of this object %d are needed, and too many members that have one are missing.", r.g.n, r.e.k),
			"Bring the missing members of the erasure set back; nothing has to be written off yet.")
	}
	return fault.Wrap(fault.Corrupt, "read object", r.e.name, err).Explain(
		fmt.Sprintf("More of this object's %d parts are damaged than the %d that may be: it cannot be read.", r.g.n, r.g.n-r.e.k),
		"The restore points that need it are damaged unless another repository or copy has the same data; see verify for which. Check the disks named.")
}
