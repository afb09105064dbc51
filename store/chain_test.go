package store

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChainTellsWhatIsMissing(t *testing.T) {
	g := newRig(t)
	var points []RestorePoint
	for i := range 6 {
		points = append(points, g.backup([]byte{1, byte(i)}, nil, nil))
	}
	name := func(i int) string { return filepath.Join(g.dir, "manifests", points[i].ID) }
	check := func(what, problem, note string) {
		t.Helper()
		report, err := g.repo.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []struct {
			got  []string
			want string
		}{{report.Problems, problem}, {report.Notes, note}} {
			if x.want == "" && len(x.got) > 0 || x.want != "" && (len(x.got) != 1 || !strings.Contains(x.got[0], x.want)) {
				t.Errorf("%s: problems %q, notes %q", what, report.Problems, report.Notes)
				return
			}
		}
	}
	check("whole", "", "")
	if err := g.repo.Prune(t.Context(), points[0].ID, points[2].ID); err != nil {
		t.Fatal(err)
	}
	if n := len(g.files("pruned")); n != 1 {
		t.Errorf("%d records", n)
	}
	check("two pruned", "", "")
	third := mustRead(t, name(3))
	if err := os.Remove(name(3)); err != nil {
		t.Fatal(err)
	}
	check("one taken away", "number 4 of series vm", "")
	if err := os.Remove(name(1)); err != nil {
		t.Fatal(err)
	}
	report, err := g.repo.Check(t.Context())
	if err != nil || len(report.Problems) != 2 {
		t.Errorf("two taken away: %+v, %v", report, err)
	}
	mustWrite(t, name(3), third)
	check("one put back", "number 2 of series vm", "")
	record := g.files("pruned")[0]
	text := mustRead(t, record)
	mustWrite(t, record, []byte(strings.Replace(string(text), `"ranges":[[1,1],[3,3]]`, `"ranges":[[1,3]]`, 1)))
	report, err = g.repo.Check(t.Context())
	if err != nil || len(report.Problems) != 1 || !strings.Contains(report.Problems[0], "number 1 to 3") {
		t.Errorf("forged record: %+v, %v", report, err)
	}
	mustWrite(t, record, text)
	// A number is never given twice, also when the newest were pruned.
	if err := g.repo.Prune(t.Context(), points[5].ID, points[4].ID); err != nil {
		t.Fatal(err)
	}
	g.reopen()
	if p := g.backup([]byte{2}, nil, nil); p.Sequence != 7 || p.Previous != points[3].ID {
		t.Errorf("the next is number %d after %s", p.Sequence, p.Previous)
	}
	check("newest pruned", "number 2 of series vm", "")
}

func TestReplayedPointIsTold(t *testing.T) {
	g := newRig(t)
	p := g.backup([]byte{1}, nil, nil)
	q := g.backup([]byte{2}, nil, nil)
	old := mustRead(t, filepath.Join(g.dir, "manifests", p.ID))
	if err := g.repo.Prune(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, filepath.Join(g.dir, "manifests", p.ID), old)
	g.reopen()
	report, err := g.repo.Check(t.Context())
	if err != nil || len(report.Problems) != 0 || len(report.Notes) != 1 || !strings.Contains(report.Notes[0], p.ID+" was pruned but is here") {
		t.Errorf("put back: %+v, %v", report, err)
	}
	// A holder of the keys could replace one: its successor tells.
	g.repo.mu.Lock()
	g.repo.points[q.ID].previousHash = strings.Repeat("0", 64)
	g.repo.mu.Unlock()
	report, err = g.repo.Check(t.Context())
	if err != nil || len(report.Problems) != 1 || !strings.Contains(report.Problems[0], "was replaced") {
		t.Errorf("replaced: %+v, %v", report, err)
	}
}

func TestDamagedPointIsPrunedWithoutAlarm(t *testing.T) {
	g := newRig(t)
	p := g.backup([]byte{1}, nil, nil)
	g.backup([]byte{2}, nil, nil)
	mustWrite(t, filepath.Join(g.dir, "manifests", p.ID), []byte("junk"))
	g.reopen()
	if err := g.repo.Prune(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	report, err := g.repo.Check(t.Context())
	if err != nil || len(report.Problems) != 0 || len(report.Notes) != 1 {
		t.Errorf("Check = %+v, %v", report, err)
	}
}

func TestJoinRanges(t *testing.T) {
	got := joinRanges([][2]uint64{{9, 9}, {1, 2}, {3, 3}, {2, 2}, {5, 6}, {7, 1}, {6, 8}})
	if diff := cmp.Diff([][2]uint64{{1, 3}, {5, 9}}, got); diff != "" {
		t.Error(diff)
	}
	p := pruned{ranges: got}
	var has []uint64
	for n := range uint64(12) {
		if p.has(n) {
			has = append(has, n)
		}
	}
	if !slices.Equal(has, []uint64{1, 2, 3, 5, 6, 7, 8, 9}) || p.last() != 9 {
		t.Errorf("has %v, last %d", has, p.last())
	}
}
