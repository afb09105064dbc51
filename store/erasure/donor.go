package erasure

import (
	"context"
	"errors"
	"slices"

	"github.com/cairn-backup/cairn/store/blob"
)

// donor is a member that was replaced while it could still be read: a source for its successor until that has all it
// should have. Without it, replacing a disk that is well would cost a shard of every object, and what has rotted on
// another, unnoticed, would be lost. It is read, never written to, and every unit is proven as all others are. It is
// this process's alone: one that opens the set later reads without it.
type donor struct {
	m     *member
	files map[string]string // by write: its shard
}

// retire keeps a member as the donor of its successor, if it can be read.
func (s *Store) retire(ctx context.Context, old *member, successor string) error {
	b, err := old.store()
	if err != nil {
		return old.discharge()
	}
	d := &donor{m: old, files: map[string]string{}}
	err = walk(ctx, b, objectFolder+"/", func(i blob.Info) {
		if p, ok := parsePart(i.Name); ok && (!p.aside || d.files[p.write] == "") {
			d.files[p.write] = i.Name
		}
	})
	if err != nil {
		s.log.Warn("member that was replaced cannot be read from", "member", old.id, "err", err)
		return old.discharge()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.donors[successor] = d
	return nil
}

// dismiss lets go of the donors whose successor has what it should have, or of all.
func (s *Store) dismiss(all bool) (err error) {
	_, groups := s.snapshot()
	whole := map[string]bool{}
	for _, g := range groups {
		for _, m := range g.members {
			whole[m.id] = s.memberDoc(m).complete()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for successor, d := range s.donors {
		if done, known := whole[successor]; all || done || !known {
			err = errors.Join(err, d.m.discharge())
			delete(s.donors, successor)
		}
	}
	return err
}

// unlockDonors ends the ownership of donors; they are read on.
func (s *Store) unlockDonors() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.donors {
		err = errors.Join(err, d.m.unlock())
	}
	return err
}

// donated fills units of a shard that are nil from the donor of the member it belongs on, or from its own successor that
// has not got its name, and counts those that are not.
func (r *reader) donated(ctx context.Context, shard int, first int64, units [][]byte) (good int) {
	slot, _ := r.file(shard)
	m := r.e.group.members[slot]
	r.s.mu.Lock()
	d := r.s.donors[m.id]
	r.s.mu.Unlock()
	if d != nil && d.files[r.e.write] != "" {
		r.fill(ctx, d.m, d.files[r.e.write], shard, first, units)
	}
	if r.e.exchanging(slot) {
		r.fill(ctx, m, part{write: r.e.write, shard: shard}.pending(), shard, first, units)
	}
	for i := range units {
		if units[i] != nil {
			good++
		}
	}
	return good
}

// fill reads units of a shard that are nil from a file of a member.
func (r *reader) fill(ctx context.Context, m *member, name string, shard int, first int64, units [][]byte) {
	if !slices.ContainsFunc(units, func(u []byte) bool { return u == nil }) {
		return
	}
	theirs, _ := r.from(ctx, m, name, shard, first, len(units), make([]byte, maxRun*(unitBytes+hashBytes)))
	for i := range units {
		if units[i] == nil {
			units[i] = theirs[i]
		}
	}
}
