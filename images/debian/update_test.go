package debian

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUpdateBesideAnother has an apt-get that is refused the lists twice, and one that fails for another reason.
func TestUpdateBesideAnother(t *testing.T) {
	before := again
	again = 0
	t.Cleanup(func() { again = before })
	for name, tt := range map[string]struct {
		script string
		calls  int
		words  string
	}{
		"another is at it": {`[ $(wc -l <$0.calls) -gt 2 ] || { echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)" >&2; exit 100; }`, 3, ""},
		"no mirror":        {`echo "E: nobody there" >&2; exit 100`, 1, "nobody there"},
	} {
		t.Run(name, func(t *testing.T) {
			apt := filepath.Join(t.TempDir(), "apt-get")
			if err := os.WriteFile(apt, []byte("#!/bin/sh\necho \"$*\" >>$0.calls\n"+tt.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", filepath.Dir(apt)+":"+os.Getenv("PATH"))
			if err := Update(t.Context()); (err != nil) != (tt.words != "") || err != nil && !strings.Contains(err.Error(), tt.words) {
				t.Errorf("Update: %v, want %q", err, tt.words)
			}
			calls, err := os.ReadFile(apt + ".calls")
			if got := strings.Count(string(calls), "-q update\n"); err != nil || got != tt.calls {
				t.Errorf("apt-get was called %d times, want %d (%v)", got, tt.calls, err)
			}
		})
	}
}

// TestUpdateTakesItsTime: only the waiting for others has an end.
func TestUpdateTakesItsTime(t *testing.T) {
	before := patience
	patience = 0
	t.Cleanup(func() { patience = before })
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if err := Update(t.Context()); err != nil {
		t.Error(err)
	}
}
