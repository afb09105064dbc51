package workload

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/erasure"
)

// The members of the sets, folders of Config.Dir: those at the beginning, the one that is put in the place of the
// second, and those of the second group.
var (
	firstMembers = []string{"m0", "m1", "m2"}
	freshMember  = "fresh"
	moreMembers  = []string{"g0", "g1", "g2"}
	setLayout    = erasure.Layout{Data: 2, Parity: 1}
)

func membersAt(dir string, names ...string) (out []erasure.Member) {
	for _, name := range names {
		out = append(out, erasure.Member{ID: name, Path: filepath.Join(dir, name)})
	}
	return out
}

// onSet is the life of a repository on an erasure set: backups, prunes and collects; a disk rots and is repaired, one
// is replaced and filled, a group is added.
func (w *worker) onSet(ctx context.Context) (err error) {
	if _, err := erasure.Create(ctx, membersAt(w.c.Dir, firstMembers...), setLayout, erasure.CreateOptions{}); err != nil {
		return err
	}
	s, err := erasure.Open(ctx, membersAt(w.c.Dir, firstMembers...), erasure.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	w.b = s
	if err := store.Create(ctx, s, w.key, store.CreateOptions{Name: "campaign", ChunkBytes: ChunkBytes}); err != nil {
		return err
	}
	w.ack("created")
	if err := w.backups(ctx, "a", "b", "a"); err != nil {
		return err
	}
	if w.r, err = store.Open(ctx, s, w.key, store.Options{IndexDir: w.c.IndexDir}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.r.Close()) }()
	for _, step := range []func() error{
		func() error { return w.prune(ctx) },
		func() error { return second(w.r.Collect(ctx, store.CollectOptions{Compact: 0.97})) },
		func() error { return spoil(w.rnd, filepath.Join(w.c.Dir, "m0", "objects/packs/*/_/*")) },
		func() error { return second(s.Scrub(ctx, erasure.ScrubOptions{}, nil)) },
		func() error { return replace(ctx, s, w.c.Dir) },
		func() error { return w.backup(ctx, "a") },
		func() error { return second(s.Grow(ctx, membersAt(w.c.Dir, moreMembers...), erasure.CreateOptions{})) },
		func() error { return w.backup(ctx, "b") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	w.ack("done")
	return nil
}

func second[T any](_ T, err error) error { return err }

// replace puts the fresh member in the place of the second one and fills it.
func replace(ctx context.Context, s *erasure.Store, dir string) error {
	id, err := s.Replace(ctx, "m1", membersAt(dir, freshMember)[0])
	if err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	return s.Rebuild(ctx, id, nil)
}

// openSet opens the set as an admin would who does not know how far a change has come: with the members of before it,
// and if these are refused, with those of after it.
func openSet(ctx context.Context, dir string) (s *erasure.Store, replaced, grown bool, err error) {
	var errs []error
	for _, grown := range []bool{false, true} {
		for _, replaced := range []bool{false, true} {
			names := []string{"m0", "m1", "m2"}
			if replaced {
				names[1] = freshMember
			}
			if grown {
				names = append(names, moreMembers...)
			}
			s, err := erasure.Open(ctx, membersAt(dir, names...), erasure.Options{})
			if err == nil && replaced && !hasMember(s, freshMember) {
				// It has too few of the others' words to be a member: opened without it.
				err = errors.Join(errors.New("the new member is none yet"), s.Close())
			}
			if err == nil {
				return s, replaced, grown, nil
			}
			errs = append(errs, err)
		}
	}
	return nil, false, false, errors.Join(errs...)
}

func hasMember(s *erasure.Store, id string) bool {
	for _, group := range s.Members() {
		for _, m := range group {
			if m == id {
				return true
			}
		}
	}
	return false
}

// JudgeSet answers what is wrong with what a killed worker left on a set: everything promised is whole; what was cut
// short can be repeated; and then any one member of each group may go.
func JudgeSet(ctx context.Context, c Config, want Promises) error {
	s, replaced, grown, err := openSet(ctx, c.Dir)
	if err != nil {
		return notCreated(want, err)
	}
	return errors.Join(judgeSet(ctx, c, want, s, replaced, grown), s.Close())
}

func judgeSet(ctx context.Context, c Config, want Promises, s *erasure.Store, replaced, grown bool) (err error) {
	r, err := open(ctx, s, c.IndexDir, c.KeyFile, want)
	if err != nil {
		return notCreated(want, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	points, err := r.RestorePoints(ctx)
	if err != nil {
		return fmt.Errorf("torn manifest: %w", err)
	}
	if err := wholeness(ctx, r, points, want); err != nil {
		return err
	}
	// What had rotted when the process was killed must not meet a member that is taken out.
	if report, err := s.Scrub(ctx, erasure.ScrubOptions{}, nil); err != nil || len(report.Damaged) > 0 {
		return fmt.Errorf("first scrub: %+v: %w", report, err)
	}
	if !replaced {
		err = replace(ctx, s, c.Dir)
	} else {
		err = s.Rebuild(ctx, freshMember, nil)
	}
	if err == nil && !grown {
		_, err = s.Grow(ctx, membersAt(c.Dir, moreMembers...), erasure.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("repeated: %w", err)
	}
	if err := goOn(ctx, r, "", points); err != nil {
		return err
	}
	report, err := s.Scrub(ctx, erasure.ScrubOptions{}, nil)
	if err != nil || len(report.Damaged) > 0 {
		return fmt.Errorf("scrub: %+v: %w", report, err)
	}
	if points, err = r.RestorePoints(ctx); err != nil {
		return err
	}
	for _, away := range []int{0, 1, 2} {
		if err := judgeWithout(ctx, c, points, away); err != nil {
			return fmt.Errorf("without member %d of each group: %w", away, err)
		}
	}
	return nil
}

// judgeWithout reads everything with one member of each group gone.
func judgeWithout(ctx context.Context, c Config, points []store.RestorePoint, away int) (err error) {
	var names []string
	for _, group := range [][]string{{"m0", freshMember, "m2"}, moreMembers} {
		for i, name := range group {
			if i != away {
				names = append(names, name)
			}
		}
	}
	s, err := erasure.Open(ctx, membersAt(c.Dir, names...), erasure.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	key, err := store.LoadKeyFile(c.KeyFile)
	if err != nil {
		return err
	}
	r, err := store.Open(ctx, s, key, store.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for _, p := range points {
		if err := Whole(ctx, r, p); err != nil {
			return err
		}
	}
	if there, err := r.RestorePoints(ctx); err != nil || len(there) != len(points) {
		return fault.New(fault.Corrupt, "judge", "", "%d of %d restore points are there: %v", len(there), len(points), err)
	}
	return nil
}
