package nocloud_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/nocloud"
)

// TestSeedCanBeRead lets a tool that is not ours read seeds of several sizes.
func TestSeedCanBeRead(t *testing.T) {
	if _, err := exec.LookPath("xorriso"); err != nil {
		if os.Getenv("CAIRN_LAB") == "1" {
			t.Fatal(err)
		}
		t.Skip("xorriso is not installed")
	}
	for _, size := range []int{0, 1, 2047, 2048, 2049, 70000} {
		data := bytes.Repeat([]byte("cairn: {}\n"), size/10+1)[:size]
		dir := t.TempDir()
		file, to := filepath.Join(dir, "seed.iso"), filepath.Join(dir, "content")
		if err := os.WriteFile(file, nocloud.Seed("m-1", "mover1", data), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "xorriso", "-osirrox", "on", "-indev", file, "-extract", "/", to).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Volume id    : 'cidata'") {
			t.Fatalf("xorriso: %v: %s", err, out)
		}
		for name, want := range map[string]string{"USER-DATA": string(data), "META-DATA": "instance-id: m-1\nlocal-hostname: mover1\n"} {
			if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(got) != want {
				t.Errorf("%d bytes: %s has %d bytes that differ from %d, %v", size, name, len(got), len(want), err)
			}
		}
	}
}

func TestSeedIsReproducible(t *testing.T) {
	a, b := nocloud.Seed("i", "n", []byte("x")), nocloud.Seed("i", "n", []byte("x"))
	if !bytes.Equal(a, b) || len(a)%2048 != 0 || len(a) > 64<<10 {
		t.Errorf("%d bytes, equal: %v", len(a), bytes.Equal(a, b))
	}
	if again := nocloud.Seed("i", "n", []byte("y")); bytes.Equal(a, again) {
		t.Error("another content gives the same image")
	}
}
