package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// What Collect rewrites by itself: packs of which less than defaultCompact is needed, for that writes at most as much as
// it frees; then those of which less than spareCompact is needed, while more than deadLimit of all packs is needed by
// nothing. So nearly all of what is dead goes in time, and no byte is freed by writing more than four.
const (
	defaultCompact = 0.5
	spareCompact   = 0.8
	deadLimit      = 0.05
)

// victim is a pack of which little is needed.
type victim struct {
	index.Pack
	live  int64  // bytes
	count uint32 // entries needed when it was weighed
}

// weigh reports how much of the packs is needed, and returns those that should be rewritten, of which least is needed first.
func (r *Repository) weigh(ctx context.Context, o CollectOptions, p *plan, report *CollectReport) ([]victim, error) {
	threshold, spare := o.Compact, o.Compact
	if threshold == 0 {
		threshold, spare = defaultCompact, spareCompact
	}
	var mu sync.Mutex
	var victims, more []victim
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.o.Workers)
	for _, id := range p.kept {
		known, ok := r.idx.Pack(id)
		l := p.m.packs[id]
		if !ok || l.count >= known.Entries {
			mu.Lock()
			report.LiveBytes += p.there[id]
			mu.Unlock()
			continue
		}
		g.Go(func() error {
			live, err := r.liveBytes(ctx, known, l)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			report.LiveBytes += live
			report.DeadBytes += known.Size - live
			_, pinned := p.pinned[id]
			v := victim{known, live, l.count}
			sparse := v.sparse(threshold)
			switch suspect := r.idx.IsSuspect(id); {
			case sparse && suspect:
				report.PacksSuspect++
			case sparse && pinned:
				report.PacksPinned++
			case sparse:
				victims = append(victims, v)
				report.compacted(known.Size, live, 1)
				return nil
			case v.sparse(spare) && !suspect && !pinned:
				more = append(more, v)
			}
			report.LeftBytes += known.Size - live
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	victims = append(victims, enough(more, report)...)
	slices.SortFunc(victims, func(a, b victim) int { return cmp.Or(cmp.Compare(a.live, b.live), cmp.Compare(a.Size, b.Size)) })
	n := within(victims, o.Budget)
	report.PacksLater = len(victims) - n
	report.spared(victims[n:]...)
	return victims[:n], nil
}

// within returns how many of the packs can be rewritten by a budget.
func within(victims []victim, budget int64) int {
	if budget == 0 {
		return len(victims)
	}
	var moved int64
	for n, v := range victims {
		if moved += v.live; n > 0 && moved > budget {
			return n
		}
	}
	return len(victims)
}

// sparse reports whether less than a share of the pack is needed.
func (v victim) sparse(share float64) bool { return float64(v.live) < share*float64(v.Size) }

// enough returns as many of the packs, least needed first, as it takes for what is left dead to come below the limit.
func enough(packs []victim, report *CollectReport) []victim {
	slices.SortFunc(packs, func(a, b victim) int {
		return cmp.Or(cmp.Compare(float64(a.live)/float64(a.Size), float64(b.live)/float64(b.Size)), bytes.Compare(a.ID[:], b.ID[:]))
	})
	n := 0
	for ; n < len(packs) && float64(report.LeftBytes) > deadLimit*float64(report.LiveBytes+report.LeftBytes); n++ {
		report.compacted(packs[n].Size, packs[n].live, 1)
		report.LeftBytes -= packs[n].Size - packs[n].live
	}
	return packs[:n]
}

// compacted counts packs to be rewritten, or takes them back from the count.
func (c *CollectReport) compacted(size, live int64, sign int) {
	c.PacksCompacted += sign
	c.BytesCompacted += int64(sign) * size
	c.BytesRewritten += int64(sign) * live
	c.PacksKept -= sign
	c.BytesKept -= int64(sign) * size
}

// spared takes packs that stay from the count of those to be rewritten.
func (c *CollectReport) spared(victims ...victim) {
	for _, v := range victims {
		c.compacted(v.Size, v.live, -1)
		c.LeftBytes += v.Size - v.live
	}
}

// liveBytes returns what part of a pack's size is that of needed entries. One that is known to be damaged counts as a
// whole if its directory cannot be read; damage that is news is an error.
func (r *Repository) liveBytes(ctx context.Context, p index.Pack, l *live) (n int64, err error) {
	known := r.idx.IsSuspect(p.ID)
	rd, err := r.openPack(ctx, p.ID, p.Size)
	if err != nil {
		if damaged(err) && known {
			return p.Size, nil
		}
		return 0, err
	}
	for slot, bytes := range rd.Directory().Shares() {
		if l.has(uint32(slot)) {
			n += bytes
		}
	}
	return n, nil
}

// compaction rewrites packs. What is needed of them is first stored durably elsewhere, known to the index and proven
// there by its id; only then the index forgets the pack, and then it goes. So whoever looks an object up finds it at
// any time, and a crash leaves both copies at worst, of which a later compaction drops one.
type compaction struct {
	r       *Repository
	m       *marker
	victims map[seal.ID]struct{}
	report  *CollectReport
}

func (r *Repository) compact(ctx context.Context, m *marker, victims []victim, report *CollectReport) error {
	c := &compaction{r: r, m: m, victims: map[seal.ID]struct{}{}, report: report}
	for _, v := range victims {
		c.victims[v.ID] = struct{}{}
	}
	limit := int64(r.o.packBytes)
	for _, kind := range []pack.Kind{pack.Data, pack.Meta} {
		rest := slices.DeleteFunc(slices.Clone(victims), func(v victim) bool { return v.Kind != kind })
		for len(rest) > 0 {
			n, bytes := 1, rest[0].live
			for n < len(rest) && bytes+rest[n].live <= limit {
				bytes += rest[n].live
				n++
			}
			switch err := c.batch(ctx, kind, rest[:n]); {
			case err == nil:
				rest = rest[n:]
			case !full(err):
				c.report.spared(rest...)
				return err
			case n > 1: // what is rewritten in smaller steps frees room for the next
				limit = bytes / 2
			default:
				report.NoRoom = true
				r.log.Warn("repository is too full to rewrite packs", "packs", len(rest))
				c.report.spared(rest...)
				rest = nil
			}
		}
	}
	return nil
}

// batch rewrites a few packs of a kind into one. The error of a full disk leaves them all as they were.
func (c *compaction) batch(ctx context.Context, kind pack.Kind, victims []victim) error {
	mv := &move{c: c, kind: kind}
	var moved, stay []victim
	for _, v := range victims {
		err := mv.pack(ctx, v.Pack)
		switch {
		case err == nil:
			moved = append(moved, v)
		case damaged(err) && ctx.Err() == nil && mv.err == nil:
			c.r.log.Error("pack is not rewritten, it is damaged", "pack", pack.Name(v.ID), "err", err)
			stay = append(stay, v)
		default:
			return errors.Join(err, mv.abort())
		}
	}
	if err := mv.finish(ctx); err != nil {
		return err
	}
	fault.Point("store.compact.moved")
	if err := mv.prove(ctx); err != nil {
		return err
	}
	fault.Point("store.compact.proven")
	c.report.PacksSuspect += len(stay)
	c.report.spared(stay...)
	gone, err := c.commit(ctx, moved)
	if err != nil {
		return err
	}
	fault.Point("store.compact.forgotten")
	return c.r.remove(ctx, gone)
}

// commit makes the index forget packs whose needed entries are stored elsewhere, but not those that a session has
// come to rely on meanwhile, or of which more is needed now.
func (c *compaction) commit(ctx context.Context, moved []victim) ([]seal.ID, error) {
	if err := c.m.markAll(ctx); err != nil {
		return nil, err
	}
	defer c.r.gc.Unlock()
	if err := c.r.settled(); err != nil {
		return nil, err
	}
	pinned := c.r.pinned()
	var gone []seal.ID
	for _, v := range moved {
		_, waits := pinned[v.ID]
		switch {
		case c.r.idx.IsSuspect(v.ID):
			c.report.PacksSuspect++
		case waits || c.m.packs[v.ID].count != v.count:
			c.report.PacksPinned++
		default:
			gone = append(gone, v.ID)
			continue
		}
		c.report.spared(v)
	}
	return gone, c.r.forget(gone)
}

// elsewhere reports whether an entry has another copy that is needed too, stays, and serves all the same purposes:
// proven, whole, and with every block that is present here. Then it need not be moved.
func (c *compaction) elsewhere(ctx context.Context, from seal.ID, e *pack.Entry) (bool, error) {
	places, err := c.r.lookup(e.ID)
	if err != nil {
		return false, err
	}
	for _, at := range places {
		_, goes := c.victims[at.Pack]
		if at.Pack == from || goes || at.Refs || c.r.idx.IsSuspect(at.Pack) || !c.m.packs[at.Pack].has(at.Slot) {
			continue
		}
		_, other, err := c.r.entry(ctx, at)
		if err == nil && (other.ID != e.ID || other.Type != e.Type || other.Present&e.Present != e.Present) {
			continue
		}
		if err == nil {
			err = c.r.proveCopy(ctx, e.ID, at)
		}
		if err == nil {
			return true, nil
		}
		if !damaged(err) {
			return false, err
		}
	}
	return false, nil
}

// provePresent compares the blocks that are physically there with their fingerprints. Of an entry that is needed for
// some of its blocks only, what it refers to may be gone, so that its id proves nothing any more.
func (r *Repository) provePresent(ctx context.Context, rd *pack.Reader, e *pack.Entry, prints []chunk.Fingerprint) error {
	p, err := r.slice(ctx, rd, e)
	if err != nil {
		return err
	}
	whole := make([]byte, r.config.ChunkBytes)
	got := make([]chunk.Fingerprint, r.blocks)
	for i := range r.blocks {
		if from, ok := blockAt(e, uint8(i)); ok {
			copy(whole[i*chunk.BlockBytes:(i+1)*chunk.BlockBytes], p[from:])
		}
	}
	r.hasher.Prints(whole, got)
	for i := range r.blocks {
		if _, ok := blockAt(e, uint8(i)); ok && got[i] != prints[i] {
			return r.wrong(rd, e, Hash{})
		}
	}
	return nil
}
