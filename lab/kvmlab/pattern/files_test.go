package pattern

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := CheckFiles(dir); !errors.Is(err, ErrBlank) {
		t.Fatalf("CheckFiles of an empty directory = %v, want ErrBlank", err)
	}
	f, err := OpenFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	const rounds = fileSlots + 5
	for range rounds {
		if err := f.WriteRound(); err != nil {
			t.Fatal(err)
		}
	}
	if again, err := OpenFiles(dir); err != nil || again.Round() != rounds {
		t.Errorf("opened again at round %d, %v; want %d", again.Round(), err, rounds)
	}
	for _, tt := range []struct {
		name   string
		damage func(p []byte) []byte
		want   string
	}{
		{"one bit", func(p []byte) []byte { p[4000] ^= 1; return p }, "checksum"},
		{"cut short", func(p []byte) []byte { return p[:100] }, "no file of the pattern"},
		{"removed", func([]byte) []byte { return nil }, "is of round 0"},
	} {
		name := filepath.Join(dir, "file07")
		good, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		bad := tt.damage(append([]byte(nil), good...))
		if bad == nil {
			err = os.Remove(name)
		} else {
			err = os.WriteFile(name, bad, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := CheckFiles(dir); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: CheckFiles = %v, want an error with %q", tt.name, err, tt.want)
		}
		if err := os.WriteFile(name, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old, err := os.ReadFile(filepath.Join(dir, "file06"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file05"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := CheckFiles(dir); err == nil || !strings.Contains(err.Error(), "file05") {
		t.Errorf("a file of another round: CheckFiles = %v, want an error that names it", err)
	}
}
