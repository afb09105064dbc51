package kvmlab

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// MoverImage returns a mover image for QEMU, "mover" or "mover-debian": the one in the directory that CAIRN_IMAGES names, or one
// made now. The small one takes seconds once Debian's kernel is in the cache, the other one minutes.
func MoverImage(t testing.TB, which string) string {
	t.Helper()
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("the source tree is not known")
	}
	root := filepath.Join(filepath.Dir(here), "..", "..")
	dir := os.Getenv("CAIRN_IMAGES")
	if dir == "" {
		dir = t.TempDir()
		cmd := exec.CommandContext(t.Context(), "go", "run", "./images/build", "-only", which, "-formats", "qcow2", "-out", dir)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make the mover image: %v: %s", err, out)
		}
	} else if !filepath.IsAbs(dir) {
		dir = filepath.Join(root, dir)
	}
	return filepath.Join(dir, "cairn-"+which+".qcow2")
}
