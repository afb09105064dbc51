package erasure

import (
	"context"
	"math/bits"
)

// census counts the objects of a group, so that their state can be told without listing them. It keeps a record of those
// alone that lack a shard on a member.
type census struct {
	objects map[int]int // by k
	bytes   int64       // of objects
	shards  int64       // of one shard of each object, files' lengths
	lacking map[string]lack
}

// lack is an object below full redundancy.
type lack struct {
	slots uint64 // bits: where its shard is missing, or has not the length it must have
	k     int
	shard int64
}

func newCensus() *census { return &census{objects: map[int]int{}, lacking: map[string]lack{}} }

func (c *census) add(e *entry) {
	length := e.geometry().fileBytes()
	c.objects[e.k]++
	c.bytes += e.size
	c.shards += length
	l := lack{k: e.k, shard: length}
	for slot := range e.at {
		if e.at[slot] == "" || e.short[slot] {
			l.slots |= 1 << slot
		}
	}
	if l.slots != 0 {
		c.lacking[e.write] = l
	}
}

func (c *census) remove(e *entry) {
	c.objects[e.k]--
	c.bytes -= e.size
	c.shards -= e.geometry().fileBytes()
	delete(c.lacking, e.write)
}

// restored notes that an object has its shard on a member again.
func (c *census) restored(e *entry, slot int) {
	l, ok := c.lacking[e.write]
	if !ok {
		return
	}
	if l.slots &^= 1 << slot; l.slots == 0 {
		delete(c.lacking, e.write)
		return
	}
	c.lacking[e.write] = l
}

// tell adds to a group's health what is counted; gone are bits of the members that are not there.
func (c *census) tell(gh *GroupHealth, gone uint64) {
	n := len(gh.Members)
	up := n - bits.OnesCount64(gone)
	gh.CanLose = up - gh.Layout.Data
	gh.Bytes = c.bytes
	for k, count := range c.objects {
		gh.Objects += count
		if count -= c.lackingOf(k); count > 0 {
			gh.judge(count, up, n, k)
		}
	}
	for slot := range gh.Members {
		if gone>>slot&1 == 1 {
			gh.Members[slot].Lacking = gh.Objects
		} else {
			gh.Members[slot].ShardBytes = c.shards
		}
	}
	for _, l := range c.lacking {
		gh.judge(1, n-bits.OnesCount64(l.slots|gone), n, l.k)
		for slots := l.slots &^ gone; slots != 0; slots &= slots - 1 {
			m := &gh.Members[bits.TrailingZeros64(slots)]
			m.Lacking++
			m.ShardBytes -= l.shard
		}
	}
}

func (c *census) lackingOf(k int) (n int) {
	for _, l := range c.lacking {
		if l.k == k {
			n++
		}
	}
	return n
}

// judge counts objects that have so many of n shards and need k.
func (gh *GroupHealth) judge(count, have, n, k int) {
	if have < n {
		gh.BelowFull += count
	}
	if have < k {
		gh.Unreadable += count
	}
	gh.CanLose = max(-1, min(gh.CanLose, have-k))
}

// counted runs f with the census of a group, if there is one.
func (s *Store) counted(g *group, f func(*census)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.censuses[g.number]; c != nil {
		f(c)
	}
}

func (s *Store) setCensus(g *group, c *census) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.censuses[g.number] = c
}

// census counts anew what all groups were found to hold.
func (s *Store) census(groups []*group, all map[string][]*entry) {
	counts := map[*group]*census{}
	for _, g := range groups {
		counts[g] = newCensus()
	}
	for _, writes := range all {
		for _, e := range writes {
			counts[e.group].add(e)
		}
	}
	for g, c := range counts {
		s.setCensus(g, c)
	}
}

// tally counts what a group holds, if that has not been done.
func (s *Store) tally(ctx context.Context, g *group) error {
	s.mu.Lock()
	known := s.censuses[g.number] != nil
	s.mu.Unlock()
	if known {
		return nil
	}
	l, err := s.look(ctx, g, objectFolder+"/", false)
	if err != nil {
		return err
	}
	c := newCensus()
	for _, e := range l.writes() {
		if !e.dead && !s.isDoomed(e.write) {
			c.add(e)
		}
	}
	s.setCensus(g, c)
	return nil
}
