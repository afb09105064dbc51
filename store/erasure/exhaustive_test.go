package erasure

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// explored is what an exploration came to.
type explored struct {
	states, checks, refused int
	left                    int // paths that were not followed, because there were enough states
	wrong                   error
}

// explore lets everything happen in every order, up to depth things, and judges each state that differs from all before,
// up to so many.
func explore(t *testing.T, l Layout, depth, limit int, lie func(string, []byte) ([]byte, bool)) (out explored) {
	t.Helper()
	known := map[string]bool{}
	level := [][]happening{nil}
	all := happenings(l)
	for range depth {
		var next [][]happening
		for _, path := range level {
			for _, h := range all {
				if out.states >= limit {
					out.left++
					continue
				}
				path := append(slices.Clone(path), h)
				fresh, err := out.follow(t, l, path, known, lie)
				if err != nil {
					out.wrong = fmt.Errorf("%v: %w", path, err)
					return out
				}
				if fresh {
					next = append(next, path)
				}
				if fresh && out.states%5000 == 0 {
					t.Logf("%v: %d states, %d events", l, out.states, len(path))
				}
			}
		}
		level = next
	}
	return out
}

// follow lets things happen, and judges the state they lead to unless it is known.
func (out *explored) follow(t *testing.T, l Layout, path []happening, known map[string]bool, lie func(string, []byte) ([]byte, bool)) (fresh bool, err error) {
	t.Helper()
	w := newWorld(t, l, lie)
	defer func() { err = errors.Join(err, w.leave()) }()
	possible, err := w.replay(path)
	if err != nil {
		return false, err
	}
	if !possible {
		out.refused++
		return false, nil
	}
	key := w.key()
	if known[key] {
		return false, nil
	}
	known[key] = true
	out.states++
	n, err := w.judge()
	out.checks += n
	return true, err
}

func (w *world) replay(path []happening) (possible bool, err error) {
	for _, h := range path {
		if possible, err = w.do(h); err != nil || !possible {
			return possible, err
		}
	}
	return true, nil
}

// TestCampaignEveryOrderOfEvents is the theorem of doc.go, tried out.
func TestCampaignEveryOrderOfEvents(t *testing.T) {
	states, lost := 0, 0
	for _, tt := range []struct {
		l                 Layout
		depth, limit      int
		soaking, soakings int // depth and limit of CAIRN_SOAK=1
	}{
		{Layout{1, 1}, 5, 1000, 7, 60_000}, {Layout{1, 2}, 4, 400, 6, 8000}, {Layout{2, 1}, 4, 500, 6, 8000}, {Layout{2, 2}, 3, 300, 5, 4000},
	} {
		t.Run(tt.l.String(), func(t *testing.T) {
			if os.Getenv("CAIRN_SOAK") != "" {
				tt.depth, tt.limit = tt.soaking, tt.soakings
			}
			if testing.Short() {
				tt.limit /= 10
			}
			out := explore(t, tt.l, tt.depth, tt.limit, nil)
			if out.wrong != nil {
				t.Errorf("after %d states: %v", out.states, out.wrong)
				lost++
			}
			states += out.states
			whole := "all there are"
			if out.left > 0 {
				whole = fmt.Sprintf("the limit; %d ways on were not followed", out.left)
			}
			t.Logf("%d states within %d events (%s), each judged with all members that can be there: %d judgements, %d refusals",
				out.states, tt.depth, whole, out.checks, out.refused)
		})
	}
	campaign(t, "erasure-every-order-of-events", states, lost)
}

// campaign prints the line that docs/reliability.md quotes.
func campaign(t *testing.T, name string, injected, lost int) {
	t.Helper()
	t.Logf("campaign: name=%s injected=%d fired=%d lost=%d", name, injected, injected, lost)
}

// forget makes disks keep descriptions of the set that lack what f clears.
func forget(f func(*memberDoc)) func(string, []byte) ([]byte, bool) {
	return func(name string, p []byte) ([]byte, bool) {
		var d setDocument
		if !strings.HasPrefix(name, setPrefix) || decode(p, &d) != nil {
			return p, true
		}
		for _, g := range d.Groups {
			for slot := range g.Members {
				f(&g.Members[slot])
			}
		}
		p, err := encode(&d)
		return p, err == nil
	}
}

// TestExplorationFindsBugs shows that the exploration can fail: what the theorem rests on is taken away.
func TestExplorationFindsBugs(t *testing.T) {
	for what, tt := range map[string]struct {
		l   Layout
		lie func(string, []byte) ([]byte, bool)
	}{
		"who lacks shards is not recorded": {Layout{1, 1}, forget(func(md *memberDoc) {
			md.Incomplete, md.Filling = false, false
		})},
		"who is behind is not recorded": {Layout{1, 1}, forget(func(md *memberDoc) { md.Behind = false })},
		"sessions are not numbered": {Layout{1, 1}, func(name string, p []byte) ([]byte, bool) {
			return p, !strings.HasPrefix(name, sessionPrefix)
		}},
		"marks are not kept": {Layout{2, 1}, func(name string, p []byte) ([]byte, bool) {
			return p, !strings.HasPrefix(name, deadFolder)
		}},
	} {
		out := explore(t, tt.l, 6, 5000, tt.lie)
		if out.wrong == nil {
			t.Errorf("%s: not found in %d states", what, out.states)
			continue
		}
		t.Logf("%s: found after %d states: %v", what, out.states, out.wrong)
	}
}
