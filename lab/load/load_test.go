package load

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain is also the appliance that TestRun asks.
func TestMain(m *testing.M) {
	if data := os.Getenv("CAIRN_LOAD_SERVE"); data != "" {
		if err := serveUntilSignal(data); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestRun measures a small catalog: every request must be answered, whatever the time it takes.
func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "load")
	var out strings.Builder
	err := Run(t.Context(), Options{
		Dir: dir, Points: somePoints + 2000, VMs: 1000, Rounds: 10, Follow: 5 * time.Second, Seed: 1, Out: &out,
		Serve: func(data string) []string { return []string{"/usr/bin/env", "CAIRN_LOAD_SERVE=" + data, os.Args[0]} },
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{"seed 1\n", "| 12,000 restore points, pages of 100 | 10 |", "Errors: none.", "Memory of cairnd"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestRow(t *testing.T) {
	var out strings.Builder
	o := Options{Out: &out}
	times := make([]time.Duration, 100)
	for i := range times {
		times[i] = time.Duration(i+1) * time.Millisecond
	}
	o.row("a", times, 99*time.Millisecond)
	o.row("b", times[:50], 99*time.Millisecond)
	want := "| a | 100 | 51.0 ms | 100.0 ms | 100.0 ms | 99ms | **missed** |\n| b | 50 | 26.0 ms | 50.0 ms | 50.0 ms | 99ms | met |\n"
	if out.String() != want {
		t.Errorf("rows\n%swant\n%s", &out, want)
	}
}
