package store

import (
	"cmp"
	"context"
	"maps"
	"math/bits"
	"slices"

	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/tree"
)

// leaf is a leaf of the tree being written: 256 chunks of which some are set. Leaves that are complete are stored at
// once, and of the others only some are kept, so memory does not grow with the disk.
type leaf struct {
	ids  [tree.FanOut]Hash
	set  [tree.FanOut / 64]uint64
	tick uint64
}

func (l *leaf) has(i int64) bool { return l.set[i/64]&(1<<(i%64)) != 0 }

func (l *leaf) count() (n int64) {
	for _, s := range l.set {
		n += int64(bits.OnesCount64(s))
	}
	return n
}

// inLeaf returns how many chunks a leaf has.
func (w *ImageWriter) inLeaf(number int64) int64 {
	return min(tree.FanOut, w.chunks-number*tree.FanOut)
}

// setLeaf records a chunk.
func (w *ImageWriter) setLeaf(ctx context.Context, chunkNumber int64, id Hash) error {
	number := chunkNumber / tree.FanOut
	at := chunkNumber % tree.FanOut
	w.mu.Lock()
	l := w.leaves[number]
	if l == nil {
		l = &leaf{}
		w.leaves[number] = l
	}
	w.tick++
	l.tick = w.tick
	l.ids[at] = id
	l.set[at/64] |= 1 << (at % 64)
	complete := l.count() == w.inLeaf(number)
	if complete {
		delete(w.leaves, number)
	}
	tooMany := len(w.leaves) > w.maxDirty
	w.mu.Unlock()
	if complete {
		if err := w.storeLeaf(ctx, number, l); err != nil {
			return err
		}
	}
	if tooMany {
		return w.spill(ctx)
	}
	return nil
}

// spill stores the leaves not touched for longest. One at a time: a leaf that is touched again meanwhile must find
// what was stored of it when its own turn comes.
func (w *ImageWriter) spill(ctx context.Context) error {
	w.spilling.Lock()
	defer w.spilling.Unlock()
	w.mu.Lock()
	oldest := w.takeOldest()
	w.mu.Unlock()
	for n, l := range oldest {
		if err := w.storeLeaf(ctx, n, l); err != nil {
			return err
		}
	}
	return nil
}

// takeOldest removes the half of the leaves not touched for longest when there are too many. w.mu is held.
func (w *ImageWriter) takeOldest() map[int64]*leaf {
	if len(w.leaves) <= w.maxDirty {
		return nil
	}
	numbers := make([]int64, 0, len(w.leaves))
	for n := range w.leaves {
		numbers = append(numbers, n)
	}
	slices.SortFunc(numbers, func(a, b int64) int { return cmp.Compare(w.leaves[a].tick, w.leaves[b].tick) })
	out := map[int64]*leaf{}
	for _, n := range numbers[:len(numbers)/2] {
		out[n] = w.leaves[n]
		delete(w.leaves, n)
	}
	return out
}

// wholeLeaves returns the first and the end of the leaves that lie whole in a range of chunks that begins with a leaf.
func (w *ImageWriter) wholeLeaves(number, end int64) (first, last int64) {
	first, last = number/tree.FanOut, end/tree.FanOut
	if number%tree.FanOut != 0 {
		return first, first
	}
	if end == w.chunks && end%tree.FanOut != 0 {
		last++
	}
	return first, last
}

// zeroLeaves records leaves as zeros: those that this writer or the parent has are all that it takes.
func (w *ImageWriter) zeroLeaves(ctx context.Context, first, end int64) error {
	w.spilling.Lock() // what is being stored of them must not be recorded after this
	defer w.spilling.Unlock()
	w.mu.Lock()
	dropRange(w.leaves, first, end)
	dropRange(w.done, first, end)
	w.mu.Unlock()
	if w.parent == nil {
		return nil
	}
	return w.s.r.eachLeaf(ctx, *w.parent, first, end, func(number int64, _ Hash) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.recordLeaf(number, Hash{})
		return nil
	})
}

// dropRange deletes a range of numbers from a map, in the time that the smaller of the two takes.
func dropRange[V any](m map[int64]V, first, end int64) {
	if int64(len(m)) < end-first {
		maps.DeleteFunc(m, func(n int64, _ V) bool { return first <= n && n < end })
		return
	}
	for n := first; n < end; n++ {
		delete(m, n)
	}
}

// recordLeaf remembers a stored leaf. Zeros where nothing else would be are nothing to remember. w.mu is held.
func (w *ImageWriter) recordLeaf(number int64, id Hash) {
	if id.IsZero() && w.parent == nil {
		delete(w.done, number)
		return
	}
	w.done[number] = id
}

// storeLeaf fills a leaf up from what was there before and stores it.
func (w *ImageWriter) storeLeaf(ctx context.Context, number int64, l *leaf) error {
	n := &tree.Node{Children: l.ids}
	if l.count() < w.inLeaf(number) {
		base, err := w.baseLeaf(ctx, number)
		if err != nil {
			return err
		}
		if base != nil {
			for i := range w.inLeaf(number) {
				if !l.has(i) {
					n.Children[i] = base.Children[i]
				}
			}
		}
	}
	var id Hash
	if !n.IsZero() {
		var err error
		if id, err = w.s.putObject(ctx, pack.Node, n.Append(nil)); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recordLeaf(number, id)
	return nil
}

// baseLeaf returns what a leaf was before the chunks that are being set: as stored earlier by this writer, else as in
// the parent. Nil is zeros.
func (w *ImageWriter) baseLeaf(ctx context.Context, number int64) (*tree.Node, error) {
	w.mu.Lock()
	id, stored := w.done[number]
	w.mu.Unlock()
	if !stored {
		if w.parent == nil {
			return nil, nil
		}
		return w.s.r.leaf(ctx, *w.parent, number)
	}
	if id.IsZero() {
		return nil, nil
	}
	if known, err := w.s.has(ctx, nil, id); err != nil {
		return nil, err
	} else if !known {
		if err := w.s.readableMeta(ctx); err != nil {
			return nil, err
		}
	}
	return w.s.r.node(ctx, id, 0)
}

// trimTail cuts the parent's last chunk where a smaller image ends in the middle of it.
func (w *ImageWriter) trimTail(ctx context.Context) error {
	size := int64(w.ChunkBytes())
	last := w.chunks - 1
	if w.parent == nil || w.parent.Size <= w.size || w.size%size == 0 {
		return nil
	}
	w.mu.Lock()
	l := w.leaves[last/tree.FanOut]
	_, stored := w.done[last/tree.FanOut]
	w.mu.Unlock()
	if stored || (l != nil && l.has(last%tree.FanOut)) {
		return nil
	}
	id, err := w.parentChunk(ctx, last)
	if err != nil || id.IsZero() {
		return err
	}
	p := make([]byte, size)
	if err := w.s.r.chunk(ctx, id, p); err != nil {
		return err
	}
	clear(p[w.size%size:])
	return w.carry.Write(ctx, &local{w: w}, last, p)
}

// buildTree stores the leaves that are left and the nodes above all changed ones, and returns the top.
func (w *ImageWriter) buildTree(ctx context.Context) (Hash, error) {
	for number, l := range w.leaves {
		if err := w.storeLeaf(ctx, number, l); err != nil {
			return Hash{}, err
		}
	}
	w.leaves = nil
	var top Hash
	switch {
	case w.parent == nil:
	case w.parent.Size == w.size:
		top = w.parent.Top
	default:
		if err := w.adoptLeaves(ctx); err != nil {
			return Hash{}, err
		}
	}
	height := tree.Height(w.size, w.ChunkBytes())
	if height == 0 {
		return Hash{}, nil
	}
	changed := make([]int64, 0, len(w.done))
	for n := range w.done {
		changed = append(changed, n)
	}
	slices.Sort(changed)
	return w.build(ctx, height-1, 0, top, changed)
}

// adoptLeaves takes over the leaves of a parent of another size one by one.
func (w *ImageWriter) adoptLeaves(ctx context.Context) error {
	common := min(w.chunks, tree.Chunks(w.parent.Size, w.ChunkBytes()))
	return w.s.r.eachLeaf(ctx, *w.parent, 0, tree.Leaves(common), func(number int64, _ Hash) error {
		if _, ok := w.done[number]; ok {
			return nil
		}
		return w.storeLeaf(ctx, number, &leaf{})
	})
}

// build returns the node of a level over the leaves from first on, given the parent's node there and which leaves
// are not the parent's.
func (w *ImageWriter) build(ctx context.Context, level uint8, first int64, before Hash, changed []int64) (Hash, error) {
	if len(changed) == 0 {
		return before, nil
	}
	if level == 0 {
		return w.done[first], nil
	}
	n := &tree.Node{Level: level}
	if !before.IsZero() {
		old, err := w.s.r.node(ctx, before, level)
		if err != nil {
			return Hash{}, err
		}
		n.Children = old.Children
	}
	span := tree.Span(level - 1)
	for len(changed) > 0 {
		i := (changed[0] - first) / span
		end, _ := slices.BinarySearch(changed, first+(i+1)*span)
		id, err := w.build(ctx, level-1, first+i*span, n.Children[i], changed[:end])
		if err != nil {
			return Hash{}, err
		}
		n.Children[i] = id
		changed = changed[end:]
	}
	if n.IsZero() {
		return Hash{}, nil
	}
	return w.s.putObject(ctx, pack.Node, n.Append(nil))
}
