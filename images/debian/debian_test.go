package debian_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/images/debian"
)

func modulesDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep":     "kernel/a/ring.ko:\nkernel/a/virtio.ko: kernel/a/ring.ko\nkernel/b/virtio-blk.ko: kernel/a/virtio.ko kernel/a/ring.ko\nkernel/c/other.ko:\n",
		"modules.builtin": "kernel/d/built-in.ko\n",
		"modules.alias":   "# comment\nalias virtio:d00000002v* virtio_blk\nalias pci:x other\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestResolveModules(t *testing.T) {
	dir := modulesDir(t)
	got, err := debian.ResolveModules(dir, []string{"virtio_blk", "built_in", "virtio"})
	if err != nil {
		t.Fatal(err)
	}
	want := []debian.Module{
		{Name: "ring", File: filepath.Join(dir, "kernel/a/ring.ko")},
		{Name: "virtio", File: filepath.Join(dir, "kernel/a/virtio.ko"), Deps: []string{"ring"}},
		{Name: "virtio_blk", File: filepath.Join(dir, "kernel/b/virtio-blk.ko"), Deps: []string{"virtio", "ring"}},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
	aliases, err := debian.Aliases(dir, got)
	if err != nil || cmp.Diff(aliases, []string{"alias virtio:d00000002v* virtio_blk"}) != "" {
		t.Errorf("aliases: %v, %v", aliases, err)
	}
	if _, err := debian.ResolveModules(dir, []string{"absent"}); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("a module that is not there: %v", err)
	}
}
