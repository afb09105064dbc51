package erasure

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
)

// step is what the writer of the crash workload had begun or was told at a point of the recording.
type step struct {
	op   int
	must map[string]int // acknowledged: size of the content, -1: gone
	may  map[string]int // begun: the other state it may have
	weak bool           // member 0 was away and may lack what was written since: no other may be away too
}

// crashWork is a life of a small set, recorded: puts, renames, deletes and a repair, with a member away in the second
// half, and two owners.
func crashWork(l Layout, lie func(string, bool, string) bool) (fsys *crashfs.FS, steps []step, err error) {
	ctx := context.Background()
	if fsys, err = newDisks(l); err != nil {
		return nil, nil, err
	}
	fsys.Lie = lie
	must := map[string]int{}
	weak := false
	note := func(may map[string]int) {
		copied := map[string]int{}
		for k, v := range must {
			copied[k] = v
		}
		steps = append(steps, step{fsys.Ops(), copied, may, weak})
	}
	note(nil)
	do := func(change map[string]int, f func() error) {
		if err != nil {
			return
		}
		note(change)
		if err = f(); err == nil {
			for k, v := range change {
				must[k] = v
			}
			note(nil)
		}
	}
	for _, away := range []map[int]bool{nil, {0: true}, nil} {
		weak = weak || away != nil
		s, oErr := openDisks(fsys, l, away)
		if oErr != nil {
			return nil, nil, oErr
		}
		release, aErr := s.Acquire(ctx)
		if aErr != nil {
			return nil, nil, aErr
		}
		tag := fmt.Sprint(len(steps))
		put := func(name string, size int) {
			do(map[string]int{name: size}, func() error { return blob.Put(ctx, s, name, content(uint64(size), size)) })
		}
		put("small/"+tag, 40)
		put("large/"+tag, wholeLimit+500)
		put("gone/"+tag, wholeLimit+501)
		do(map[string]int{"large/" + tag: -1, "moved/" + tag: wholeLimit + 500}, func() error { return s.Rename(ctx, "large/"+tag, "moved/"+tag) })
		do(map[string]int{"gone/" + tag: -1}, func() error { return s.Delete(ctx, "gone/"+tag) })
		put("gone/"+tag, 33)
		if err == nil && away == nil {
			_, err = s.Scrub(ctx, ScrubOptions{}, nil)
		}
		if err == nil {
			err = release()
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return fsys, steps, nil
}

// judgeState opens what a crash left with some members away, works on it, then opens it with all of them.
func judgeState(fsys *crashfs.FS, l Layout, want step, away map[int]bool, deep bool) error {
	ctx := context.Background()
	s, err := openDisks(fsys, l, away)
	if err != nil {
		return err
	}
	release, err := s.Acquire(ctx)
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for info, err := range s.List(ctx, "") {
		if err != nil {
			return err
		}
		names[info.Name] = true
		if _, known := want.must[info.Name]; !known {
			if _, known = want.may[info.Name]; !known {
				return fmt.Errorf("%s is there and nobody put it", info.Name)
			}
		}
	}
	held := map[string]int{}
	holds := func(s *Store, name string) (int, error) {
		data, err := blob.Get(ctx, s, name, 1<<20)
		if fault.KindOf(err) == fault.NotFound && err != nil {
			return -1, nil
		}
		if err == nil && !bytes.Equal(data, content(uint64(len(data)), len(data))) {
			err = fmt.Errorf("wrong bytes")
		}
		return len(data), err
	}
	all := map[string]bool{}
	for name := range want.must {
		all[name] = true
	}
	for name := range want.may {
		all[name] = true
	}
	for name := range all {
		got, err := holds(s, name)
		if err != nil {
			return fmt.Errorf("%s is torn: %w", name, err)
		}
		acked, ok := want.must[name]
		if !ok {
			acked = -1
		}
		other, open := want.may[name]
		if got != acked && !(open && got == other) || names[name] != (got >= 0) {
			return fmt.Errorf("%s has %d bytes, want %d or %v (%v); listed: %v", name, got, acked, other, open, names[name])
		}
		held[name] = got
	}
	if err := s.release(release); err != nil || !deep {
		return err
	}
	// All members are back: what was seen stays, and a scrub makes all of it whole.
	if s, err = openDisks(fsys, l, nil); err != nil {
		return fmt.Errorf("with all members: %w", err)
	}
	if release, err = s.Acquire(ctx); err != nil {
		return fmt.Errorf("with all members: %w", err)
	}
	report, err := s.Scrub(ctx, ScrubOptions{}, nil)
	if err != nil || len(report.Damaged) > 0 {
		return fmt.Errorf("scrub with all members: %+v, %w", report.Damaged, err)
	}
	for name, size := range held {
		if got, err := holds(s, name); err != nil || got != size {
			return fmt.Errorf("%s was seen with %d bytes, now %d, %w", name, size, got, err)
		}
	}
	for i := range l.Members() {
		for _, left := range fsys.Names(diskDir(i)) {
			if strings.Contains(left, "/"+deadFolder+"/") || strings.Contains(left, "/"+pendingFolder+"/") {
				return fmt.Errorf("left behind: %s", left)
			}
		}
	}
	return s.release(release)
}

func (s *Store) release(release func() error) error {
	if err := release(); err != nil {
		return err
	}
	return s.Close()
}

func crashCampaign(t *testing.T, l Layout, losses int, lie func(string, bool, string) bool) (states int, wrong error) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(20261122, 5))
	fsys, steps, err := crashWork(l, lie)
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for disk := fsys.Disk(); ; {
		for at+1 < len(steps) && steps[at+1].op <= disk.At() {
			at++
		}
		// Until the first step the set was being created.
		for n := 0; n < losses && disk.At() >= steps[0].op && (!testing.Short() || disk.At()%9 == 0); n++ {
			away := map[int]bool{}
			if l.Data > l.Parity && rnd.IntN(2) == 0 {
				if steps[at].weak {
					away[0] = true
				} else {
					away[rnd.IntN(l.Members())] = true
				}
			}
			loss := []crashfs.Loss{crashfs.Some, crashfs.Everything, crashfs.Nothing}[(states+n)%3]
			states++
			if err := judgeState(disk.Crash(loss, rnd), l, steps[at], away, states%2 == 0); err != nil {
				return states, fmt.Errorf("cut after operation %d, loss %d, away %v (%s): %w", disk.At(), loss, away, disk.Last(3), err)
			}
		}
		if !disk.Step() {
			return states, nil
		}
	}
}

func TestCrashAtEveryOperation(t *testing.T) {
	losses, all, lost := 1, 0, 0
	if os.Getenv("CAIRN_SOAK") != "" {
		losses = 30
	}
	for _, l := range []Layout{{1, 1}, {2, 1}} {
		states, err := crashCampaign(t, l, losses, nil)
		if err != nil {
			t.Errorf("%v: after %d states: %v", l, states, err)
			lost++
		}
		all += states
		t.Logf("%v: %d crash states, each opened with or without a member and read, half of them opened again with all", l, states)
	}
	campaign(t, "erasure-crash", all, lost)
}

// TestCrashHarnessFindsBugs shows that the campaign can fail.
func TestCrashHarnessFindsBugs(t *testing.T) {
	if testing.Short() {
		t.Skip("a short campaign finds few")
	}
	in := func(folder string) func(string, bool, string) bool {
		return func(name string, isDir bool, _ string) bool {
			return isDir && strings.Contains(name+"/", "/"+folder+"/")
		}
	}
	for what, lie := range map[string]func(string, bool, string) bool{
		"no fsync of shards":                   func(_ string, isDir bool, _ string) bool { return !isDir },
		"names of objects not durable":         in(objectFolder),
		"no fsync of directories":              func(_ string, isDir bool, _ string) bool { return isDir },
		"pending shards' names not durable":    in(pendingFolder),
		"marks of deleted objects not durable": in(deadFolder),
	} {
		states, err := crashCampaign(t, Layout{2, 1}, 3, lie)
		if err == nil {
			t.Errorf("%s: not found in %d states", what, states)
			continue
		}
		t.Logf("%s: found after %d states: %v", what, states, err)
	}
}
