package campaign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/campaign/memory"
	"github.com/cairn-backup/cairn/store/campaign/workload"
	"github.com/cairn-backup/cairn/store/erasure"
)

// set is an erasure set of members in memory with a repository on it.
type set struct {
	layout  erasure.Layout
	members []*memory.Store
	key     store.Key
	points  int
}

func newSet(t *testing.T, layout erasure.Layout) *set {
	t.Helper()
	s := &set{layout: layout}
	for i := range layout.Members() {
		s.members = append(s.members, memory.New(fmt.Sprint(i)))
	}
	if _, err := erasure.Create(t.Context(), asMembers(s.members), layout, erasure.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.key, err = store.NewKeyFile(t.TempDir() + "/key"); err != nil {
		t.Fatal(err)
	}
	b, err := erasure.Open(t.Context(), asMembers(s.members), erasure.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.fill(t.Context(), b), b.Close()); err != nil {
		t.Fatal(err)
	}
	return s
}

func asMembers(stores []*memory.Store) (out []erasure.Member) {
	for i, m := range stores {
		if m != nil {
			out = append(out, erasure.Member{Store: m, Domain: fmt.Sprint("domain-", i)})
		}
	}
	return out
}

func (s *set) fill(ctx context.Context, b *erasure.Store) error {
	if err := store.Create(ctx, b, s.key, store.CreateOptions{ChunkBytes: workload.ChunkBytes}); err != nil {
		return err
	}
	r, err := store.Open(ctx, b, s.key, store.Options{})
	if err != nil {
		return err
	}
	rnd := random(8, 8)
	disk := make([]byte, 12*workload.ChunkBytes)
	for i := range disk {
		disk[i] = byte(rnd.Uint32())
	}
	for range 3 {
		copy(disk[rnd.IntN(len(disk)-500):], disk[:500])
		if _, err := workload.Backup(ctx, r, "vm", disk, nil); err != nil {
			return errors.Join(err, r.Close())
		}
		s.points++
	}
	return r.Close()
}

// damage spoils objects of one member, some or all of them.
func damage(m *memory.Store, rnd *rand.Rand) (n int) {
	most := rnd.IntN(2) == 0
	for _, name := range m.Names("") {
		good := m.Content(name)
		if !most && rnd.IntN(8) > 0 || len(good) == 0 {
			continue
		}
		bad := bytes.Clone(good)
		at := rnd.IntN(len(bad))
		switch rnd.IntN(6) {
		case 0:
			bad[at] ^= 1 << rnd.IntN(8)
		case 1:
			bad = bad[:at]
		case 2:
			clear(bad[at:])
		case 3:
			bad = append(bad, 0)
		case 4:
			bad = nil
		case 5:
			other := pick(rnd, m.Names(""))
			bad = bytes.Clone(m.Content(other))
			m.Set(other, bytes.Clone(good))
		}
		if !bytes.Equal(good, bad) {
			n++
		}
		m.Set(name, bad)
	}
	return n
}

// intact answers whether every restore point reads as it was backed up.
func (s *set) intact(ctx context.Context, b *erasure.Store) error {
	r, err := store.Open(ctx, b, s.key, store.Options{ReadOnly: true, Workers: 1})
	if err != nil {
		return err
	}
	defer r.Close()
	points, err := r.RestorePoints(ctx)
	if err != nil || len(points) != s.points {
		return fmt.Errorf("%d restore points: %w", len(points), err)
	}
	for _, p := range points {
		if err := workload.Whole(ctx, r, p); err != nil {
			return err
		}
	}
	return nil
}

// survive damages as many members as there is parity for, and answers what is not put right.
func (s *set) survive(ctx context.Context, rnd *rand.Rand) (spoilt int, err error) {
	var members []*memory.Store
	for _, m := range s.members {
		members = append(members, m.Clone())
	}
	hit := rnd.Perm(len(members))[:s.layout.Parity]
	for spoilt == 0 {
		for _, i := range hit {
			spoilt += damage(members[i], rnd)
		}
	}
	b, err := erasure.Open(ctx, asMembers(members), erasure.Options{})
	if err != nil {
		return spoilt, fmt.Errorf("the set does not open: %w", err)
	}
	if err := s.intact(ctx, b); err != nil {
		return spoilt, errors.Join(fmt.Errorf("before the repair: %w", err), b.Close())
	}
	err = s.repair(ctx, b, members)
	if err = errors.Join(err, b.Close()); err != nil {
		return spoilt, err
	}
	return spoilt, s.without(ctx, members, hit)
}

// repair is what an owner does: a member that does not know any more who it is gets replaced, the others are scrubbed.
func (s *set) repair(ctx context.Context, b *erasure.Store, members []*memory.Store) error {
	release, err := b.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("acquire: %w", err)
	}
	err = s.replace(ctx, b, members)
	if err == nil {
		_, err = b.Scrub(ctx, erasure.ScrubOptions{}, nil)
	}
	return errors.Join(err, release())
}

func (s *set) replace(ctx context.Context, b *erasure.Store, members []*memory.Store) error {
	health, err := b.Health(ctx)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	var lost []string
	for _, m := range health.Groups[0].Members {
		used[m.Place] = true
		if m.Place == "" {
			lost = append(lost, m.ID)
		}
	}
	for i, m := range members {
		if used[m.Location()] || len(lost) == 0 {
			continue
		}
		members[i] = memory.New(fmt.Sprint("replaced-", i))
		id, err := b.Replace(ctx, lost[0], erasure.Member{Store: members[i], Domain: fmt.Sprint("domain-", i)})
		if err != nil {
			return fmt.Errorf("replace %s: %w", lost[0], err)
		}
		if err := b.Rebuild(ctx, id, nil); err != nil {
			return fmt.Errorf("rebuild: %w", err)
		}
		lost = lost[1:]
	}
	return nil
}

// without reads everything with as many other members gone: only if the damaged ones were put right can that be.
func (s *set) without(ctx context.Context, members []*memory.Store, repaired []int) error {
	gone := 0
	for i := range members {
		spared := false
		for _, k := range repaired {
			spared = spared || k == i
		}
		if !spared && gone < s.layout.Parity {
			members[i] = nil
			gone++
		}
	}
	b, err := erasure.Open(ctx, asMembers(members), erasure.Options{})
	if err != nil {
		return fmt.Errorf("after the repair, other members gone: %w", err)
	}
	if err := s.intact(ctx, b); err != nil {
		return errors.Join(fmt.Errorf("after the repair, other members gone: %w", err), b.Close())
	}
	return b.Close()
}

// TestCampaignRotWithinParity spoils files on as many members as there is parity for: everything is read all the same,
// a scrub puts all of it right, and then as many other members may go.
func TestCampaignRotWithinParity(t *testing.T) {
	seed := seeded.Seed(t)
	injected, fired, lost, spoilt := 0, 0, 0, 0
	for _, layout := range []erasure.Layout{{Data: 4, Parity: 2}, {Data: 2, Parity: 1}} {
		s := newSet(t, layout)
		for i := range count(15, 100, 2000) {
			injected++
			n, err := s.survive(t.Context(), random(seed, uint64(i)))
			spoilt += n
			if n > 0 {
				fired++
			}
			if err != nil {
				lost++
				t.Errorf("%v, case %d: %d files spoilt: %v", layout, i, n, err)
			}
		}
	}
	report(t, "rot-within-parity", injected, fired, lost, fmt.Sprintf("files-spoilt=%d", spoilt))
}
