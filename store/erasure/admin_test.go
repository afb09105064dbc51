package erasure

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/blobtest"
)

func wantRefused(t *testing.T, what string, err error, kind fault.Kind) {
	t.Helper()
	meaning, advice := "", ""
	if err != nil {
		meaning, advice = fault.Explanation(err)
	}
	if err == nil || fault.KindOf(err) != kind || meaning == "" || advice == "" {
		t.Errorf("%s: %v (%q, %q), want %v with words", what, err, meaning, advice, kind)
	}
}

func TestPlanSpreadsDomains(t *testing.T) {
	var members []Member
	for i := range 12 { // six hosts with two disks each
		members = append(members, Member{Path: fmt.Sprint("/p", i), Domain: fmt.Sprint("host", i/2)})
	}
	p, err := NewPlan(members, Layout{4, 2})
	if err != nil || len(p.Groups) != 2 || p.LoseDomains != 2 || p.LoseMembers != 2 {
		t.Errorf("12 disks of 6 hosts: %v, %v", p, err)
	}
	for _, tt := range []struct {
		domains string
		l       Layout
		lose    int
	}{
		{"abcdef", Layout{4, 2}, 2}, {"aabbcc", Layout{4, 2}, 1}, {"aaabbb", Layout{4, 2}, 0}, {"ab", Layout{1, 1}, 1}, {"aa", Layout{1, 1}, 0},
		{"aabbccdd", Layout{2, 2}, 2},
	} {
		var members []Member
		for i, d := range tt.domains {
			members = append(members, Member{Path: fmt.Sprint("/p", i), Domain: string(d)})
		}
		p, err := NewPlan(members, tt.l)
		if err != nil || p.LoseDomains != tt.lose {
			t.Errorf("%s %v: survives %d domains, want %d (%v)", tt.domains, tt.l, p.LoseDomains, tt.lose, err)
		}
	}
	same := []Member{{Path: t.TempDir(), Domain: "a"}, {Path: t.TempDir(), Domain: "a"}}
	_, err = Create(t.Context(), same, Layout{1, 1}, CreateOptions{})
	wantRefused(t, "two in one domain", err, fault.Invalid)
	if _, err := Create(t.Context(), same, Layout{1, 1}, CreateOptions{Force: true}); err != nil {
		t.Error(err)
	}
	_, err = Create(t.Context(), same, Layout{1, 1}, CreateOptions{Force: true})
	wantRefused(t, "members that are not empty", err, fault.Exists)
	_, err = Create(t.Context(), same, Layout{4, 2}, CreateOptions{Force: true})
	wantRefused(t, "too few members", err, fault.Invalid)
}

func TestForeignDisksAreRefused(t *testing.T) {
	d, other := newSet(t, Layout{2, 1}), newSet(t, Layout{2, 1})
	open := func(paths ...string) error {
		s, err := OpenPaths(t.Context(), Options{}, paths...)
		if err == nil {
			err = s.Close()
		}
		return err
	}
	if err := open(d.paths[2], d.paths[0], d.paths[1]); err != nil {
		t.Errorf("in another order: %v", err)
	}
	wantRefused(t, "a disk of another set", open(d.paths[0], d.paths[1], other.paths[2]), fault.Conflict)
	wantRefused(t, "too few", open(d.paths[0]), fault.Transient)
	wantRefused(t, "nothing", open(t.TempDir()), fault.NotFound)
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(d.paths[0])); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, "a copy of a disk", open(d.paths[0], d.paths[1], copied), fault.Conflict)

	// An empty disk at a member's place is left alone until Replace.
	empty := t.TempDir()
	s := d.openWith(Options{}, d.paths[0], d.paths[1], empty)
	release := d.own(s)
	mustPut(t, s, "a", content(1, 500_000))
	if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
		t.Errorf("on the empty disk: %v, %v", left, err)
	}
	h, err := s.Health(t.Context())
	if err != nil || len(h.Unused) != 1 || !strings.Contains(h.Unused[0].Reason, "empty") || h.CanLose != 0 {
		t.Errorf("Health = %+v, %v", h, err)
	}
	id, err := s.Replace(t.Context(), "d2", Member{Path: empty})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Rebuild(t.Context(), id, nil); err != nil {
		t.Fatal(err)
	}
	release()
	wantRefused(t, "a disk that was replaced", open(d.paths...), fault.Conflict)
	mustRead(t, d.openWith(Options{}, d.paths[1], empty), "a", content(1, 500_000))
	_, err = s.Replace(t.Context(), "d0", Member{Path: other.paths[0]})
	wantRefused(t, "replace by a disk with data", err, fault.Exists)
}

func TestTwoHistoriesOfAMirror(t *testing.T) {
	d := newSet(t, Layout{1, 1})
	alone := func(i int, name string) {
		s := d.openWith(Options{}, d.paths[i])
		release := d.own(s)
		mustPut(t, s, name, []byte(name))
		release()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	alone(0, "left")
	alone(1, "right")
	_, err := OpenPaths(t.Context(), Options{}, d.paths...)
	wantRefused(t, "two histories", err, fault.Conflict)
	s := d.openWith(Options{Trust: []string{"d0"}}, d.paths...)
	release := d.own(s)
	mustScrub(t, s)
	mustRead(t, s, "left", []byte("left"))
	mustRead(t, s, "right", []byte("right"))
	release()
	mustRead(t, d.openWith(Options{}, d.paths...), "left", []byte("left"))
}

func TestGrow(t *testing.T) {
	d := newSet(t, Layout{2, 1})
	s := d.open()
	mustPut(t, s, "old", content(1, 200_000))
	var more []Member
	share := int64(90)
	for range 3 {
		more = append(more, Member{Path: filepath.Join(memoryDir(t), "m"), Free: func() (int64, int64, error) { return share, 100, nil }})
	}
	if _, err := s.Grow(t.Context(), more, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// Members of the first group are asked through the file system, which is never 100 % free.
	_, groups := s.snapshot()
	for _, m := range groups[0].members {
		m.given.Free = func() (int64, int64, error) { return 50, 100, nil }
	}
	mustPut(t, s, "new", content(2, 200_000))
	err := blob.Put(t.Context(), s, "old", nil)
	if fault.KindOf(err) != fault.Exists {
		t.Errorf("put of a name in the other group: %v, want exists", err)
	}
	h, err := s.Health(t.Context())
	if err != nil || len(h.Groups) != 2 || h.Groups[0].Objects != 1 || h.Groups[1].Objects != 1 || h.CanLose != 1 {
		t.Errorf("Health = %+v, %v", h, err)
	}
	for _, m := range more {
		d.paths = append(d.paths, m.Path)
	}
	slices.Reverse(d.paths)
	again := d.open()
	mustRead(t, again, "old", content(1, 200_000))
	mustRead(t, again, "new", content(2, 200_000))
	_, err = OpenPaths(t.Context(), Options{}, d.paths[3:]...)
	wantRefused(t, "a whole group missing", err, fault.Transient)
}

func TestScrubResumes(t *testing.T) {
	d := newSet(t, Layout{2, 1})
	s := d.open()
	for i := range 5 {
		mustPut(t, s, fmt.Sprint("o/", i), content(uint64(i), 100_000))
		d.flip(d.shards(fmt.Sprint("o/", i))[i%3], headerBytes+9, 8)
	}
	seen, repaired, from := 0, 0, ""
	for round := 0; ; round++ {
		report, err := s.Scrub(t.Context(), ScrubOptions{From: from, Budget: 1, BytesPerSecond: 1 << 40}, nil)
		if err != nil || round > 5 {
			t.Fatal(round, err)
		}
		seen, repaired, from = seen+report.Objects, repaired+report.Repaired, report.Cursor
		if from == "" {
			break
		}
	}
	if seen != 5 || repaired != 5 {
		t.Errorf("%d objects, %d repaired in pieces, want 5 and 5", seen, repaired)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.Scrub(ctx, ScrubOptions{}, func(Progress) { cancel() }); fault.KindOf(err) != fault.Canceled {
		t.Errorf("Scrub that was stopped: %v, want canceled", err)
	}
}

// What a Scrub says that there is to be read is what it reads, also of small objects.
func TestScrubProgressAddsUp(t *testing.T) {
	d := newSet(t, Layout{2, 1})
	s := d.open()
	for i, n := range []int{0, 1, 40, wholeLimit, wholeLimit + 1, 700_001} {
		mustPut(t, s, fmt.Sprint("o/", i), content(uint64(i), n))
	}
	var last Progress
	report, err := s.Scrub(t.Context(), ScrubOptions{}, func(p Progress) { last = p })
	if err != nil || last.Bytes != last.BytesTotal || report.Bytes != last.BytesTotal || last.Objects != 6 {
		t.Errorf("progress %+v, report %+v, %v", last, report, err)
	}
}

// Health is asked often. It does not list objects, and still knows of what has changed.
func TestHealthDoesNotList(t *testing.T) {
	d := newSet(t, Layout{2, 1})
	var lists atomic.Int64
	var members []Member
	for _, p := range d.paths {
		b, err := (Member{Path: p}).open()
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		members = append(members, Member{Store: blobtest.Fails(b, func(op, name string) error {
			if op == "list" && strings.HasPrefix(name, objectFolder) {
				lists.Add(1)
			}
			return nil
		})})
	}
	s, err := Open(t.Context(), members, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	defer d.own(s)()
	if lists.Load() == 0 {
		t.Error("Acquire has not listed: the test has no force")
	}
	want := func(objects, below, lacking int, bytes int64) {
		t.Helper()
		before := lists.Load()
		h, err := s.Health(t.Context())
		if err != nil || lists.Load() != before {
			t.Fatalf("%d listings, %v", lists.Load()-before, err)
		}
		g := h.Groups[0]
		if g.Objects != objects || g.BelowFull != below || g.Members[0].Lacking != lacking || g.Bytes != bytes || g.Unreadable != 0 {
			t.Errorf("Health = %+v, want %d objects of %d bytes, %d below full, %d lacking", g, objects, bytes, below, lacking)
		}
	}
	want(0, 0, 0, 0)
	mustPut(t, s, "a", content(1, 100))
	mustPut(t, s, "b", content(2, 200_000))
	want(2, 0, 0, 200_100)
	for _, file := range d.shards("b") {
		if strings.HasPrefix(file, d.paths[0]) {
			must(t, os.Remove(file))
		}
	}
	mustScrub(t, s)
	want(2, 0, 0, 200_100)
	must(t, s.Delete(t.Context(), "b"))
	want(1, 0, 0, 100)
}
