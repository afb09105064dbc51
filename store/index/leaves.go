package index

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// What a leaf needs, worked out once, is kept under 'm' and the leaf's id: for each pack its number and runs of slots,
// the place of the leaf itself first. A pack's number is never given out again, so what is kept is good for as long as
// all of its packs are recorded and none is suspect.

const leafVersion = 1

// Span is a run of entries of a pack: the slots from From on.
type Span struct {
	Pack        seal.ID
	From, Count uint32
}

func leafKey(id chunk.Hash) []byte { return append([]byte{'m'}, id[:idBytes]...) }

// SetLeaf keeps what a leaf needs: own are the copies of the leaf, of which there must be one, needs everything else.
// Nothing is kept if a pack is not recorded or suspect.
func (x *Index) SetLeaf(id chunk.Hash, own, needs []Location) error {
	if err := x.enter(); err != nil {
		return err
	}
	defer x.leave()
	val, ok := x.encodeLeaf(own, needs)
	if !ok || x.behind() != nil {
		return nil
	}
	if err := x.db.Set(leafKey(id), val, pebble.NoSync); err != nil {
		return fmt.Errorf("keep needs of leaf: %w", err)
	}
	return nil
}

// slot is a place by the pack's number.
type slot struct{ pack, at uint32 }

func (x *Index) encodeLeaf(own, needs []Location) ([]byte, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	slots := make([]slot, 0, len(own)+len(needs))
	for _, places := range [][]Location{own, needs} {
		for _, l := range places {
			r, ok := x.packs[l.Pack]
			if !ok || x.suspects[l.Pack] {
				return nil, false
			}
			slots = append(slots, slot{r.number, l.Slot})
		}
	}
	if len(own) == 0 {
		return nil, false
	}
	val := binary.AppendUvarint([]byte{leafVersion}, uint64(slots[0].pack))
	val = binary.AppendUvarint(append(val, 1), uint64(slots[0].at))
	val = append(val, 1)
	slices.SortFunc(slots, func(a, b slot) int { return cmp.Or(cmp.Compare(a.pack, b.pack), cmp.Compare(a.at, b.at)) })
	slots = slices.Compact(slots)
	for len(slots) > 0 {
		n := 1
		for n < len(slots) && slots[n].pack == slots[0].pack {
			n++
		}
		val = appendRuns(binary.AppendUvarint(val, uint64(slots[0].pack)), slots[:n])
		slots = slots[n:]
	}
	return val, true
}

// appendRuns encodes ascending slots of one pack: the number of runs, then for each the gap before it and its length.
func appendRuns(val []byte, slots []slot) []byte {
	var runs []byte
	count, end := uint64(0), uint32(0)
	for i := 0; i < len(slots); {
		j := i + 1
		for j < len(slots) && slots[j].at == slots[j-1].at+1 {
			j++
		}
		runs = binary.AppendUvarint(runs, uint64(slots[i].at-end))
		runs = binary.AppendUvarint(runs, uint64(j-i))
		end = slots[j-1].at + 1
		count++
		i = j
	}
	return append(binary.AppendUvarint(val, count), runs...)
}

// Leaf appends what a leaf needs to dst, the place of the leaf itself first. ok is false if it is not known, or not any more.
func (x *Index) Leaf(dst []Span, id chunk.Hash) (spans []Span, ok bool, err error) {
	if err := x.enter(); err != nil {
		return dst, false, err
	}
	defer x.leave()
	val, closer, err := x.db.Get(leafKey(id))
	if errors.Is(err, pebble.ErrNotFound) {
		return dst, false, nil
	}
	if err != nil {
		return dst, false, fmt.Errorf("look up leaf: %w", err)
	}
	spans, ok = x.decodeLeaf(dst, val)
	return spans, ok, closer.Close()
}

func (x *Index) decodeLeaf(dst []Span, val []byte) ([]Span, bool) {
	if len(val) == 0 || val[0] != leafVersion {
		return dst, false
	}
	c := numbers{p: val[1:]}
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := dst
	for len(c.p) > 0 && !c.bad {
		number, runs := c.next(), c.next()
		id, ok := x.byNum[uint32(number)]
		if !ok || number > uint64(^uint32(0)) || x.suspects[id] {
			return dst, false
		}
		entries := uint64(x.packs[id].Entries)
		for end := uint64(0); runs > 0; runs-- {
			from := end + c.next()
			n := c.next()
			if c.bad || n == 0 || from > entries || n > entries-from {
				return dst, false
			}
			end = from + n
			out = append(out, Span{id, uint32(from), uint32(n)})
		}
	}
	return out, !c.bad && len(out) > len(dst)
}

// numbers reads varints until one is not there.
type numbers struct {
	p   []byte
	bad bool
}

func (c *numbers) next() uint64 {
	n, size := binary.Uvarint(c.p)
	if size <= 0 {
		c.bad, c.p = true, nil
		return 0
	}
	c.p = c.p[size:]
	return n
}

// SweepLeaves drops what is kept of leaves that are not wanted any more, or that is not good any more.
func (x *Index) SweepLeaves(wanted func(leaf Span) bool) (err error) {
	if err := x.gate.enter(); err != nil {
		return err
	}
	defer x.gate.leave()
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte("m"), UpperBound: []byte("n")})
	if err != nil {
		return fmt.Errorf("sweep leaves: %w", err)
	}
	b := x.db.NewBatch()
	defer func() { err = errors.Join(err, it.Close(), b.Close()) }()
	var spans []Span
	for it.First(); it.Valid(); it.Next() {
		var ok bool
		if spans, ok = x.decodeLeaf(spans[:0], it.Value()); ok && wanted(spans[0]) {
			continue
		}
		if err := b.Delete(it.Key(), nil); err != nil {
			return fmt.Errorf("sweep leaves: %w", err)
		}
		if b.Len() > 1<<20 {
			if err := b.Commit(pebble.NoSync); err != nil {
				return fmt.Errorf("sweep leaves: %w", err)
			}
			_ = b.Close()
			b = x.db.NewBatch()
		}
	}
	return b.Commit(pebble.NoSync)
}
