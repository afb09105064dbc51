package index

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// The sparse index of blocks: of the blocks that are physically in a pack those whose fingerprint has a fixed bit
// pattern, one in SampleEvery. A key is 'b', the first blockBytes of the fingerprint and the complement of the pack's
// number, so that of several packs the newest comes first; there is no value. It finds packs worth looking into, no more.
const (
	SampleEvery    = 64
	blockBytes     = 8
	blockPrefixLen = 1 + blockBytes
	blockKeyLen    = blockPrefixLen + 4
)

// Sampled reports whether the sparse index has blocks of this fingerprint.
func Sampled(f chunk.Fingerprint) bool {
	return f[15]&(SampleEvery-1) == 0 && f != chunk.Fingerprint{}
}

func blockKey(key *[blockKeyLen]byte, f chunk.Fingerprint, number uint32) {
	key[0] = 'b'
	copy(key[1:], f[:blockBytes])
	binary.BigEndian.PutUint32(key[blockPrefixLen:], ^number)
}

// eachSampled calls fn with the sampled fingerprints of a pack's blocks, if they are known.
func eachSampled(d *pack.Directory, fn func(chunk.Fingerprint) error) error {
	if len(d.Prints) != len(d.Entries)*d.Blocks {
		return nil
	}
	for slot := range d.Entries {
		present := d.Entries[slot].Present
		for i, f := range d.Prints[slot*d.Blocks : (slot+1)*d.Blocks] {
			if present&(1<<i) == 0 || !Sampled(f) {
				continue
			}
			if err := fn(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// addBlocks indexes the blocks of a pack.
func addBlocks(b *pebble.Batch, d *pack.Directory, number uint32) error {
	return eachSampled(d, func(f chunk.Fingerprint) error {
		var key [blockKeyLen]byte
		blockKey(&key, f, number)
		return b.Set(key[:], nil, nil)
	})
}

// PacksWith appends to dst the newest packs, at most max, that may physically have a block of this fingerprint.
func (x *Index) PacksWith(dst []seal.ID, f chunk.Fingerprint, max int) ([]seal.ID, error) {
	if err := x.enter(); err != nil {
		return dst, err
	}
	defer x.leave()
	var from, to [blockKeyLen]byte
	blockKey(&from, f, ^uint32(0))
	blockKey(&to, f, 0)
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: from[:], UpperBound: append(to[:], 0)})
	if err != nil {
		return dst, fmt.Errorf("look up block: %w", err)
	}
	for ok := it.SeekPrefixGE(from[:]); ok && max > 0; ok = it.Next() {
		if len(it.Key()) != blockKeyLen {
			return dst, errors.Join(errors.New("look up block: index entry is malformed"), it.Close())
		}
		x.mu.RLock()
		id, known := x.byNum[^binary.BigEndian.Uint32(it.Key()[blockPrefixLen:])]
		x.mu.RUnlock()
		if known {
			dst = append(dst, id)
			max--
		}
	}
	return dst, it.Close()
}

// Sound reports whether a pack is recorded and not suspect.
func (x *Index) Sound(id seal.ID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, known := x.packs[id]
	return known && !x.suspects[id]
}

// DumpBlocks returns every entry of the sparse index that counts, for comparing it with one that was built anew.
func (x *Index) DumpBlocks() (map[string]bool, error) {
	if err := x.gate.enter(); err != nil {
		return nil, err
	}
	defer x.gate.leave()
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte("b"), UpperBound: []byte("c")})
	if err != nil {
		return nil, fmt.Errorf("dump index: %w", err)
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := map[string]bool{}
	for it.First(); it.Valid(); it.Next() {
		key := it.Key()
		if id, ok := x.byNum[^binary.BigEndian.Uint32(key[blockPrefixLen:])]; ok {
			out[string(key[1:blockPrefixLen])+string(id[:])] = true
		}
	}
	return out, it.Close()
}
