// Package index finds, by an object's id, the packs that have it.
//
// It is a cache: everything in it is in the directories of the packs, and it may be lost or thrown away at any time.
// Its invariant: a pack is recorded in the same batch as its entries, so a recorded pack is wholly indexed; an entry
// whose pack is not recorded counts for nothing.
package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// An entry's key is 'c', the first idBytes of the object's id and the pack's number; its value the slot in the pack's
// directory, with the lowest bit set if it has references. 160 bits of a keyed hash tell objects apart; a reader compares the whole id anyway.
const (
	idBytes   = 20
	prefixLen = 1 + idBytes
	version   = "cairn index 2"
)

// Location is one stored copy of an object.
type Location struct {
	Pack seal.ID
	Slot uint32 // index into the pack's directory
	Refs bool   // it refers to blocks of other chunks
}

// Pack is an indexed pack.
type Pack struct {
	ID      seal.ID
	Kind    pack.Kind
	Size    int64
	Entries uint32
}

// Index maps ids to locations. It may be used from several goroutines.
type Index struct {
	db      *pebble.DB
	dir     string
	log     *logger
	options *pebble.Options
	scratch bool // goes with Close
	gate    gate

	adding sync.Mutex // numbers are recorded in the order they are given out

	mu       sync.RWMutex
	packs    map[seal.ID]record
	byNum    map[uint32]seal.ID
	next     uint32
	gone     map[uint32]uint32 // entries by number of packs that were forgotten since the last sweep
	suspects map[seal.ID]bool
	limit    int64 // of entries; 0: none
	held     int64 // entries of recorded packs, counted where there is a limit
}

type record struct {
	Pack
	number uint32
}

// Open opens the index of a repository in dir, or in memory if dir is empty. One that is damaged, of another
// repository or of another version is thrown away.
func Open(dir string, repository seal.ID, log *slog.Logger) (*Index, error) {
	x, err := open(dir, repository, log)
	if err == nil || dir == "" || errors.Is(err, errInUse) {
		return x, err
	}
	log.Warn("index is started afresh", "dir", dir, "err", err)
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("remove index: %w", err)
	}
	return open(dir, repository, log)
}

var errInUse = errors.New("index is in use")

func open(dir string, repository seal.ID, log *slog.Logger) (*Index, error) {
	lg := &logger{log: log, unwritten: make(chan error, 1)}
	cache := pebble.NewCache(64 << 20)
	defer cache.Unref()
	o := &pebble.Options{
		Cache: cache, Comparer: comparer(), Logger: lg, EventListener: lg.listener(), DisableWAL: true, MemTableSize: 16 << 20,
		FormatMajorVersion: pebble.FormatNewest, MaxOpenFiles: 200,
		// Pebble would make writers wait, on a full disk for ever: behind sends them away before that.
		MemTableStopWritesThreshold: backlog + 2, L0StopWritesThreshold: 1000,
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	if dir == "" {
		o.FS = vfs.NewMem()
	} else {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make index: %w: %w", errInUse, err)
		}
		lock, err := pebble.LockDirectory(dir, vfs.Default)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errInUse, err)
		}
		o.Lock = lock
		defer lock.Close()
	}
	if dir != "" {
		if err := os.RemoveAll(filepath.Join(dir, loadFolder)); err != nil {
			return nil, fmt.Errorf("open index: %w", err)
		}
	}
	o.EnsureDefaults()
	db, err := pebble.Open(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	x := &Index{db: db, dir: dir, log: lg, options: o, packs: map[seal.ID]record{}, byNum: map[uint32]seal.ID{}, gone: map[uint32]uint32{}, suspects: map[seal.ID]bool{}}
	if err := x.load(repository); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return x, nil
}

// comparer is bytewise, with the object's id as the prefix that filters know.
func comparer() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "cairn.index.2"
	c.Split = func(key []byte) int {
		if len(key) > prefixLen && key[0] == 'c' {
			return prefixLen
		}
		if len(key) > blockPrefixLen && key[0] == 'b' {
			return blockPrefixLen
		}
		return len(key)
	}
	return &c
}

func (x *Index) load(repository seal.ID) error {
	mark := append([]byte(version), repository[:]...)
	old, closer, err := x.db.Get([]byte("v"))
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		return x.db.Set([]byte("v"), mark, pebble.NoSync)
	case err != nil:
		return fmt.Errorf("read index: %w", err)
	}
	same := bytes.Equal(old, mark)
	if err := errors.Join(closer.Close(), x.loadPacks(), x.loadSuspects()); err != nil {
		return err
	}
	if !same {
		return errors.New("index is of another repository or version")
	}
	return nil
}

func (x *Index) loadPacks() error {
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte("p"), UpperBound: []byte("q")})
	if err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	for it.First(); it.Valid(); it.Next() {
		r, err := parseRecord(it.Key(), it.Value())
		if err != nil {
			return errors.Join(err, it.Close())
		}
		x.packs[r.ID] = r
		x.byNum[r.number] = r.ID
		x.next = max(x.next, r.number+1)
	}
	if err := it.Close(); err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	// Numbers of packs that are forgotten may still stand in entries, so none is given out twice.
	val, closer, err := x.db.Get([]byte("n"))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	if len(val) == 4 {
		x.next = max(x.next, binary.BigEndian.Uint32(val))
	}
	return closer.Close()
}

func packKey(id seal.ID) []byte { return append([]byte{'p'}, id[:]...) }

func (r record) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, r.number)
	dst = append(dst, byte(r.Kind))
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Size))
	return binary.BigEndian.AppendUint32(dst, r.Entries)
}

func parseRecord(key, val []byte) (r record, err error) {
	if len(key) != 17 || len(val) != 17 {
		return r, fmt.Errorf("index has a pack record of %d+%d bytes", len(key), len(val))
	}
	copy(r.ID[:], key[1:])
	r.number = binary.BigEndian.Uint32(val)
	r.Kind = pack.Kind(val[4])
	r.Size = int64(binary.BigEndian.Uint64(val[5:]))
	r.Entries = binary.BigEndian.Uint32(val[13:])
	return r, nil
}

// ErrTooLarge is the error of an Add beyond the limit.
var ErrTooLarge = errors.New("index is too large for memory")

// Limit bounds the entries of the index from now on.
func (x *Index) Limit(entries int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.limit, x.held = entries, 0
	for _, r := range x.packs {
		x.held += int64(r.Entries)
	}
}

// Add records a pack and all its entries.
func (x *Index) Add(d *pack.Directory) error {
	if err := x.enter(); err != nil {
		return err
	}
	defer x.leave()
	if err := x.behind(); err != nil {
		return err
	}
	x.adding.Lock()
	defer x.adding.Unlock()
	x.mu.Lock()
	if _, ok := x.packs[d.Header.ID]; ok {
		x.mu.Unlock()
		return nil
	}
	if x.limit > 0 && x.held+int64(len(d.Entries)) > x.limit {
		x.mu.Unlock()
		return fmt.Errorf("%w: more than %d entries", ErrTooLarge, x.limit)
	}
	r := record{Pack{d.Header.ID, d.Header.Kind, d.Size(), uint32(len(d.Entries))}, x.next}
	x.next++
	x.mu.Unlock()

	b := x.db.NewBatchWithSize(len(d.Entries)*40 + 64)
	defer b.Close()
	var key [prefixLen + 4]byte
	var buf [binary.MaxVarintLen64]byte
	for slot := range d.Entries {
		entryKey(&key, d.Entries[slot].ID, r.number)
		val := uint64(slot) << 1
		if len(d.Entries[slot].Refs) > 0 {
			val |= 1
		}
		if err := b.Set(key[:], binary.AppendUvarint(buf[:0], val), nil); err != nil {
			return fmt.Errorf("index pack: %w", err)
		}
	}
	if err := addBlocks(b, d, r.number); err != nil {
		return fmt.Errorf("index pack: %w", err)
	}
	if err := b.Set([]byte("n"), binary.BigEndian.AppendUint32(nil, r.number+1), nil); err != nil {
		return fmt.Errorf("index pack: %w", err)
	}
	if err := b.Set(packKey(r.ID), r.append(nil), nil); err != nil {
		return fmt.Errorf("index pack: %w", err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("index pack: %w", err)
	}
	fault.Point("store.index.pack-added")
	x.mu.Lock()
	defer x.mu.Unlock()
	x.packs[r.ID] = r
	x.byNum[r.number] = r.ID
	x.held += int64(r.Entries)
	return nil
}

// backlog is how many tables of entries wait in memory at most while the disk does not take them.
const backlog = 4

// behind answers an error when the disk has not taken what is in memory for so long that no more should be added:
// memory is bounded, and nobody waits for a full disk.
func (x *Index) behind() error {
	failed := x.log.failing.Load()
	if failed == nil || x.db.Metrics().MemTable.Count < backlog {
		return nil
	}
	return fmt.Errorf("index cannot be written: %w", *failed)
}

func entryKey(key *[prefixLen + 4]byte, id chunk.Hash, number uint32) {
	key[0] = 'c'
	copy(key[1:], id[:idBytes])
	binary.BigEndian.PutUint32(key[prefixLen:], number)
}

// Lookup appends every known location of id to dst, oldest pack first.
func (x *Index) Lookup(dst []Location, id chunk.Hash) ([]Location, error) {
	if err := x.enter(); err != nil {
		return dst, err
	}
	defer x.leave()
	var prefix, end [prefixLen + 4]byte
	entryKey(&prefix, id, 0)
	entryKey(&end, id, ^uint32(0))
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: prefix[:prefixLen], UpperBound: end[:]})
	if err != nil {
		return dst, fmt.Errorf("look up: %w", err)
	}
	dst, err = x.places(dst, it, prefix[:])
	return dst, errors.Join(err, it.Close())
}

// places appends the known locations of the object that prefix is of.
func (x *Index) places(dst []Location, it *pebble.Iterator, prefix []byte) ([]Location, error) {
	for ok := it.SeekPrefixGE(prefix); ok; ok = it.Next() {
		key := it.Key()
		slot, n := binary.Uvarint(it.Value())
		if len(key) != prefixLen+4 || n <= 0 {
			return dst, errors.New("look up: index entry is malformed")
		}
		x.mu.RLock()
		id, known := x.byNum[binary.BigEndian.Uint32(key[prefixLen:])]
		x.mu.RUnlock()
		if known {
			dst = append(dst, Location{Pack: id, Slot: uint32(slot >> 1), Refs: slot&1 != 0})
		}
	}
	return dst, nil
}

// LookupAll calls fn with every known location of each id, as of one moment. The locations are good until fn returns.
func (x *Index) LookupAll(ids []chunk.Hash, fn func(id chunk.Hash, places []Location) error) (err error) {
	if err := x.enter(); err != nil {
		return err
	}
	defer x.leave()
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte("c"), UpperBound: []byte("d")})
	if err != nil {
		return fmt.Errorf("look up: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	var prefix [prefixLen + 4]byte
	var places []Location
	for _, id := range ids {
		entryKey(&prefix, id, 0)
		if places, err = x.places(places[:0], it, prefix[:]); err != nil {
			return err
		}
		if err := it.Error(); err != nil {
			return fmt.Errorf("look up: %w", err)
		}
		if err := fn(id, places); err != nil {
			return err
		}
	}
	return nil
}

// Packs returns the recorded packs in order of id.
func (x *Index) Packs() []Pack {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]Pack, 0, len(x.packs))
	for _, r := range x.packs {
		out = append(out, r.Pack)
	}
	slices.SortFunc(out, func(a, b Pack) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return out
}

// Pack returns the record of one pack.
func (x *Index) Pack(id seal.ID) (Pack, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	r, ok := x.packs[id]
	return r.Pack, ok
}

// Forget drops packs. From its return on no Lookup answers with them; what is left of their entries costs room until
// Sweep.
func (x *Index) Forget(ids ...seal.ID) error {
	if err := x.gate.enter(); err != nil {
		return err
	}
	defer x.gate.leave()
	b := x.db.NewBatch()
	defer b.Close()
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range ids {
		r, ok := x.packs[id]
		if !ok {
			continue
		}
		x.gone[r.number] = r.Entries
		x.held -= int64(r.Entries)
		delete(x.packs, id)
		delete(x.byNum, r.number)
		delete(x.suspects, id)
		if err := errors.Join(b.Delete(packKey(id), nil), b.Delete(suspectKey(id), nil)); err != nil {
			return fmt.Errorf("forget packs: %w", err)
		}
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("forget packs: %w", err)
	}
	return nil
}

// Forgotten reports whether packs were forgotten whose entries are not swept.
func (x *Index) Forgotten() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.gone) > 0
}

// Tidy sweeps if there is much to sweep: reading all of the index for a few entries is not worth it.
func (x *Index) Tidy() error {
	x.mu.RLock()
	var there, gone int64
	for _, r := range x.packs {
		there += int64(r.Entries)
	}
	for _, n := range x.gone {
		gone += int64(n)
	}
	x.mu.RUnlock()
	if gone <= there/8 {
		return nil
	}
	return x.Sweep()
}

// Sweep removes every entry, also of the sparse index of blocks, whose pack is not recorded.
func (x *Index) Sweep() error {
	if err := x.gate.enter(); err != nil {
		return err
	}
	defer x.gate.leave()
	// An Add that is half-way must not look like a pack that was forgotten; later ones the iterator does not see.
	x.adding.Lock()
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte("b"), UpperBound: []byte("d")})
	x.mu.Lock()
	recorded := make(map[uint32]struct{}, len(x.byNum))
	for number := range x.byNum {
		recorded[number] = struct{}{}
	}
	x.gone = map[uint32]uint32{}
	x.mu.Unlock()
	x.adding.Unlock()
	if err != nil {
		return fmt.Errorf("sweep index: %w", err)
	}
	b := x.db.NewBatch()
	defer func() { b.Close() }()
	for it.First(); it.Valid(); it.Next() {
		number, ok := keyNumber(it.Key())
		if !ok {
			continue
		}
		if _, ok := recorded[number]; ok {
			continue
		}
		if err := b.Delete(it.Key(), nil); err != nil {
			return errors.Join(err, it.Close())
		}
		if b.Len() > 4<<20 {
			if err := errors.Join(x.behind(), b.Commit(pebble.NoSync)); err != nil {
				return errors.Join(err, it.Close())
			}
			b.Close()
			b = x.db.NewBatch()
		}
	}
	return errors.Join(it.Close(), b.Commit(pebble.NoSync))
}

// keyNumber returns the pack's number in the key of an object's or a block's entry.
func keyNumber(key []byte) (uint32, bool) {
	switch {
	case len(key) == prefixLen+4 && key[0] == 'c':
		return binary.BigEndian.Uint32(key[prefixLen:]), true
	case len(key) == blockKeyLen && key[0] == 'b':
		return ^binary.BigEndian.Uint32(key[blockPrefixLen:]), true
	}
	return 0, false
}

// Dump returns every entry that counts, for comparing an index with one that was built anew.
func (x *Index) Dump() (map[string]Location, error) {
	if err := x.gate.enter(); err != nil {
		return nil, err
	}
	defer x.gate.leave()
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte("c"), UpperBound: []byte("d")})
	if err != nil {
		return nil, fmt.Errorf("dump index: %w", err)
	}
	x.mu.RLock()
	byNum := maps.Clone(x.byNum)
	x.mu.RUnlock()
	out := map[string]Location{}
	for it.First(); it.Valid(); it.Next() {
		key := it.Key()
		slot, _ := binary.Uvarint(it.Value())
		if id, ok := byNum[binary.BigEndian.Uint32(key[prefixLen:])]; ok {
			out[string(key[1:prefixLen])+string(id[:])] = Location{id, uint32(slot >> 1), slot&1 != 0}
		}
	}
	return out, it.Close()
}

// flush writes what is in memory, once: Pebble would try for ever on a disk that does not take it.
func (x *Index) flush() error {
	select {
	case <-x.log.unwritten: // of an earlier time
	default:
	}
	done, err := x.db.AsyncFlush()
	if err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	select {
	case <-done:
		fault.Point("store.index.flushed")
		return nil
	case err := <-x.log.unwritten:
		return fmt.Errorf("write index: %w", err)
	}
}

// Close waits for the calls that are running, writes what is in memory and closes the index; later calls that would
// read or write it answer an error of kind Conflict. One that cannot be written is thrown away: it is a cache.
func (x *Index) Close() error {
	if !x.gate.shut() {
		return nil
	}
	if x.scratch {
		return errors.Join(x.db.Close(), os.RemoveAll(x.dir))
	}
	err := x.log.broken()
	if err == nil && x.dir != "" {
		err = x.flush()
	}
	err = errors.Join(err, x.db.Close())
	if err == nil || x.dir == "" {
		return nil
	}
	x.log.log.Warn("index is thrown away", "dir", x.dir, "err", err)
	return os.RemoveAll(x.dir)
}
