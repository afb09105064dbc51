package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/cairn-backup/cairn/store/seal"
)

// What reading back has proven is kept beside the entries: under 'y' and a pack's id when all of the pack was last
// read and whether it was good, under 'z' notes of the engine by name. Like all of the index it may be lost: then
// reading back begins anew.

// Proof says when a pack was read from end to end, and what came of it.
type Proof struct {
	Time time.Time
	Good bool
}

func proofKey(id seal.ID) []byte { return append([]byte{'y'}, id[:]...) }

func noteKey(name string) []byte { return append([]byte{'z'}, name...) }

// SetProof records a reading of a recorded pack.
func (x *Index) SetProof(id seal.ID, p Proof) error {
	if err := x.enter(); err != nil {
		return err
	}
	defer x.leave()
	val := binary.BigEndian.AppendUint64(nil, uint64(p.Time.UnixNano()))
	val = append(val, 0)
	if p.Good {
		val[8] = 1
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	if _, ok := x.packs[id]; !ok {
		return nil
	}
	if err := x.db.Set(proofKey(id), val, pebble.NoSync); err != nil {
		return fmt.Errorf("record proof: %w", err)
	}
	return nil
}

// Proofs returns what is known of each recorded pack that was ever read whole, and drops what is known of others.
func (x *Index) Proofs() (map[seal.ID]Proof, error) {
	if err := x.gate.enter(); err != nil {
		return nil, err
	}
	defer x.gate.leave()
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte("y"), UpperBound: []byte("z")})
	if err != nil {
		return nil, fmt.Errorf("read proofs: %w", err)
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := map[seal.ID]Proof{}
	for it.First(); it.Valid(); it.Next() {
		var id seal.ID
		key, val := it.Key(), it.Value()
		if len(key) == 1+len(id) && len(val) == 9 {
			copy(id[:], key[1:])
			if _, ok := x.packs[id]; ok {
				out[id] = Proof{time.Unix(0, int64(binary.BigEndian.Uint64(val))).UTC(), val[8] == 1}
				continue
			}
		}
		if err := x.db.Delete(key, pebble.NoSync); err != nil {
			return nil, errors.Join(err, it.Close())
		}
	}
	return out, it.Close()
}

// Number returns the number a recorded pack got when it was added: later ones have higher numbers.
func (x *Index) Number(id seal.ID) (uint32, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	r, ok := x.packs[id]
	return r.number, ok
}

// NextNumber returns the number that the next pack to be added will get.
func (x *Index) NextNumber() uint32 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.next
}

// SetNote records a note; without a value it is dropped.
func (x *Index) SetNote(name string, val []byte) error {
	if err := x.enter(); err != nil {
		return err
	}
	defer x.leave()
	var err error
	if val == nil {
		err = x.db.Delete(noteKey(name), pebble.NoSync)
	} else {
		err = x.db.Set(noteKey(name), val, pebble.NoSync)
	}
	if err != nil {
		return fmt.Errorf("record note: %w", err)
	}
	return nil
}

// Notes returns the notes whose names start with prefix, by what follows it.
func (x *Index) Notes(prefix string) (map[string][]byte, error) {
	if err := x.gate.enter(); err != nil {
		return nil, err
	}
	defer x.gate.leave()
	lower := noteKey(prefix)
	upper := append(noteKey(prefix), 0xff)
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, fmt.Errorf("read notes: %w", err)
	}
	out := map[string][]byte{}
	for it.First(); it.Valid(); it.Next() {
		out[string(it.Key()[len(lower):])] = append([]byte(nil), it.Value()...)
	}
	return out, it.Close()
}

// Flush makes what is recorded survive the process.
func (x *Index) Flush() error {
	if x.dir == "" {
		return nil
	}
	if err := x.enter(); err != nil {
		return err
	}
	defer x.leave()
	x.adding.Lock() // as Suspect: one flush at a time hears of what could not be written
	defer x.adding.Unlock()
	return x.flush()
}
