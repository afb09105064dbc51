package store

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// nearPacks is how many packs a session keeps at hand. What follows each other on a disk mostly follows each other in
// a pack, so most of what a session looks for is in one of them, and is found there without the index.
const nearPacks = 24

// near are the packs in which a session found something of late, the latest first.
type near struct {
	packs atomic.Pointer[[]nearPack] // never changed, only replaced

	mu   sync.Mutex
	hits map[seal.ID]int // of packs that are not at hand
}

// nearPack is a pack at hand; blocks is nil if nobody asked for its fingerprints yet.
type nearPack struct {
	rd     *pack.Reader
	blocks *pack.Blocks
}

func (p nearPack) id() seal.ID { return p.rd.Directory().Header.ID }

func (n *near) list() []nearPack {
	if l := n.packs.Load(); l != nil {
		return *l
	}
	return nil
}

// touch puts a pack in front. One that is among the first stays where it is: several goroutines take turns.
func (n *near) touch(p nearPack) {
	id := p.id()
	old := n.list()
	for i := range min(4, len(old)) {
		if old[i].id() == id && (p.blocks == nil || old[i].blocks != nil) {
			return
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	list := append(make([]nearPack, 0, nearPacks), p)
	for _, o := range n.list() {
		if o.id() == id {
			if list[0].blocks == nil {
				list[0].blocks = o.blocks
			}
			continue
		}
		if len(list) < nearPacks {
			list = append(list, o)
		}
	}
	n.packs.Store(&list)
}

// again counts a hit in a pack that is not at hand and reports whether it is time to fetch its directory: a single
// hit would not be worth it.
func (n *near) again(id seal.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hits == nil || len(n.hits) > 64*nearPacks {
		n.hits = map[seal.ID]int{}
	}
	n.hits[id]++
	if n.hits[id] < 2 {
		return false
	}
	delete(n.hits, id)
	return true
}

// trail is where the last chunk of one Write was found: the next one is expected behind it.
type trail struct {
	rd     *pack.Reader
	slot   int
	pinned seal.ID // the pack pinned last
}

// find looks for an object in the packs at hand.
func (n *near) find(t *trail, id Hash) (rd *pack.Reader, slot int, ok bool) {
	if t != nil && t.rd != nil {
		entries := t.rd.Directory().Entries
		if t.slot+1 < len(entries) && entries[t.slot+1].ID == id {
			t.slot++
			return t.rd, t.slot, true
		}
	}
	for _, p := range n.list() {
		if slot, ok := p.rd.Directory().Find(id); ok {
			if t != nil {
				t.rd, t.slot = p.rd, slot
			}
			n.touch(p)
			return p.rd, slot, true
		}
	}
	return nil, 0, false
}

// hasNear is has for what is in a pack at hand. False says nothing.
func (s *Session) hasNear(ctx context.Context, t *trail, id Hash) (bool, error) {
	if s.r.idx.AnySuspect() {
		return false, nil // whatever is relied on has to be read: has does that
	}
	rd, slot, ok := s.near.find(t, id)
	if !ok {
		return false, nil
	}
	d := rd.Directory()
	s.r.gc.RLock()
	defer s.r.gc.RUnlock()
	if !s.r.idx.Sound(d.Header.ID) {
		return false, nil
	}
	refs := d.Entries[slot].Refs
	if len(refs) > 0 {
		packs, ok, err := s.soundRefs(ctx, d.Header.ID, refs)
		if err != nil && !damaged(err) || err == nil && !ok {
			return false, err
		}
		if err != nil {
			return false, nil
		}
		s.pin(packs, true)
	}
	if t == nil || t.pinned != d.Header.ID {
		s.pin([]seal.ID{d.Header.ID}, true)
		if t != nil {
			t.pinned = d.Header.ID
		}
	}
	return true, nil
}

// soundRefs is the repository's soundRefs, but for blocks in packs at hand one holder is enough.
func (s *Session) soundRefs(ctx context.Context, home seal.ID, refs []pack.Ref) (packs []seal.ID, ok bool, err error) {
	var rest []pack.Ref
	for i, ref := range refs {
		if i > 0 && ref == refs[i-1] {
			continue
		}
		id, ok := s.holderNear(ref)
		if !ok {
			rest = append(rest, ref)
		} else if id != home && (len(packs) == 0 || packs[len(packs)-1] != id) {
			packs = append(packs, id)
		}
	}
	if len(rest) == 0 {
		return packs, true, nil
	}
	more, ok, err := s.r.soundRefs(ctx, rest)
	for _, id := range more {
		s.bring(ctx, id)
	}
	return append(packs, more...), ok, err
}

// holderNear finds a sound pack at hand that physically has a block.
func (s *Session) holderNear(ref pack.Ref) (seal.ID, bool) {
	for _, p := range s.near.list() {
		d := p.rd.Directory()
		slot, ok := d.Find(ref.Target)
		if !ok {
			continue
		}
		if _, ok := blockAt(&d.Entries[slot], ref.Block); ok && s.r.idx.Sound(d.Header.ID) {
			return d.Header.ID, true
		}
	}
	return seal.ID{}, false
}

// follow remembers where an object was found by the index, so that its neighbours are found without.
func (s *Session) follow(ctx context.Context, t *trail, at index.Location) {
	if !s.near.again(at.Pack) {
		return
	}
	if rd := s.bring(ctx, at.Pack); rd != nil && t != nil {
		t.rd, t.slot = rd, int(at.Slot)
	}
}

// bring takes a pack at hand. It is a matter of speed: whoever needs the pack is told of damage when reading it.
func (s *Session) bring(ctx context.Context, id seal.ID) *pack.Reader {
	rd, err := s.r.pack(ctx, id)
	if err != nil || rd.Directory().Header.Kind != pack.Data {
		return nil
	}
	s.near.touch(nearPack{rd: rd})
	return rd
}
