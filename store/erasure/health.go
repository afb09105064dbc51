package erasure

import (
	"context"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/store/blob"
)

// MemberState is how a member is.
type MemberState string

// The states.
const (
	Online   MemberState = "online"
	Degraded MemberState = "degraded" // it answers, but had errors, has to catch up, or may lack shards
	Missing  MemberState = "missing"  // not given, not there, empty, or it does not answer
	Foreign  MemberState = "foreign"  // something else is at its place
)

// MemberHealth is how one member is.
type MemberHealth struct {
	ID         string      `json:"id"`
	Place      string      `json:"place,omitempty"` // empty: it was not given to Open
	Domain     string      `json:"domain"`
	State      MemberState `json:"state"`
	Reason     string      `json:"reason,omitempty"`
	FreeBytes  int64       `json:"free_bytes"` // -1: not known
	TotalBytes int64       `json:"total_bytes"`
	Errors     int64       `json:"errors"`      // since Open
	Lacking    int         `json:"lacking"`     // objects of which it should have a shard and does not
	Behind     bool        `json:"behind"`      // it was away, and catches up at the next Acquire or Scrub
	Filling    bool        `json:"filling"`     // it is new, or an older copy of itself, and its Rebuild is not finished
	Incomplete bool        `json:"incomplete"`  // objects were written without it; a Rebuild or Scrub makes it whole
	ShardBytes int64       `json:"shard_bytes"` // that it has, files' lengths
	Slot       int         `json:"slot"`        // its place in the group, from 0
}

// GroupHealth is how one group is.
type GroupHealth struct {
	Layout  Layout         `json:"layout"`
	Members []MemberHealth `json:"members"`
	Objects int            `json:"objects"`
	Bytes   int64          `json:"bytes"` // of objects, without parity
	// BelowFull counts objects with fewer shards than there should be, Unreadable those with too few to be read now.
	BelowFull  int     `json:"below_full"`
	Unreadable int     `json:"unreadable"`
	CanLose    int     `json:"can_lose"` // how many more members may go before an object cannot be read; -1: one cannot now
	FreeShare  float64 `json:"free_share"`
}

// Health is how a set is, as far as names and lengths tell: rot inside shards is found by Scrub. Objects were counted by
// the last Acquire or Scrub of this process, or else by the first Health; what it has done since is added.
type Health struct {
	Set     string        `json:"set"`
	Version uint64        `json:"version"` // of the set's description
	Groups  []GroupHealth `json:"groups"`
	CanLose int           `json:"can_lose"` // members of the worst group
	// Since Open: units computed from others because their own were missing or damaged, units found damaged, reads
	// that met either, objects written with fewer shards than there should be, shards rewritten.
	RebuiltUnits   int64 `json:"rebuilt_units"`
	BadUnits       int64 `json:"bad_units"`
	DegradedReads  int64 `json:"degraded_reads"`
	DegradedWrites int64 `json:"degraded_writes"`
	RepairedShards int64 `json:"repaired_shards"`
	// Unused are places that were given but are no members now, with the reason.
	Unused []MemberHealth `json:"unused,omitempty"`
}

// Health asks every member whether it is there, and adds what is known of objects. It lists them only if this process
// has not done so yet.
func (s *Store) Health(ctx context.Context) (Health, error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	d, groups := s.snapshot()
	h := Health{
		Set: d.Set, Version: d.Version, RebuiltUnits: s.stats.rebuiltUnits.Load(), BadUnits: s.stats.badUnits.Load(),
		DegradedReads: s.stats.degradedReads.Load(), DegradedWrites: s.stats.degradedWrites.Load(),
		RepairedShards: s.stats.repairedShards.Load(),
	}
	for i, g := range groups {
		gh := s.groupHealth(ctx, g)
		if err := ctx.Err(); err != nil {
			return h, err
		}
		if i == 0 || gh.CanLose < h.CanLose {
			h.CanLose = gh.CanLose
		}
		h.Groups = append(h.Groups, gh)
	}
	for _, m := range s.unopened {
		h.Unused = append(h.Unused, MemberHealth{ID: m.id, Place: m.given.place(), State: m.state, Reason: m.reason, FreeBytes: -1})
	}
	return h, nil
}

func (s *Store) groupHealth(ctx context.Context, g *group) GroupHealth {
	gh := GroupHealth{Layout: g.layout, CanLose: -1}
	for _, m := range g.members {
		gh.Members = append(gh.Members, s.memberHealth(m))
	}
	gh.FreeShare = freeShare(gh.Members)
	errs := each(g.members, func(_ int, _ *member, b blob.Store) error { return answers(ctx, b) })
	gone := uint64(0)
	for _, slot := range failing(errs) {
		gone |= 1 << slot
		if m := &gh.Members[slot]; m.State == Online || m.State == Degraded {
			m.State, m.Reason = Missing, errs[slot].Error()
		}
	}
	if err := s.tally(ctx, g); err != nil {
		for slot := range gh.Members {
			if m := &gh.Members[slot]; gone>>slot&1 == 0 {
				m.State, m.Reason = Degraded, err.Error()
			}
		}
		return gh
	}
	s.counted(g, func(c *census) { c.tell(&gh, gone) })
	return gh
}

// answers is an error if a member is not there, without looking at objects.
func answers(ctx context.Context, b blob.Store) error {
	_, err := b.Stat(ctx, memberName)
	if err != nil {
		_, err = b.Stat(ctx, memberCopy)
	}
	return err
}

func (s *Store) memberHealth(m *member) MemberHealth {
	md := s.memberDoc(m)
	m.mu.Lock()
	defer m.mu.Unlock()
	h := MemberHealth{
		ID: m.id, Place: m.given.place(), Domain: md.Domain, State: m.state, Reason: m.reason, FreeBytes: -1,
		Errors: m.errs, Behind: md.Behind, Filling: md.Filling, Incomplete: md.Incomplete, Slot: m.slot,
	}
	if h.State == Online {
		if h.Errors > 0 || !md.complete() {
			h.State = Degraded
		}
		if h.Reason == "" {
			h.Reason = md.reason()
		}
		if free, total, err := m.given.space(); err == nil {
			h.FreeBytes, h.TotalBytes = free, total
		}
	}
	return h
}

// freeShare is the free part of the fullest member: every object takes as much from each.
func freeShare(members []MemberHealth) float64 {
	share := 1.0
	for _, m := range members {
		if m.TotalBytes > 0 {
			share = min(share, float64(m.FreeBytes)/float64(m.TotalBytes))
		}
	}
	return share
}

// spaceAge is how long the free shares of groups are believed.
const spaceAge = 2 * time.Second

// choose returns the group for a new object: the one with the largest free share among those that can be written to.
func (s *Store) choose() *group {
	d, groups := s.snapshot()
	if len(groups) == 1 {
		return groups[0]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.share) != len(groups) || time.Since(s.spaceAt) > spaceAge {
		s.share = make([]float64, len(groups))
		for i, g := range groups {
			s.share[i] = s.shareOf(d, g)
		}
		s.spaceAt = time.Now()
	}
	best := 0
	for i := range groups {
		if s.share[i] > s.share[best] {
			best = i
		}
	}
	return groups[best]
}

func (s *Store) shareOf(d *setDocument, g *group) float64 {
	spaces := make([]MemberHealth, g.n())
	var wg sync.WaitGroup
	up := 0
	for slot, m := range g.members {
		if !m.up() || d.Groups[g.number].Members[slot].Behind {
			continue
		}
		up++
		wg.Go(func() {
			if free, total, err := m.given.space(); err == nil {
				spaces[slot] = MemberHealth{FreeBytes: free, TotalBytes: total}
			}
		})
	}
	wg.Wait()
	if up < s.need(g) {
		return -1
	}
	return freeShare(spaces)
}
