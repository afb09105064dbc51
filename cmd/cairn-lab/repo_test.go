package main

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/lab/bench/images"
	"github.com/cairn-backup/cairn/lab/bench/repo"
)

// result runs a command of `repo` and reads what it prints.
func result(t *testing.T, dir string, args ...string) (r repo.Result) {
	t.Helper()
	out := lab(t, append([]string{"repo", "--repo", filepath.Join(dir, "r")}, args...)...)
	if out == "" {
		return r
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v prints %q: %v", args, out, err)
	}
	return r
}

// TestRepository takes an image through two days, one of them with a record of changes, and back.
func TestRepository(t *testing.T) {
	const size = 8<<20 + 4096
	dir := t.TempDir()
	day := func(n int, data map[int64][]byte) string {
		path := filepath.Join(dir, "day"+string(rune('0'+n)))
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for off, p := range data {
			if _, err := f.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	rng := rand.New(rand.NewPCG(1, 1))
	noise := make([]byte, 2<<20)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	one := day(1, map[int64][]byte{0: noise, 4 << 20: noise[:8192], size - 4096: noise[:4096]})
	two := day(2, map[int64][]byte{0: noise, 300 << 10: []byte("changed"), size - 4096: noise[:4096]})
	changes, err := images.Compare(one, two)
	if err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(dir, "record")
	if err := changes.Save(record); err != nil {
		t.Fatal(err)
	}

	result(t, dir, "create")
	if err := Run(t.Context(), []string{"repo", "--repo", filepath.Join(dir, "r"), "backup", "--series=a", "--changes=" + record, two}, &bytes.Buffer{}); err == nil {
		t.Error("a record of changes was taken without a restore point before it")
	}
	if b := result(t, dir, "backup", "--series=a", one).Backup; b.Stats.BytesWritten != size {
		t.Errorf("the first backup was given %d bytes of %d", b.Stats.BytesWritten, size)
	}
	if b := result(t, dir, "backup", "--series=a", "--changes="+record, two).Backup; b.Transfer.BytesRead != changes.ChangedBytes() {
		t.Errorf("%d bytes were read, %d changed", b.Transfer.BytesRead, changes.ChangedBytes())
	}
	if b := result(t, dir, "backup", "--series=a", two).Backup; b.Stats.BytesNew != 0 {
		t.Errorf("reading all of what is known again stored %d bytes", b.Stats.BytesNew)
	}
	for sequence, want := range map[string]string{"1": one, "2": two, "3": two} {
		back := filepath.Join(dir, "back"+sequence)
		result(t, dir, "restore", "--series=a", "--sequence="+sequence, back)
		if err := images.Same(want, back); err != nil {
			t.Error(err)
		}
	}
	if v := result(t, dir, "verify").Verify; v.Proven != 3 || v.Packs == 0 || v.Bytes == 0 {
		t.Errorf("verify reports %+v", v)
	}
	result(t, dir, "prune", "--keep-last=1")
	points := result(t, dir, "points").Points
	if len(points) != 1 || points[0].Sequence != 3 {
		t.Errorf("after prune there are %+v", points)
	}
	if u := result(t, dir, "usage").Usage; u.RestorePoints != 1 || u.StoredBytes == 0 {
		t.Errorf("usage is %+v", u)
	}
	if out := lab(t, "bench", "bare", "write", one); strings.TrimSpace(out) != "" {
		t.Errorf("bare prints %q", out)
	}
}

// TestAnatomy: every byte of a repository is counted once, and content where content is.
func TestAnatomy(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	rng := rand.New(rand.NewPCG(2, 2))
	noise := make([]byte, 3<<20)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	if err := os.WriteFile(image, noise, 0o644); err != nil {
		t.Fatal(err)
	}
	result(t, dir, "create")
	result(t, dir, "backup", "--series=a", image)
	var a repo.Anatomy
	if err := json.Unmarshal([]byte(lab(t, "repo", "--repo", filepath.Join(dir, "r"), "anatomy")), &a); err != nil {
		t.Fatal(err)
	}
	var size int64
	err := filepath.WalkDir(filepath.Join(dir, "r"), func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			info, statErr := d.Info()
			size, err = size+info.Size(), statErr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if sum := a.Content + a.Fingerprints + a.Directories + a.Trees + a.TreePacks + a.Manifests + a.Rest; sum != size {
		t.Errorf("the parts are %d bytes, all files %d: %+v", sum, size, a)
	}
	if a.Packs != 2 || a.Content < 3<<20 || a.Content > 3<<20+4096 || a.Fingerprints != 3<<20/4096*16+16 || a.Manifests == 0 || a.Trees == 0 {
		t.Errorf("of 3 MiB of noise: %+v", a)
	}
}
