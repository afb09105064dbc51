package index

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

const (
	loadFolder  = "load"   // inside the index: a load's runs and tables, thrown away at the next open
	runEntries  = 1 << 20  // sorted in memory at a time, 28 MiB
	tableTarget = 64 << 20 // size of the tables a load makes
	recordBytes = idBytes + 8
)

// Loader adds many packs at once: their entries are sorted in runs on disk, merged, and taken in as whole tables, so
// each is written twice however many there are, and memory stays at two runs. Nothing of it is seen before Finish,
// which is atomic: a crash leaves all or nothing. Other Adds wait meanwhile.
type Loader struct {
	x     *Index
	dir   string
	size  int // of a run
	next  uint32
	packs []record
	known map[seal.ID]bool
	cur   []loaded
	spare []loaded
	runs  []*run
	busy  chan error // the run that is being sorted and written; nil: none
}

// loaded is an entry on its way: its key without the leading letter, and its value; or, with ofBlock as its value, a
// block's key and zeros. Both sorts are in the same runs, which are merged once for each.
type loaded struct {
	key [idBytes + 4]byte
	val uint32
}

const ofBlock = 1 << 31

func (a *loaded) compare(b *loaded) int {
	// Ids are hashes: the first eight bytes nearly always decide.
	if c := cmp.Compare(binary.BigEndian.Uint64(a.key[:]), binary.BigEndian.Uint64(b.key[:])); c != 0 {
		return c
	}
	// A pack that has an object twice counts with its last slot, as in Add: that one comes first, the other is left out.
	return cmp.Or(bytes.Compare(a.key[8:], b.key[8:]), cmp.Compare(b.val, a.val))
}

// Load starts a load; Finish or Abort must follow. An index in memory has none: nil.
func (x *Index) Load() (*Loader, error) {
	if x.dir == "" {
		return nil, nil
	}
	if err := x.log.broken(); err != nil {
		return nil, err
	}
	x.adding.Lock() // another load may have the folder until then
	dir := filepath.Join(x.dir, loadFolder)
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		x.adding.Unlock()
		return nil, fmt.Errorf("load index: %w", err)
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	return &Loader{x: x, dir: dir, size: runEntries, next: x.next, known: map[seal.ID]bool{}}, nil
}

// Add takes a pack. It is for one goroutine.
func (l *Loader) Add(d *pack.Directory) error {
	if _, ok := l.x.Pack(d.Header.ID); ok || l.known[d.Header.ID] {
		return nil
	}
	if l.next == ^uint32(0) || len(d.Entries) >= 1<<30 {
		return errors.New("index has no numbers left")
	}
	l.known[d.Header.ID] = true
	number := l.next
	l.next++
	l.packs = append(l.packs, record{Pack{d.Header.ID, d.Header.Kind, d.Size(), uint32(len(d.Entries))}, number})
	for slot := range d.Entries {
		e := loaded{val: uint32(slot) << 1}
		if len(d.Entries[slot].Refs) > 0 {
			e.val |= 1
		}
		copy(e.key[:], d.Entries[slot].ID[:idBytes])
		binary.BigEndian.PutUint32(e.key[idBytes:], number)
		if err := l.put(e); err != nil {
			return err
		}
	}
	return eachSampled(d, func(f chunk.Fingerprint) error {
		var key [blockKeyLen]byte
		blockKey(&key, f, number)
		e := loaded{val: ofBlock}
		copy(e.key[:], key[1:])
		return l.put(e)
	})
}

func (l *Loader) put(e loaded) error {
	if l.cur == nil {
		l.cur = make([]loaded, 0, l.size)
	}
	l.cur = append(l.cur, e)
	if len(l.cur) == l.size {
		return l.spill()
	}
	return nil
}

// spill gives the entries gathered to a goroutine that sorts and writes them.
func (l *Loader) spill() error {
	if err := l.wait(); err != nil {
		return err
	}
	full := l.cur
	l.cur, l.spare = l.spare[:0], full
	r := &run{name: filepath.Join(l.dir, fmt.Sprintf("run-%d", len(l.runs)))}
	l.runs = append(l.runs, r)
	l.busy = make(chan error, 1)
	go func() {
		slices.SortFunc(full, func(a, b loaded) int { return a.compare(&b) })
		l.busy <- r.write(full)
	}()
	return nil
}

func (l *Loader) wait() error {
	if l.busy == nil {
		return nil
	}
	err := <-l.busy
	l.busy = nil
	if err != nil {
		return fmt.Errorf("load index: %w", err)
	}
	return nil
}

// Finish makes everything that was added known, at once.
func (l *Loader) Finish(ctx context.Context) error {
	defer l.x.adding.Unlock()
	err := l.finish(ctx)
	if err != nil {
		err = fmt.Errorf("load index: %w", err)
	}
	return errors.Join(err, os.RemoveAll(l.dir))
}

// Abort throws away what was added.
func (l *Loader) Abort() error {
	defer l.x.adding.Unlock()
	return errors.Join(l.wait(), os.RemoveAll(l.dir))
}

func (l *Loader) finish(ctx context.Context) error {
	if err := l.x.gate.enter(); err != nil {
		return err
	}
	defer l.x.gate.leave()
	if len(l.cur) > 0 {
		if err := l.spill(); err != nil {
			return err
		}
	}
	if err := l.wait(); err != nil || len(l.packs) == 0 {
		return err
	}
	l.cur, l.spare = nil, nil
	tables, err := l.merge(ctx)
	if err != nil {
		return err
	}
	// Ingest waits until everything is written that is in memory under the same keys, on a full disk for ever.
	if err := l.x.flush(); err != nil {
		return err
	}
	if err := l.x.db.Ingest(ctx, tables); err != nil {
		return err
	}
	x := l.x
	x.mu.Lock()
	defer x.mu.Unlock()
	x.next = l.next
	for _, r := range l.packs {
		x.packs[r.ID] = r
		x.byNum[r.number] = r.ID
	}
	return nil
}

// merge writes tables of all entries and then of the packs' records: they come with their entries or not at all.
func (l *Loader) merge(ctx context.Context) ([]string, error) {
	out := &tables{x: l.x, dir: l.dir}
	for _, blocks := range []bool{true, false} { // in the order of their letters
		if err := l.mergeSort(ctx, out, blocks); err != nil {
			return nil, errors.Join(err, out.close())
		}
	}
	if err := out.set([]byte("n"), binary.BigEndian.AppendUint32(nil, l.next)); err != nil {
		return nil, errors.Join(err, out.close())
	}
	slices.SortFunc(l.packs, func(a, b record) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	for _, r := range l.packs {
		if err := out.set(packKey(r.ID), r.append(nil)); err != nil {
			return nil, errors.Join(err, out.close())
		}
	}
	return out.names, out.close()
}

// mergeSort writes the entries of blocks, or those of objects.
func (l *Loader) mergeSort(ctx context.Context, out *tables, blocks bool) error {
	m, err := newMerge(l.runs)
	if err != nil {
		return err
	}
	key := make([]byte, prefixLen+4)
	key[0] = 'c'
	if blocks {
		key = make([]byte, blockKeyLen)
		key[0] = 'b'
	}
	var buf [binary.MaxVarintLen32]byte
	for n, first := 0, true; ; n++ {
		e, ok, err := m.next()
		if err == nil && n%(1<<16) == 0 {
			err = ctx.Err()
		}
		if err != nil || !ok {
			return errors.Join(err, m.close())
		}
		if (e.val == ofBlock) != blocks || !first && bytes.Equal(key[1:], e.key[:len(key)-1]) {
			continue
		}
		first = false
		copy(key[1:], e.key[:])
		var val []byte
		if !blocks {
			val = binary.AppendUvarint(buf[:0], uint64(e.val))
		}
		if err := out.set(key, val); err != nil {
			return errors.Join(err, m.close())
		}
	}
}

// tables writes sorted keys to tables of a bounded size.
type tables struct {
	x     *Index
	dir   string
	names []string
	w     *sstable.Writer
	size  int
}

func (t *tables) set(key, val []byte) error {
	if t.w != nil && t.size >= tableTarget {
		if err := t.close(); err != nil {
			return err
		}
	}
	if t.w == nil {
		name := filepath.Join(t.dir, fmt.Sprintf("table-%d", len(t.names)))
		f, err := vfs.Default.Create(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		o := t.x.options.MakeWriterOptions(len(t.x.options.Levels)-1, t.x.db.TableFormat())
		t.w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), o)
		t.names, t.size = append(t.names, name), 0
	}
	t.size += len(key) + len(val)
	return t.w.Set(key, val)
}

func (t *tables) close() error {
	if t.w == nil {
		return nil
	}
	err := t.w.Close()
	t.w = nil
	return err
}
