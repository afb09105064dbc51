package cpio_test

import (
	"bytes"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/images/cpio"
)

// TestArchive lists an archive with the real cpio.
func TestArchive(t *testing.T) {
	tool, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is not installed")
	}
	write := func() []byte {
		var b bytes.Buffer
		w := cpio.New(&b, time.Unix(1e9, 0))
		w.File("etc/a/name", 0o640, []byte("12345"))
		w.Dir("etc")
		w.Link("bin/sh", "../init")
		w.FileFrom("self", "cpio.go", 0o600)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	one := write()
	if !bytes.Equal(one, write()) {
		t.Error("two archives of the same files differ")
	}
	cmd := exec.Command(tool, "-t", "--quiet")
	cmd.Stdin = bytes.NewReader(one)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	if diff := cmp.Diff(string(out), "etc\netc/a\netc/a/name\nbin\nbin/sh\nself\n"); diff != "" {
		t.Error(diff)
	}
}

func TestMissingFileIsAnError(t *testing.T) {
	w := cpio.New(&bytes.Buffer{}, time.Time{})
	w.FileFrom("a", "not there", 0o600)
	if err := w.Close(); err == nil {
		t.Error("no error for a file that is not there")
	}
}
