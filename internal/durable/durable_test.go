package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWrite(t *testing.T) {
	tests := []struct {
		name   string
		write  func(path string, data []byte, mode fs.FileMode) error
		before string // content of the file that is there; "" is none
		want   string
		err    error
	}{
		{"create", Create, "", "new", nil},
		{"create over another", Create, "old", "old", fs.ErrExist},
		{"replace nothing", Replace, "", "new", nil},
		{"replace another", Replace, "old", "new", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "file")
			if tt.before != "" {
				if err := os.WriteFile(path, []byte(tt.before), 0o400); err != nil {
					t.Fatal(err)
				}
			}
			if err := tt.write(path, []byte("new"), 0o400); !errors.Is(err, tt.err) {
				t.Errorf("write = %v, want %v", err, tt.err)
			}
			got, err := os.ReadFile(path)
			if err != nil || string(got) != tt.want {
				t.Errorf("content = %q, %v, want %q", got, err, tt.want)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o400 {
				t.Errorf("mode = %v, %v", info.Mode(), err)
			}
			if diff := cmp.Diff([]string{"file"}, names(t, dir)); diff != "" {
				t.Errorf("the directory holds other files (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(filepath.Join(dir, "taken"), []byte("new"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if err := Create(filepath.Join(dir, "none", "file"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Create in a directory that is not there: %v", err)
	}
	if diff := cmp.Diff([]string{"taken"}, names(t, dir)); diff != "" {
		t.Errorf("something is left (-want +got):\n%s", diff)
	}
}

func names(t *testing.T, dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
