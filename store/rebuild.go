package store

import (
	"cmp"
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// memoryLimit is how many entries an index has at most that is in memory because its disk does not take it: 1 or 2 GiB.
const memoryLimit = 20_000_000

// bulkPacks is how many packs are worth a load of the index.
const bulkPacks = 64

// openIndex opens the index and makes it agree with the packs that are there. It is a cache: where it cannot be kept,
// it is built in memory.
func (r *Repository) openIndex(ctx context.Context) (err error) {
	dir := r.o.IndexDir
	switch {
	case dir == "":
		r.idx, err = index.Open("", r.id, r.log)
	case r.o.ReadOnly: // the one on disk is the owner's
		r.idx, err = index.OpenScratch(dir, r.id, r.log)
	default:
		r.idx, err = index.Open(dir, r.id, r.log)
	}
	if err != nil && dir != "" {
		return r.indexInMemory(ctx, err)
	}
	if err != nil {
		return fault.Wrap(fault.Internal, "open index of repository", r.b.Location(), err)
	}
	fault.Point("store.open.index-opened")
	if err = r.syncIndex(ctx); full(err) && dir != "" {
		return r.indexInMemory(ctx, errors.Join(err, r.idx.Close()))
	}
	return err
}

func (r *Repository) indexInMemory(ctx context.Context, cause error) (err error) {
	r.log.Warn("index is kept in memory", "dir", r.o.IndexDir, "err", cause)
	if r.idx, err = index.Open("", r.id, r.log); err != nil {
		return fault.Wrap(fault.Internal, "open index of repository", r.b.Location(), err)
	}
	r.idx.Limit(cmp.Or(r.o.memoryEntries, memoryLimit))
	if err = r.syncIndex(ctx); errors.Is(err, index.ErrTooLarge) {
		return fault.Wrap(fault.Transient, "open index of repository", r.b.Location(), errors.Join(err, cause)).Explain(
			"The index of this repository cannot be kept in its folder, and the repository is too large for one in memory.",
			"Make room in, or mend, the folder "+r.o.IndexDir+"; then open the repository again.")
	}
	return err
}

// goneSince returns the indexed packs that are not there, or have another size, by a listing and a second look: they may
// have been written since the listing.
func (r *Repository) goneSince(ctx context.Context, there map[seal.ID]int64) (gone []seal.ID, err error) {
	for _, p := range r.idx.Packs() {
		if size, ok := there[p.ID]; ok && size == p.Size {
			continue
		}
		really, err := r.reallyGone(ctx, p.ID, p.Size)
		if err != nil {
			return nil, err
		}
		if really {
			gone = append(gone, p.ID)
		}
	}
	return gone, nil
}

// syncIndex drops from the index the packs that are gone and adds those it does not know.
func (r *Repository) syncIndex(ctx context.Context) error {
	there, err := r.listPacks(ctx)
	if err != nil {
		return err
	}
	gone, err := r.goneSince(ctx, there)
	if err != nil {
		return err
	}
	for _, id := range gone {
		r.log.Warn("pack is missing or has another size", "pack", pack.Name(id))
	}
	if len(gone) > 0 && !r.o.ReadOnly { // a reader may see what the owner removed rightly
		r.noteLoss()
	}
	if err := errors.Join(r.forget(gone), r.idx.Tidy()); err != nil {
		return r.indexError(err)
	}
	for id := range there {
		if _, ok := r.idx.Pack(id); ok {
			delete(there, id)
		}
	}
	if err := r.indexPacks(ctx, there); err != nil {
		return err
	}
	changed := len(gone) > 0
	for id := range there {
		_, ok := r.idx.Pack(id)
		changed = changed || ok
	}
	if changed {
		r.packsSeen.Add(1)
	}
	return nil
}

// catchUpEvery is how often at most a reader looks at the packs again because it misses something.
const catchUpEvery = time.Second

// catchUp makes the index of a read-only repository agree with the packs that are there now, and reports whether it
// did: its owner, in another process, may have moved what this one is looking for. Unless it is forced, it is not done
// again at once.
func (r *Repository) catchUp(force bool) bool {
	if !r.o.ReadOnly {
		return false
	}
	begun := time.Now()
	r.catching.Lock()
	defer r.catching.Unlock()
	if r.caughtUp.After(begun) {
		return true // by somebody this one waited for
	}
	if !force && time.Since(r.caughtUp) < catchUpEvery {
		return false
	}
	r.caughtUp = time.Now()
	if err := r.syncIndex(context.Background()); err != nil {
		r.log.Warn("packs cannot be looked at again", "err", err)
		return false
	}
	return true
}

// indexPacks reads the directories of packs, several at a time, and adds them.
func (r *Repository) indexPacks(ctx context.Context, packs map[seal.ID]int64) error {
	if len(packs) == 0 {
		return nil
	}
	add, end, err := r.adding(len(packs))
	if err != nil {
		return r.indexError(err)
	}
	g, within := errgroup.WithContext(ctx)
	found := make(chan *pack.Directory, r.o.Workers)
	g.Go(func() error {
		defer close(found)
		return r.readDirectories(within, packs, found)
	})
	g.Go(func() error {
		for d := range found {
			if err := add(d); err != nil {
				return r.indexError(err)
			}
			fault.Point("store.open.pack-indexed")
		}
		return nil
	})
	return end(ctx, g.Wait())
}

// adding returns how to add some packs to the index, many of them at once by a load, and how to end that.
func (r *Repository) adding(packs int) (add func(*pack.Directory) error, end func(context.Context, error) error, err error) {
	var l *index.Loader
	if packs >= bulkPacks {
		l, err = r.idx.Load()
	}
	if err != nil || l == nil {
		return r.idx.Add, func(_ context.Context, err error) error { return err }, err
	}
	return l.Add, func(ctx context.Context, err error) error {
		if err != nil {
			return errors.Join(err, l.Abort())
		}
		if err := l.Finish(ctx); err != nil {
			return r.indexError(err)
		}
		return nil
	}, nil
}

// readDirectories sends the directories of packs, as many at a time as there are workers.
func (r *Repository) readDirectories(ctx context.Context, packs map[seal.ID]int64, found chan<- *pack.Directory) error {
	readers, within := errgroup.WithContext(ctx)
	readers.SetLimit(r.o.Workers)
	for id, size := range packs {
		if within.Err() != nil {
			break
		}
		readers.Go(func() error {
			d, err := r.readDirectory(within, id, size)
			if err != nil || d == nil {
				return err
			}
			select {
			case found <- d:
				return nil
			case <-within.Done():
				return within.Err()
			}
		})
	}
	if err := readers.Wait(); err != nil {
		return err
	}
	return ctx.Err() // what was not begun
}

func (r *Repository) indexError(err error) error {
	return fault.Wrap(fault.Internal, "update index of repository", r.b.Location(), err)
}

// readDirectory reads what the index has to know of a pack; nil if that cannot be known.
func (r *Repository) readDirectory(ctx context.Context, id seal.ID, size int64) (*pack.Directory, error) {
	rd, err := r.openPack(ctx, id, size)
	switch kind := fault.KindOf(err); {
	case err == nil:
	case kind == fault.NotFound && r.o.ReadOnly:
		return nil, nil // collected by the owner since the listing
	case kind == fault.Corrupt || kind == fault.Unsupported:
		// Whoever needs what is in it will be told; the rest of the repository goes on.
		r.log.Error("pack cannot be indexed", "pack", pack.Name(id), "err", err)
		r.noteLoss()
		return nil, nil
	default:
		return nil, err
	}
	d := rd.Directory()
	if d.Header.Kind != pack.Data {
		return d, nil
	}
	if d.Prints, err = rd.Prints(ctx); err != nil {
		// What is stored in the pack is not touched by this: only its blocks are not found for new chunks.
		if err = r.packError(id, err); fault.KindOf(err) != fault.Corrupt {
			return nil, err
		}
		r.log.Error("fingerprints of pack cannot be read", "pack", pack.Name(id), "err", err)
	}
	return d, nil
}
