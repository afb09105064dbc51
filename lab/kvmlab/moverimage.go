package kvmlab

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// MoverImage returns the path of the small mover image: that of CAIRN_MOVER_IMAGE, or one made of this source tree now,
// which takes half a minute.
func MoverImage(t testing.TB) string {
	t.Helper()
	if file := os.Getenv("CAIRN_MOVER_IMAGE"); file != "" {
		return file
	}
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("the source tree is not known")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "run", "./images/build", "-only", "mover", "-formats", "qcow2", "-out", dir)
	cmd.Dir = filepath.Join(filepath.Dir(here), "..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make the mover image: %v: %s", err, out)
	}
	return filepath.Join(dir, "cairn-mover.qcow2")
}
