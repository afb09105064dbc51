package erasure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// judge looks at the set with any members that can be there, as a reader and as an owner: what is there is found or it
// is said that it cannot be known now, and what is gone does not come back.
func (w *world) judge() (checks int, err error) {
	if err := w.judgeCount(); err != nil {
		return 0, err
	}
	for _, slots := range subsets(w.l) {
		for _, owner := range []bool{false, true} {
			if err := w.judgeWith(slots, owner); err != nil {
				return checks, fmt.Errorf("with members %v, owner %v: %w", slots, owner, err)
			}
			checks++
		}
	}
	return checks, nil
}

// judgeCount compares what the owner has counted with what is there.
func (w *world) judgeCount() error {
	if w.s == nil {
		return nil
	}
	_, groups := w.s.snapshot()
	had := w.s.censuses[0]
	delete(w.s.censuses, 0)
	err := w.s.tally(context.Background(), groups[0])
	is := w.s.censuses[0]
	w.s.censuses[0] = had
	if err != nil {
		return transient(err)
	}
	if had.objects[1] != is.objects[1] || had.bytes != is.bytes || had.shards != is.shards {
		return fmt.Errorf("counted %+v, there is %+v", had, is)
	}
	return nil
}

func (w *world) judgeWith(slots []int, owner bool) (err error) {
	ctx := context.Background()
	all := len(slots) == w.l.Members() && !w.rolled
	s, err := w.open(slots, true)
	if err != nil {
		return transient(err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if owner {
		release, err := s.Acquire(ctx)
		if err != nil && !all {
			return transient(err)
		} else if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	for _, name := range w.live {
		p, err := blob.Get(ctx, s, name, 1<<10)
		if want, _ := strings.CutPrefix(name, "r/"); err == nil && !bytes.Equal(p, []byte(want)) {
			return fmt.Errorf("%s has other bytes", name)
		}
		if fault.KindOf(err) == fault.NotFound || err != nil && all {
			return fmt.Errorf("%s: %w", name, err)
		}
		if _, err := s.Stat(ctx, name); fault.KindOf(err) == fault.NotFound {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, name := range w.gone {
		if _, err := s.Stat(ctx, name); fault.KindOf(err) != fault.NotFound && (transient(err) != nil || err == nil || all) {
			return fmt.Errorf("%s was deleted or renamed: %w", name, errors.Join(err, io.EOF))
		}
	}
	return w.judgeList(s, all)
}

func (w *world) judgeList(s *Store, all bool) error {
	var names []string
	for info, err := range s.List(context.Background(), "") {
		if err != nil && !all {
			return transient(err)
		} else if err != nil {
			return err
		}
		if slices.Contains(w.gone, info.Name) || slices.Contains(w.live, info.Name) {
			names = append(names, info.Name) // others are of changes that failed
		}
	}
	slices.Sort(names)
	if want := slices.Sorted(slices.Values(w.live)); !slices.Equal(names, want) {
		return fmt.Errorf("listed are %v, want %v", names, want)
	}
	return nil
}
