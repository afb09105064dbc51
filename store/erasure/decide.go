package erasure

import (
	"context"
	"maps"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// decision settles every write of a group, each into one of three: dead and gone, alive with its right names, or left
// as it is because the members that are not there have to be heard first.
type decision struct {
	s       *Store
	l       *listing
	writes  map[string]*scattered
	waiting map[string]map[int]bool // by write: slots with a pending shard
	moves   map[string]map[int]bool // by write: the marks of moves that members have
	unseen  int                     // members whose shards are not known, or not all there
	behind  int                     // members that are not told, or do not count until they are
	failed  []bool                  // by slot: the member did not follow
	lacks   []bool                  // by slot: the member has not a shard of everything that is alive
	census  *census
}

func (s *Store) newDecision(l *listing) *decision {
	n := l.group.n()
	d := &decision{
		s: s, l: l, writes: l.writesAnyName(), waiting: map[string]map[int]bool{}, moves: map[string]map[int]bool{},
		failed: make([]bool, n), lacks: make([]bool, n), census: newCensus(),
	}
	for slot, m := range l.group.members {
		md := s.memberDoc(m)
		if !l.seen[slot] || md.Filling {
			d.unseen++
		}
		if !l.seen[slot] || md.Behind {
			d.behind++
		}
	}
	d.sort()
	return d
}

// sort notes what waits and which marks there are.
func (d *decision) sort() {
	n := d.l.group.n()
	for slot, files := range d.l.wait {
		for _, name := range files {
			write, shard, ok := parsePending(name)
			if ok && slotOf(write, shard, n) == slot && !d.s.isFlying(write) {
				add(d.waiting, write, slot)
			}
		}
	}
	for slot := range d.l.dead {
		for mark := range d.l.dead[slot] {
			if write, moves, ok := parseMoved(mark); ok {
				add(d.moves, write, moves)
			}
		}
	}
}

func add(to map[string]map[int]bool, write string, n int) {
	if to[write] == nil {
		to[write] = map[int]bool{}
	}
	to[write][n] = true
}

// known lists every write that a member has anything of.
func (d *decision) known() []string {
	all := map[string]bool{}
	for write := range d.writes {
		all[write] = true
	}
	for write := range d.waiting {
		all[write] = true
	}
	for write := range d.moves {
		all[write] = true
	}
	for slot := range d.l.dead {
		for mark := range d.l.dead[slot] {
			if _, _, ok := parseMoved(mark); !ok {
				all[mark] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func (d *decision) all(ctx context.Context) error {
	for _, write := range d.known() {
		if err := ctx.Err(); err != nil {
			return err
		}
		dead := d.isDead(write)
		if !dead {
			d.count(write)
		}
		switch {
		case d.s.isFlying(write):
		case dead:
			d.finish(ctx, write)
		case d.writes[write] == nil && len(d.waiting[write]) > 0 && d.unseen >= d.s.need(d.l.group):
			d.s.log.Warn("unfinished write is kept until missing members are back", "write", write)
		case d.writes[write] == nil && len(d.waiting[write]) > 0: // never committed
			d.finish(ctx, write)
		default:
			d.keep(ctx, write)
		}
	}
	return nil
}

// isDead: a member whose word counts says so, an older copy alone has it, or all that is left of a write nobody else knows
// is a mark on a member that was away.
func (d *decision) isDead(write string) bool {
	if d.l.marked(write) {
		return true
	}
	if w := d.writes[write]; w != nil && d.l.revived(func(slot int) bool { return len(w.files[slot]) > 0 || d.waiting[write][slot] }) {
		d.s.log.Warn("deleted object that an older copy of a member brought back goes again", "object", w.name)
		return true
	}
	return d.writes[write] == nil && len(d.waiting[write]) == 0 && d.l.markedAnywhere(write)
}

// count notes who lacks a shard of a write that is alive.
func (d *decision) count(write string) {
	w := d.writes[write]
	if w == nil {
		return
	}
	n := w.group.n()
	e := &entry{part: w.part, group: w.group, at: make([]string, n), aside: make([]string, n), short: make([]bool, n)}
	for slot := range d.lacks {
		if w.whole[slot] || d.waiting[write][slot] {
			e.at[slot] = w.part.path()
		} else {
			d.lacks[slot] = true
		}
	}
	d.census.add(e)
}

// follow notes which members failed, and reports whether none did.
func (d *decision) follow(errs []error) (ok bool) {
	for _, slot := range failing(errs) {
		d.failed[slot] = true
	}
	return len(failing(errs)) == 0
}

// finish completes a delete: shards go, and when everybody knows, marks.
func (d *decision) finish(ctx context.Context, write string) {
	gone := d.follow(d.s.bury(ctx, d.l, d.writes[write], write, d.waiting[write], d.behind > 0))
	if !gone || d.behind > 0 {
		return
	}
	d.follow(d.s.clear(ctx, d.l, write))
	for n := range d.moves[write] {
		d.follow(d.s.clear(ctx, d.l, movedMark(write, n)))
	}
}

// keep gives all shards of a living write their right names. What members that were away believe to be deleted or
// renamed is not.
func (d *decision) keep(ctx context.Context, write string) {
	w := d.writes[write]
	named := w == nil || d.follow(d.s.complete(ctx, w, d.waiting[write]))
	d.follow(d.s.clear(ctx, d.l, write))
	for n := range d.moves[write] {
		if named && d.behind == 0 || w != nil && n > w.moves {
			d.follow(d.s.clear(ctx, d.l, movedMark(write, n)))
		} else {
			d.follow(d.s.spread(ctx, d.l, movedMark(write, n)))
		}
	}
}

// scattered is a write with all files that members have of it.
type scattered struct {
	part
	group *group
	files [][]string // by slot
	whole []bool     // by slot: one of them has the length it must have
}

// writesAnyName merges the whole listing by write; the name is the newest one that members whose word counts
// have, or know that there is.
func (l *listing) writesAnyName() map[string]*scattered {
	out := map[string]*scattered{}
	outdated := l.outdated()
	for _, behind := range []bool{false, true} {
		for slot := range l.files {
			if l.seen[slot] && l.behind[slot] == behind {
				l.scatter(out, slot, outdated)
			}
		}
	}
	return out
}

func (l *listing) scatter(out map[string]*scattered, slot int, outdated map[string]int) {
	n := l.group.n()
	for _, info := range l.files[slot] {
		p, ok := parsePart(info.Name)
		if !ok || slotOf(p.write, p.shard, n) != slot {
			continue
		}
		w := out[p.write]
		if w == nil {
			w = &scattered{part: p, group: l.group, files: make([][]string, n), whole: make([]bool, n)}
			w.part.aside = false
			out[p.write] = w
		}
		if p.moves > w.moves && (!l.behind[slot] || p.moves <= outdated[p.write]) {
			w.part = p
			w.part.aside = false
		}
		w.files[slot] = append(w.files[slot], info.Name)
		w.whole[slot] = w.whole[slot] || info.Size == geometry{k: p.k, n: n, size: p.size}.fileBytes()
	}
}

func (l *listing) markedAnywhere(mark string) bool {
	return slices.ContainsFunc(l.dead, func(m map[string]bool) bool { return m[mark] })
}

func (s *Store) isFlying(write string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flying[write]
}

// bury removes all of a dead write, with a mark first where not everybody can be told.
func (s *Store) bury(ctx context.Context, l *listing, w *scattered, write string, waiting map[int]bool, keep bool) []error {
	return each(l.group.members, func(slot int, _ *member, b blob.Store) error {
		if !l.seen[slot] {
			return nil
		}
		files := []string{}
		if w != nil {
			files = append(files, w.files[slot]...)
		}
		if waiting[slot] {
			files = append(files, part{write: write, shard: shardOf(write, slot, l.group.n())}.pending())
		}
		if (keep || (w != nil && len(files) > 0)) && !l.dead[slot][write] {
			err := blob.Put(ctx, b, deadFolder+"/"+write, nil)
			if err != nil && fault.KindOf(err) != fault.Exists && !isFull(err) {
				return err
			}
			l.dead[slot][write] = true
		}
		for _, name := range files {
			if err := ignoreMissing(b.Delete(ctx, name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// spread gives a mark to the members that have not got it, while others are away that must not bring back what it denies.
func (s *Store) spread(ctx context.Context, l *listing, mark string) []error {
	return each(l.group.members, func(slot int, _ *member, b blob.Store) error {
		if !l.seen[slot] || l.dead[slot][mark] {
			return nil
		}
		l.dead[slot][mark] = true
		return putEmpty(ctx, b, deadFolder+"/"+mark)
	})
}

// clear removes a mark from the members that have it.
func (s *Store) clear(ctx context.Context, l *listing, mark string) []error {
	return each(l.group.members, func(slot int, _ *member, b blob.Store) error {
		if !l.seen[slot] || !l.dead[slot][mark] {
			return nil
		}
		return ignoreMissing(b.Delete(ctx, deadFolder+"/"+mark))
	})
}

// complete gives every shard of a living write its one right name. What was put aside comes last: its successor, if there
// is one, takes the name before it goes.
func (s *Store) complete(ctx context.Context, w *scattered, waiting map[int]bool) []error {
	return each(w.group.members, func(slot int, _ *member, b blob.Store) error {
		p := w.part
		p.shard = shardOf(w.write, slot, w.group.n())
		right := p.path()
		named, aside := apart(w.files[slot])
		have := slices.Contains(named, right)
		if len(named) == 0 && waiting[slot] {
			named = []string{p.pending()}
		} else if waiting[slot] {
			aside = append(aside, p.pending())
		}
		for _, name := range append(named, aside...) {
			var err error
			switch {
			case name == right:
			case !have:
				err = b.Rename(ctx, name, right)
				have = err == nil
			default:
				err = b.Delete(ctx, name)
			}
			if err := ignoreMissing(err); err != nil {
				return err
			}
		}
		return nil
	})
}

// apart sorts the files of a slot into shards and what was put aside.
func apart(files []string) (named, aside []string) {
	for _, name := range files {
		if p, _ := parsePart(name); p.aside {
			aside = append(aside, name)
		} else {
			named = append(named, name)
		}
	}
	return named, aside
}
