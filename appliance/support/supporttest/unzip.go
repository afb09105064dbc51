// Package supporttest looks into support bundles for tests. It knows nothing of what belongs into one.
package supporttest

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"path"
	"testing"
)

// Unzip returns the files of a bundle by their names, and the folder that all must be in.
func Unzip(t testing.TB, bundle []byte) (folder string, files map[string]string) {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(bundle), int64(len(bundle)))
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for i, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		p, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		files[path.Base(f.Name)] = string(p)
		if dir := path.Dir(f.Name); i == 0 {
			folder = dir
		} else if dir != folder {
			t.Errorf("%s is not in %s", f.Name, folder)
		}
	}
	return folder, files
}
