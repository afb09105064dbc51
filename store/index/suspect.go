package index

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/cairn-backup/cairn/store/seal"
)

// A suspect is a pack in which damage was found. Its record has the key 's' and the pack's id, and goes with the pack.

func suspectKey(id seal.ID) []byte { return append([]byte{'s'}, id[:]...) }

// loadSuspects follows loadPacks: marks of packs that are not recorded count for nothing.
func (x *Index) loadSuspects() error {
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte("s"), UpperBound: []byte("t")})
	if err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	for it.First(); it.Valid(); it.Next() {
		var id seal.ID
		if copy(id[:], it.Key()[1:]) != len(id) {
			continue
		}
		if _, ok := x.packs[id]; ok {
			x.suspects[id] = true
		}
	}
	if err := it.Close(); err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	return nil
}

// Suspect marks a recorded pack as damaged, durably, and reports whether it was not before. It counts from its return
// on even if it cannot be written.
func (x *Index) Suspect(id seal.ID) (bool, error) {
	if _, ok := x.Pack(id); !ok {
		return false, nil // without waiting for a load, which may be reading it just now
	}
	closed := x.gate.enter()
	if closed == nil {
		defer x.gate.leave()
	}
	x.adding.Lock()
	defer x.adding.Unlock()
	x.mu.Lock()
	if _, ok := x.packs[id]; !ok || x.suspects[id] {
		x.mu.Unlock()
		return false, nil
	}
	x.suspects[id] = true
	err := errors.Join(closed, x.log.broken())
	if err == nil {
		err = x.db.Set(suspectKey(id), nil, pebble.NoSync)
	}
	x.mu.Unlock()
	if err == nil && x.dir != "" {
		err = x.flush()
	}
	if err != nil {
		return true, fmt.Errorf("mark pack: %w", err)
	}
	return true, nil
}

// Acquit takes the mark from a pack.
func (x *Index) Acquit(id seal.ID) error {
	if err := x.enter(); err != nil {
		return err
	}
	defer x.leave()
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.db.Delete(suspectKey(id), pebble.NoSync); err != nil {
		return fmt.Errorf("unmark pack: %w", err)
	}
	delete(x.suspects, id)
	return nil
}

// IsSuspect reports whether a pack is marked.
func (x *Index) IsSuspect(id seal.ID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.suspects[id]
}

// AnySuspect reports whether any pack is marked.
func (x *Index) AnySuspect() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.suspects) > 0
}

// Suspects returns the marked packs in order of id.
func (x *Index) Suspects() []seal.ID {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(x.suspects), func(a, b seal.ID) int { return bytes.Compare(a[:], b[:]) })
}
