package disk_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/images/disk"
)

// TestSum wants holes and zeros to be the same, and content, its place and the size to count.
func TestSum(t *testing.T) {
	const size = 3<<20 + 5000
	sum := func(size, at int64, text string, dense bool) string {
		name := filepath.Join(t.TempDir(), "file")
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if dense {
			if _, err := f.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
		got, err := disk.Sum(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	base := sum(size, 2<<20, "content", false)
	for _, tt := range []struct {
		name  string
		size  int64
		at    int64
		text  string
		dense bool
		same  bool
	}{
		{"no holes", size, 2 << 20, "content", true, true},
		{"other content", size, 2 << 20, "Content", false, false},
		{"other place", size, 1 << 20, "content", false, false},
		{"at the end", size, size - 7, "content", false, false},
		{"other size", size + 1, 2 << 20, "content", false, false},
	} {
		if same := sum(tt.size, tt.at, tt.text, tt.dense) == base; same != tt.same {
			t.Errorf("%s: the sum is the same: %v, want %v", tt.name, same, tt.same)
		}
	}
}

// TestImageSparse wants the bytes of partitions in an image, holes or not.
func TestImageSparse(t *testing.T) {
	dir := t.TempDir()
	part, image := filepath.Join(dir, "part"), filepath.Join(dir, "image")
	content := make([]byte, 2<<20)
	copy(content[100<<10:], "first")
	copy(content[len(content)-4:], "last")
	if err := os.WriteFile(part, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := disk.WriteImage(image, disk.GUID{1}, nil, []disk.Partition{{Name: "p", Kind: disk.LinuxData, ID: disk.GUID{2}, Content: part}}); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if len(p) != 4<<20 || !bytes.Equal(p[1<<20:3<<20], content) {
		t.Errorf("an image of %d bytes does not hold the partition", len(p))
	}
}
