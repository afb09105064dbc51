package command

import (
	"archive/zip"
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSupportBundle(t *testing.T) {
	var archive bytes.Buffer
	z := zip.NewWriter(&archive)
	for _, name := range []string{"README.txt", "log.txt"} {
		w, err := z.Create("cairn-support-h/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(strings.Repeat("x", 2048))); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	whole := archive.Bytes()
	answer := whole
	a := newAppliance(t)
	a.HandleFunc("POST /support-bundle", func(w http.ResponseWriter, _ *http.Request) {
		if answer == nil {
			refuse(w, 409, "conflict", "another one is being gathered", "", "Wait.")
			return
		}
		w.Header().Set("Content-Type", "application/zip")
		_, _ = w.Write(answer)
	})
	file := filepath.Join(t.TempDir(), "b.zip")
	got := a.run(t, "support", "bundle", "--out", file)
	kept, err := os.ReadFile(file)
	if got.code != 0 || err != nil || !bytes.Equal(kept, whole) || !strings.Contains(got.stderr, "Secrets were taken out") || !strings.Contains(got.stdout, "log.txt      2 KiB") {
		t.Fatalf("%+v, %v", got, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v, %v", info.Mode(), err)
	}
	if got := a.run(t, "support", "bundle", "--out", file); got.code == 0 || !strings.Contains(got.stderr, "the file exists") || strings.Contains(got.stderr, "--force") {
		t.Errorf("a file that is there: %+v", got)
	}
	if got := a.run(t, "support", "bundle"); got.code != 2 {
		t.Errorf("no file: %+v", got)
	}
	for name, bad := range map[string][]byte{"refused": nil, "cut short": whole[:len(whole)-10], "no archive": []byte("hello")} {
		answer = bad
		if got := a.run(t, "support", "bundle", "--out", file+"2"); got.code == 0 {
			t.Errorf("%s: %+v", name, got)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "*2*")); len(left) > 0 {
			t.Errorf("%s: %q is left", name, left)
		}
	}
}
