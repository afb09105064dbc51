package campaign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/store/campaign/workload"
)

// run runs a worker and reports whether it died by SIGKILL.
func run(t *testing.T, env []string, args ...string) (killed bool, output string, err error) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), worker(t), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status, ok := exit.Sys().(syscall.WaitStatus)
		killed = ok && status.Signaled() && status.Signal() == syscall.SIGKILL
	}
	if killed {
		err = nil
	}
	return killed, out.String(), err
}

// inherit lets the next life begin where a killed one ended, with or without its index, and judges.
func inherit(t *testing.T, p place, withIndex bool) error {
	t.Helper()
	want, err := p.promises()
	if err != nil {
		return err
	}
	if want.Done {
		return errors.New("the worker had done all its work")
	}
	index := ""
	if withIndex {
		index = p.index
	}
	if err := workload.Judge(t.Context(), p.repo, index, p.key, want, true); err != nil {
		return err
	}
	return workload.Judge(t.Context(), p.repo, "", p.key, want, false) // and the one after it
}

// inheritWith is inherit for a worker of another kind.
func inheritWith(t *testing.T, p place, withIndex bool, judge func(context.Context, workload.Config, workload.Promises) error) error {
	t.Helper()
	want, err := p.promises()
	if err != nil {
		return err
	}
	if want.Done {
		return errors.New("the worker had done all its work")
	}
	c := workload.Config{Dir: p.repo, KeyFile: p.key}
	if withIndex {
		c.IndexDir = p.index
	}
	return judge(t.Context(), c, want)
}

// storePoints are the points of the engine and those of a backup that lie in it.
func storePoints() []string {
	return append([]string{"backup.packs-durable", "backup.index-written", "backup.manifest-written"}, fault.StorePoints...)
}

// kindOf returns what a worker must do to come to a point, and how what it leaves is judged.
func kindOf(point string) (more []string, judge func(context.Context, workload.Config, workload.Promises) error) {
	switch {
	case strings.HasPrefix(point, "store.erasure."):
		return []string{"-set"}, workload.JudgeSet
	case strings.HasPrefix(point, "store.heal."):
		return []string{"-heal"}, workload.JudgeHealed
	case strings.HasPrefix(point, "store.session.pack-"):
		return []string{"-big"}, nil
	}
	return nil, nil
}

// TestPointsAreListed: a point that is not in the list would not be tried.
func TestPointsAreListed(t *testing.T) {
	call := regexp.MustCompile(`fault\.Point\("(store\.[^"]+)"\)`)
	found := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		p, err := os.ReadFile(path)
		for _, m := range call.FindAllSubmatch(p, -1) {
			found[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	got, want := slices.Sorted(maps.Keys(found)), slices.Sorted(slices.Values(slices.Concat(fault.StorePoints, fault.CarrierPoints)))
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("points in the code and in fault.StorePoints (-code +list):\n%s", diff)
	}
}

func TestCampaignKillAtPoints(t *testing.T) {
	seed := seeded.Seed(t)
	rnd := random(seed, 2)
	points := storePoints()
	rounds := count(1, 1, 10)
	injected, fired, lost := 0, 0, 0
	for i := range rounds * len(points) {
		point := points[i%len(points)]
		nth, withIndex := 1+rnd.IntN(4), rnd.IntN(2) == 0
		t.Run(point, func(t *testing.T) {
			injected++
			err := killAt(t, point, seed+uint64(i), nth, withIndex)
			if !errors.Is(err, errNeverThere) {
				fired++
			}
			if err != nil {
				lost++
				t.Errorf("killed at %s (seed %d): %v", point, seed+uint64(i), err)
			}
		})
	}
	report(t, "kill-at-points", injected, fired, lost, fmt.Sprintf("points=%d", len(points)))
}

var errNeverThere = errors.New("the worker never came there")

// killAt kills a worker when it comes to a point for the nth time, or earlier if it does not come so often.
func killAt(t *testing.T, point string, seed uint64, nth int, withIndex bool) error {
	t.Helper()
	more, judge := kindOf(point)
	switch {
	case strings.HasPrefix(point, "store.erasure."):
		nth = 1 + (nth-1)*12 // making the repository takes the first ones
	case more != nil:
		nth = 1
	}
	for ; nth >= 1; nth /= 2 {
		p := newPlace(t)
		killed, out, err := run(t, []string{fmt.Sprintf("CAIRN_FAULT_POINT=%s#%d=kill", point, nth)}, p.args(seed, more...)...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if killed && strings.Contains(out, "fault point "+point+": kill") {
			if judge != nil {
				return inheritWith(t, p, withIndex, judge)
			}
			return inherit(t, p, withIndex)
		}
	}
	return errNeverThere
}

func TestCampaignKillAtRandom(t *testing.T) {
	seed := seeded.Seed(t)
	rnd := random(seed, 3)
	injected, fired, lost := 0, 0, 0
	for n := range count(10, 20, 2000) {
		s := seed + uint64(n)
		whole := newPlace(t)
		_, out, err := run(t, nil, whole.args(s)...)
		total, convErr := strconv.Atoi(strings.TrimSpace(out))
		if err != nil || convErr != nil {
			t.Fatalf("a worker nobody killed: %v: %s", err, out)
		}
		// Goroutines make the number of operations differ a little from run to run.
		at := 1 + rnd.IntN(total*9/10)
		injected++
		p := newPlace(t)
		killed, out, err := run(t, nil, p.args(s, "-kill-at", strconv.Itoa(at))...)
		if err != nil || !killed {
			t.Errorf("operation %d of %d (seed %d) did not kill the worker: %v: %s", at, total, s, err, out)
			continue
		}
		fired++
		if err := inherit(t, p, rnd.IntN(2) == 0); err != nil {
			lost++
			t.Errorf("killed at operation %d of %d (seed %d): %v", at, total, s, err)
		}
	}
	report(t, "kill-at-random", injected, fired, lost)
}
