package erasure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
)

// overhaul is a recorded life of a set of layout l on disks 0 to n-1: it is made, filled, a disk is replaced by disk n
// and rebuilt, and a group is added on the disks after that.
type overhaul struct {
	l    Layout
	fsys *crashfs.FS
	// Operations at which something had been done: made, objects acknowledged (with how many), replaced, rebuilt, grown.
	made, replaced, rebuilt, grown int
	acked                          []int
}

func overhauled(i int) []byte { return content(uint64(i), []int{30, wholeLimit + 300}[i%2]) }

func recordOverhaul(l Layout, lie func(string, bool, string) bool) (o *overhaul, err error) {
	ctx := context.Background()
	o = &overhaul{l: l, fsys: crashfs.New()}
	o.fsys.Lie = lie
	n := l.Members()
	if _, err := Create(ctx, o.members(0, n), l, CreateOptions{}); err != nil {
		return nil, err
	}
	o.made = o.fsys.Ops()
	s, err := Open(ctx, o.members(0, n), Options{})
	if err != nil {
		return nil, err
	}
	release, err := s.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	put := func() error {
		err := blob.Put(ctx, s, fmt.Sprint("o/", len(o.acked)), overhauled(len(o.acked)))
		o.acked = append(o.acked, o.fsys.Ops())
		return err
	}
	steps := []func() error{put, put, put,
		func() error {
			_, err := s.Replace(ctx, "m1", o.members(n, n+1)[0])
			o.replaced = o.fsys.Ops()
			return err
		}, put,
		func() error {
			err := s.Rebuild(ctx, fmt.Sprint("m", n), nil)
			o.rebuilt = o.fsys.Ops()
			return err
		}, put,
		func() error {
			_, err := s.Grow(ctx, o.members(n+1, 2*n+1), CreateOptions{})
			o.grown = o.fsys.Ops()
			return err
		}, put, put, release, s.Close,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// members makes disks from to below to available, creating what is not there.
func (o *overhaul) members(from, to int) (out []Member) { return disksOf(o.fsys, from, to) }

func disksOf(fsys *crashfs.FS, from, to int) (out []Member) {
	for i := from; i < to; i++ {
		b, err := file.OpenFS(fsys, diskDir(i))
		if err != nil {
			b, err = file.CreateFS(fsys, diskDir(i))
		}
		if err == nil {
			out = append(out, Member{ID: fmt.Sprint("m", i), Domain: fmt.Sprint("m", i), Store: b})
		}
	}
	return out
}

// openAny opens the set as an admin would who does not know how far a change has come: with the members of before it,
// and if these are refused, with those of after it.
func (o *overhaul) openAny(fsys *crashfs.FS) (s *Store, replaced, grown bool, err error) {
	n := o.l.Members()
	var errs []error
	for _, grown := range []bool{false, true} {
		for _, replaced := range []bool{false, true} {
			members := disksOf(fsys, 0, n)
			if replaced {
				members[1] = disksOf(fsys, n, n+1)[0]
			}
			if grown {
				members = append(members, disksOf(fsys, n+1, 2*n+1)...)
			}
			s, err := Open(context.Background(), members, Options{})
			if err == nil && replaced && s.memberByID(fmt.Sprint("m", n)) == nil {
				err = errors.Join(errors.New("the new member is none yet"), s.Close())
			}
			if err == nil {
				return s, replaced, len(s.Members()) > 1, nil
			}
			if meaning, advice := fault.Explanation(err); meaning == "" && !replaced || advice == "" && !replaced {
				return nil, false, false, fmt.Errorf("not said what to do: %w", err)
			}
			errs = append(errs, err)
		}
	}
	return nil, false, false, errors.Join(errs...)
}

// judge opens what a crash after operation at left, ends what had been begun, and looks for what was acknowledged: with
// all members, and with one of each group gone.
func (o *overhaul) judge(fsys *crashfs.FS, at int, gone int) error {
	ctx, n := context.Background(), o.l.Members()
	s, replaced, grown, err := o.openAny(fsys)
	if err != nil && at < o.made {
		return o.again(fsys)
	}
	if err != nil {
		return err
	}
	if at >= o.replaced && o.replaced > 0 && !replaced || at >= o.grown && !grown {
		return fmt.Errorf("a change that was done is undone: replaced %v, grown %v", replaced, grown)
	}
	release, err := s.Acquire(ctx)
	if err != nil {
		return err
	}
	if err := o.holds(s, at); err != nil {
		return err
	}
	if !replaced {
		if _, err := s.Replace(ctx, "m1", disksOf(fsys, n, n+1)[0]); err != nil {
			return fmt.Errorf("replace again: %w", err)
		}
	}
	if err := s.Rebuild(ctx, fmt.Sprint("m", n), nil); err != nil {
		return fmt.Errorf("rebuild again: %w", err)
	}
	if !grown {
		if _, err := s.Grow(ctx, disksOf(fsys, n+1, 2*n+1), CreateOptions{}); err != nil {
			return fmt.Errorf("grow again: %w", err)
		}
	}
	report, err := s.Scrub(ctx, ScrubOptions{}, nil)
	if err != nil || len(report.Damaged) > 0 {
		return fmt.Errorf("scrub: %+v, %w", report.Damaged, err)
	}
	if err := errors.Join(o.holds(s, at), s.release(release)); err != nil {
		return err
	}
	return o.judgeWithout(fsys, at, gone)
}

// again creates the set anew, on emptied disks, after a Create that was cut off and says so.
func (o *overhaul) again(fsys *crashfs.FS) error {
	for i := range o.l.Members() {
		for _, name := range fsys.Names(diskDir(i)) {
			if err := fsys.Remove(name); err != nil {
				return err
			}
		}
	}
	if _, err := Create(context.Background(), disksOf(fsys, 0, o.l.Members()), o.l, CreateOptions{}); err != nil {
		return fmt.Errorf("create again: %w", err)
	}
	return nil
}

func (o *overhaul) judgeWithout(fsys *crashfs.FS, at, gone int) error {
	n := o.l.Members()
	first, second := disksOf(fsys, 0, n), disksOf(fsys, n+1, 2*n+1)
	first[1] = disksOf(fsys, n, n+1)[0]
	members := append(append(first[:gone:gone], first[gone+1:]...), append(second[:gone:gone], second[gone+1:]...)...)
	s, err := Open(context.Background(), members, Options{})
	if err != nil {
		return fmt.Errorf("without member %d: %w", gone, err)
	}
	return errors.Join(o.holds(s, at), s.Close())
}

// holds looks for what had been acknowledged.
func (o *overhaul) holds(s *Store, at int) error {
	for i, acked := range o.acked {
		if acked > at {
			return nil
		}
		got, err := blob.Get(context.Background(), s, fmt.Sprint("o/", i), 1<<20)
		if err != nil || !bytes.Equal(got, overhauled(i)) {
			return fmt.Errorf("object %d of %d: other bytes, or %w", i, len(o.acked), err)
		}
	}
	return nil
}

// inside reports whether an operation is one of a change of the set.
func (o *overhaul) inside(at int) bool {
	return at <= o.made || at > o.acked[2] && at <= o.replaced || at > o.acked[3] && at <= o.rebuilt || at > o.acked[4] && at <= o.grown
}

// cut cuts the power after one of every so many operations, and seldomer where the set is not being changed.
func (o *overhaul) cut(every, losses int) (states, changing int, err error) {
	rnd := rand.New(rand.NewPCG(20261122, 7))
	for disk := o.fsys.Disk(); ; {
		at := disk.At()
		inside := o.inside(at)
		for i := 0; i < losses && (inside && at%every == 0 || at%(7*every) == 0); i++ {
			loss := []crashfs.Loss{crashfs.Some, crashfs.Everything, crashfs.Nothing}[rnd.IntN(3)]
			states++
			if inside {
				changing++
			}
			if err := o.judge(disk.Crash(loss, rnd), at, rnd.IntN(o.l.Members())); err != nil {
				return states, changing, fmt.Errorf("cut after operation %d (made %d, acked %v, replaced %d, rebuilt %d, grown %d), loss %d, %s: %w",
					at, o.made, o.acked, o.replaced, o.rebuilt, o.grown, loss, disk.Last(3), err)
			}
		}
		if !disk.Step() {
			return states, changing, nil
		}
	}
}

// TestCrashWhileASetIsChanged cuts the power after operations of Create, Replace, Rebuild and Grow.
func TestCrashWhileASetIsChanged(t *testing.T) {
	losses, every, all, lost := 1, 3, 0, 0
	if os.Getenv("CAIRN_SOAK") != "" {
		losses, every = 10, 1
	}
	if testing.Short() {
		every = 20
	}
	for _, l := range []Layout{{1, 1}, {2, 1}} {
		o, err := recordOverhaul(l, nil)
		if err != nil {
			t.Fatal(err)
		}
		states, changing, err := o.cut(every, losses)
		if err != nil {
			t.Errorf("%v: after %d states: %v", l, states, err)
			lost++
		} else if changing < 50 && !testing.Short() {
			t.Errorf("%v: only %d states in the midst of a change", l, changing)
		}
		all += states
		t.Logf("%v: %d crash states, %d of them in the midst of a change; each was ended and read, with all members and with one of each group gone", l, states, changing)
	}
	campaign(t, "erasure-crash-while-changed", all, lost)
}

// TestCrashWhileChangedFindsBugs shows that it can fail.
func TestCrashWhileChangedFindsBugs(t *testing.T) {
	if testing.Short() {
		t.Skip("a short campaign finds few")
	}
	for what, lie := range map[string]func(string, bool, string) bool{
		"descriptions are not durable": func(name string, isDir bool, _ string) bool { return isDir && strings.HasSuffix(name, "/"+setFolder) },
		"no fsync of files":            func(_ string, isDir bool, _ string) bool { return !isDir },
	} {
		o, err := recordOverhaul(Layout{2, 1}, lie)
		if err != nil {
			t.Fatal(err)
		}
		states, _, err := o.cut(1, 2)
		if err == nil {
			t.Errorf("%s: not found in %d states", what, states)
			continue
		}
		t.Logf("%s: found after %d states: %v", what, states, err)
	}
}
