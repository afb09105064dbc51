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

// indexPacks reads the directories of packs, several at a time, and adds them; many of them at once, by a load.
func (r *Repository) indexPacks(ctx context.Context, packs map[seal.ID]int64) (err error) {
	if len(packs) == 0 {
		return nil
	}
	add := r.idx.Add
	if len(packs) >= bulkPacks {
		var l *index.Loader
		if l, err = r.idx.Load(); err != nil {
			return r.indexError(err)
		}
		if l != nil {
			add = l.Add
			whole := ctx
			defer func() {
				if err != nil {
					err = errors.Join(err, l.Abort())
				} else if err = l.Finish(whole); err != nil {
					err = r.indexError(err)
				}
			}()
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	todo := make(chan seal.ID)
	found := make(chan *pack.Directory, r.o.Workers)
	g.Go(func() error {
		defer close(todo)
		for id := range packs {
			select {
			case todo <- id:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	readers, readCtx := errgroup.WithContext(ctx)
	for range r.o.Workers {
		readers.Go(func() error {
			for id := range todo {
				d, err := r.readDirectory(readCtx, id, packs[id])
				if err != nil {
					return err
				}
				if d == nil {
					continue
				}
				select {
				case found <- d:
				case <-readCtx.Done():
					return readCtx.Err()
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(found)
		return readers.Wait()
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
	return g.Wait()
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
