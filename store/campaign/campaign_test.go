package campaign

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/store/campaign/workload"
)

var binaries struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if binaries.dir != "" {
		_ = os.RemoveAll(binaries.dir)
	}
	os.Exit(code)
}

// worker returns the worker program, built with the points at which it can be killed.
func worker(t *testing.T) string {
	t.Helper()
	binaries.once.Do(func() {
		if binaries.dir, binaries.err = os.MkdirTemp("", "cairn-worker-"); binaries.err != nil {
			return
		}
		out, err := exec.Command("go", "build", "-tags", "faultpoints", "-o", filepath.Join(binaries.dir, "worker"), "./worker").CombinedOutput()
		if err != nil {
			binaries.err = fmt.Errorf("build worker: %w: %s", err, out)
		}
	})
	if binaries.err != nil {
		t.Fatal(binaries.err)
	}
	return filepath.Join(binaries.dir, "worker")
}

func random(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

// count is how often something is done: in a short run, in CI, in a soak.
func count(short, ci, soak int) int {
	switch {
	case os.Getenv("CAIRN_SOAK") == "1":
		return soak
	case testing.Short():
		return short
	}
	return ci
}

// report prints the campaign's line for docs/reliability.md; lost are the cases in which a promise was broken.
func report(t *testing.T, name string, injected, fired, lost int, facts ...string) {
	t.Helper()
	line := append([]string{fmt.Sprintf("campaign: name=%s injected=%d fired=%d lost=%d", name, injected, fired, lost)}, facts...)
	t.Log(strings.Join(line, " "))
	if fired != injected {
		t.Errorf("%d of %d faults fired", fired, injected)
	}
}

// scratch returns a new directory, in memory if the system has one: what these tests break is not the disk.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "cairn-scratch-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// place is where one worker lives.
type place struct{ repo, index, key, acks string }

func newPlace(t *testing.T) place {
	t.Helper()
	dir := scratch(t)
	return place{filepath.Join(dir, "repo"), filepath.Join(dir, "index"), filepath.Join(dir, "key"), filepath.Join(dir, "acks")}
}

func (p place) args(seed uint64, more ...string) []string {
	return append([]string{"-dir", p.repo, "-index", p.index, "-key", p.key, "-acks", p.acks, "-seed", strconv.FormatUint(seed, 10)}, more...)
}

// promises returns what the worker has acknowledged.
func (p place) promises() (workload.Promises, error) {
	text, err := os.ReadFile(p.acks)
	return workload.ParseAcks(string(text)), err
}
