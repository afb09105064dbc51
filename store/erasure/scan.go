package erasure

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// entry is one write of an object, as the members' listings tell it.
type entry struct {
	part  // of the newest name; shard means nothing
	group *group
	at    []string // by slot: the shard's file; "" none
	aside []string // by slot: a bad shard's file that is being exchanged, or was; "" none
	short []bool   // by slot: the file has not the length it must have
	seen  []bool   // by slot: the member has answered; nil: unknown
	dead  bool     // marked as deleted
}

func (e *entry) geometry() geometry { return geometry{k: e.k, n: e.group.n(), size: e.size} }

// whole counts the shards that are there with the right length.
func (e *entry) whole() (n int) {
	for slot := range e.at {
		if e.at[slot] != "" && !e.short[slot] {
			n++
		}
	}
	return n
}

// exchanging reports whether a bad shard that was put aside is all that has a name on a member. Its successor is among the
// pending ones, and was proven.
func (e *entry) exchanging(slot int) bool { return e.at[slot] != "" && e.at[slot] == e.aside[slot] }

// missing lists the slots that have no shard.
func (e *entry) missing() (slots []int) {
	for slot := range e.at {
		if e.at[slot] == "" {
			slots = append(slots, slot)
		}
	}
	return slots
}

// listing is what the members of one group show.
type listing struct {
	group  *group
	seen   []bool            // by slot
	files  [][]blob.Info     // by slot
	dead   []map[string]bool // by slot: writes it has marks of
	wait   [][]string        // by slot: pending files; only if asked for
	errs   []error
	behind []bool // by slot: what it says about deletes does not count
	whole  []bool // by slot: it has a shard of everything
	copies []bool // by slot: it is an older copy of itself
	proof  error  // why objects that nobody shows may be there all the same; nil: they are not
}

// look lists a folder of the members of a group. It is an error if so few answered that what they show cannot be judged.
func (s *Store) look(ctx context.Context, g *group, folder string, pending bool) (*listing, error) {
	n := g.n()
	l := &listing{
		group: g, seen: make([]bool, n), files: make([][]blob.Info, n), dead: make([]map[string]bool, n),
		wait: make([][]string, n), behind: make([]bool, n), whole: make([]bool, n), copies: make([]bool, n),
	}
	for slot, m := range g.members {
		md := s.memberDoc(m)
		l.behind[slot], l.whole[slot], l.copies[slot] = md.Behind, md.complete(), md.Behind && md.Why == whyCopy
	}
	l.errs = each(g.members, func(slot int, _ *member, b blob.Store) error {
		// Marks first: a delete that begins later takes shards away, which looks the same.
		dead := map[string]bool{}
		err := walk(ctx, b, deadFolder+"/", func(i blob.Info) { dead[strings.TrimPrefix(i.Name, deadFolder+"/")] = true })
		if err == nil {
			err = walk(ctx, b, folder, func(i blob.Info) { l.files[slot] = append(l.files[slot], i) })
		}
		if err == nil && pending {
			err = walk(ctx, b, pendingFolder+"/", func(i blob.Info) { l.wait[slot] = append(l.wait[slot], i.Name) })
		}
		l.dead[slot], l.seen[slot] = dead, err == nil
		return err
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if n := succeeded(l.errs); n < g.layout.Data {
		return nil, worst("list", s.Location(), l.errs...)
	}
	st := s.standing(g, l.seen)
	if !st.knows() {
		return nil, errors.Join(append([]error{st.unknowing("list", s.Location())}, l.errs...)...)
	}
	if !st.proves() || !st.names() && l.nameless(folder == objectFolder+"/") {
		l.proof = errors.Join(append([]error{st.unproven("list", s.Location())}, l.errs...)...)
	}
	return l, nil
}

func walk(ctx context.Context, b blob.Store, folder string, f func(blob.Info)) error {
	for info, err := range b.List(ctx, folder) {
		if err != nil {
			return err
		}
		f(info)
	}
	return nil
}

// marked reports whether a member whose word counts has a mark.
func (l *listing) marked(mark string) bool {
	for slot := range l.dead {
		if l.seen[slot] && !l.behind[slot] && l.dead[slot][mark] {
			return true
		}
	}
	return false
}

// nameless reports whether an object may have a newer name than those that are seen. That is known if all files are: else
// it is enough that there has been a rename of which not everybody knows.
func (l *listing) nameless(all bool) bool {
	outdated := l.outdated()
	if !all || len(outdated) == 0 {
		return len(outdated) > 0
	}
	writes := l.writesAnyName()
	for write, moves := range outdated {
		if w := writes[write]; !l.marked(write) && (w == nil || w.moves < moves) {
			return true
		}
	}
	return false
}

// outdated collects from the marks up to which move the names of writes are void.
func (l *listing) outdated() map[string]int {
	out := map[string]int{}
	for slot := range l.dead {
		if !l.seen[slot] || l.behind[slot] {
			continue
		}
		for mark := range l.dead[slot] {
			if write, moves, ok := parseMoved(mark); ok {
				out[write] = max(out[write], moves)
			}
		}
	}
	return out
}

// writes merges the listing into writes, by their id.
func (l *listing) writes() map[string]*entry {
	n := l.group.n()
	out := map[string]*entry{}
	outdated := l.outdated()
	add := func(slot int, info blob.Info, pick func(*entry, part) bool) {
		p, ok := parsePart(info.Name)
		if !ok || slotOf(p.write, p.shard, n) != slot || (p.k != 1 && p.k != l.group.layout.Data) {
			return // nothing of ours
		}
		e := out[p.write]
		if e == nil {
			e = &entry{part: p, group: l.group, at: make([]string, n), aside: make([]string, n), short: make([]bool, n), seen: l.seen, dead: l.marked(p.write)}
			e.part.aside = false
			out[p.write] = e
		}
		if e.size != p.size || e.k != p.k {
			return
		}
		if p.aside {
			e.aside[slot] = info.Name
		}
		if !pick(e, p) || p.aside && e.at[slot] != "" {
			return
		}
		e.at[slot] = info.Name
		e.short[slot] = info.Size != e.geometry().fileBytes()
	}
	// Members that are behind do not know of renames: their files count, their names only if others know that there is one.
	for _, behind := range []bool{false, true} {
		for slot := range l.files {
			if !l.seen[slot] || l.behind[slot] != behind {
				continue
			}
			for _, info := range l.files[slot] {
				add(slot, info, func(e *entry, p part) bool {
					if p.moves > e.moves && (!behind || p.moves <= outdated[p.write]) {
						e.name, e.moves = p.name, p.moves
					}
					return e.at[slot] == "" || e.exchanging(slot) || p.moves >= e.moves
				})
			}
		}
	}
	for write, moves := range outdated {
		if e := out[write]; e != nil && e.moves < moves {
			delete(out, write) // it has another name since
		}
	}
	maps.DeleteFunc(out, func(_ string, e *entry) bool { return l.revived(func(slot int) bool { return e.at[slot] != "" }) })
	return out
}

// revived reports whether what some members have of a write was brought back by older copies of members: somebody is there
// who has a shard of every object, and has none of this. It was deleted when nobody could know that a copy would come
// back, so no mark of it is left.
func (l *listing) revived(has func(slot int) bool) bool {
	whole := false
	for slot := range l.seen {
		if l.seen[slot] && has(slot) && !l.copies[slot] {
			return false
		}
		whole = whole || l.seen[slot] && l.whole[slot]
	}
	return whole
}

// better orders writes of one name: the one that counts comes first. Two are there only for a moment, between a
// commit and its undoing by the loser.
func better(a, b *entry) int {
	if c := b.whole() - a.whole(); c != 0 {
		return c
	}
	return cmp.Compare(a.write, b.write)
}

// gather lists a folder in all groups and returns the writes that are alive, by name. proof is why there may be more.
func (s *Store) gather(ctx context.Context, folder string) (all map[string][]*entry, proof, err error) {
	_, groups := s.snapshot()
	listings := make([]*listing, len(groups))
	errs := make([]error, len(groups))
	var wg sync.WaitGroup
	for i, g := range groups {
		wg.Go(func() { listings[i], errs[i] = s.look(ctx, g, folder, false) })
	}
	wg.Wait()
	out := map[string][]*entry{}
	for i, l := range listings {
		if errs[i] != nil {
			return nil, nil, errs[i]
		}
		if proof == nil {
			proof = l.proof
		}
		for _, e := range l.writes() {
			if !e.dead && !s.isDoomed(e.write) {
				out[e.name] = append(out[e.name], e)
			}
		}
	}
	for _, all := range out {
		slices.SortFunc(all, better)
	}
	return out, proof, nil
}

// gatherProven is gather, and an error if there may be more.
func (s *Store) gatherProven(ctx context.Context, folder string) (map[string][]*entry, error) {
	all, proof, err := s.gather(ctx, folder)
	if err == nil {
		err = proof
	}
	return all, err
}

func (s *Store) isDoomed(write string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doomed[write]
}

// find returns the writes of a name that are alive, the one that counts first; none is no error if it is proven.
func (s *Store) find(ctx context.Context, name string) ([]*entry, error) {
	all, proof, err := s.gather(ctx, leafOf(name))
	if err != nil {
		return nil, err
	}
	if len(all[name]) == 0 {
		return nil, proof
	}
	return all[name], nil
}

// locate returns the write that counts. fresh: the cache is not asked.
func (s *Store) locate(ctx context.Context, op, name string, fresh bool) (*entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	if !fresh {
		if e := s.cache.get(name); e != nil {
			return e, nil
		}
	}
	all, err := s.find(ctx, name)
	if err != nil {
		return nil, fault.Context(op, name, err)
	}
	if len(all) == 0 {
		s.cache.forget(name)
		return nil, fault.New(fault.NotFound, op, name, "no such object")
	}
	s.cache.put(name, all[0])
	return all[0], nil
}

// Stat implements blob.Store.
func (s *Store) Stat(ctx context.Context, name string) (blob.Info, error) {
	e, err := s.locate(ctx, "look at object", name, true)
	if err != nil {
		return blob.Info{}, err
	}
	return blob.Info{Name: name, Size: e.size}, nil
}

// List implements blob.Store. An object is listed if any of its shards is there: that it can be read is another
// question, which ReadAt answers. If so few members answer that an object could be overlooked, it is an error.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		folder := strings.TrimSuffix(prefix, "/")
		if folder != "" && path.Clean(folder) != folder {
			yield(blob.Info{}, fault.New(fault.Invalid, "list", prefix, "not a folder"))
			return
		}
		all, err := s.gatherProven(ctx, folderOf(folder)+"/")
		if err != nil {
			yield(blob.Info{}, fault.Context("list", prefix, err))
			return
		}
		for name, writes := range all {
			if !yield(blob.Info{Name: name, Size: writes[0].size}, nil) {
				return
			}
		}
	}
}

// maxEntries bounds the cache: about 300 bytes each.
const maxEntries = 20_000

// entryCache remembers where objects are. It may be wrong about what other processes do: whoever fails with what it
// says asks the members.
type entryCache struct {
	mu sync.Mutex
	m  map[string]*entry
}

func (c *entryCache) get(name string) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m[name]
}

func (c *entryCache) put(name string, e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[string]*entry{}
	}
	if len(c.m) >= maxEntries {
		for old := range c.m { // any one
			delete(c.m, old)
			break
		}
	}
	c.m[name] = e
}

func (c *entryCache) forget(names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		delete(c.m, name)
	}
}

func (c *entryCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m = nil
}
