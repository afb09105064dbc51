package disk_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/images/disk"
)

// TestExt4Same writes a file system from two directories with the same files, made in another order at another time.
func TestExt4Same(t *testing.T) {
	for _, tool := range []string{"/sbin/mke2fs", "/sbin/debugfs", "/sbin/dumpe2fs", "/sbin/e2fsck"} {
		if _, err := os.Stat(tool); err != nil && os.Getenv("CAIRN_LAB") == "" {
			t.Skip("e2fsprogs is not installed")
		}
	}
	epoch := time.Unix(1700000000, 0)
	names := []string{"b", "a", "dir/z", "dir/y", "dir/sub/x"}
	write := func() []byte {
		from := t.TempDir()
		for i, n := range names {
			file := filepath.Join(from, n)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, bytes.Repeat([]byte(n), 5000), 0o644); err != nil {
				t.Fatal(err)
			}
			// What is read must not show: the time of reading differs.
			if err := os.Chtimes(file, time.Unix(1800000000+int64(i), 0), epoch); err != nil {
				t.Fatal(err)
			}
		}
		for _, d := range []string{"dir/sub", "dir", "."} {
			if err := os.Chtimes(filepath.Join(from, d), epoch, epoch); err != nil {
				t.Fatal(err)
			}
		}
		image := filepath.Join(t.TempDir(), "image")
		if err := disk.WriteExt4(t.Context(), image, "test", disk.GUID{1, 2, 3}, 16, from, epoch); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "/sbin/e2fsck", "-f", "-n", image).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v: %s", err, out)
		}
		p, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := write()
	slices.Reverse(names)
	if second := write(); !bytes.Equal(first, second) {
		t.Error("the same files give another file system")
	}
}
