package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var then = time.Unix(1_700_000_000, 0)

// system writes what a bootstrap would: names with "./", a device, a file that is newer than the build.
func system(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "./etc/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "./etc/passwd", Mode: 0o644, Size: 4, ModTime: then.Add(time.Hour), Uname: "root"},
		{Typeflag: tar.TypeLink, Name: "./etc/again", Linkname: "./etc/passwd"},
		{Typeflag: tar.TypeChar, Name: "./dev/null", Devmajor: 1, Devminor: 3},
		{Typeflag: tar.TypeReg, Name: "./ping", Mode: 0o755, Size: 4, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "cap"}},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("root")); err != nil {
				t.Fatal(err)
			}
		}
	}
	name := filepath.Join(t.TempDir(), "system.tar")
	if err := errors.Join(w.Close(), os.WriteFile(name, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestSystemLeavesDevicesOutAndKeepsTheRest(t *testing.T) {
	to := filepath.Join(t.TempDir(), "layer.tar")
	found, err := System(system(t), to, then, "etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(found, map[string][]byte{"etc/passwd": []byte("root")}); diff != "" {
		t.Error(diff)
	}
	var got []string
	for h, data := range entries(t, readFile(t, to)) {
		got = append(got, h.Name+" "+h.Linkname+data)
		if h.ModTime.After(then) {
			t.Errorf("%s is newer than the build", h.Name)
		}
		if h.Name == "ping" && h.PAXRecords["SCHILY.xattr.security.capability"] != "cap" {
			t.Errorf("ping has lost what it may: %v", h.PAXRecords)
		}
	}
	if diff := cmp.Diff(got, []string{"etc/ ", "etc/passwd root", "etc/again etc/passwd", "ping root"}); diff != "" {
		t.Error(diff)
	}
}

// TestArchive reads an archive in both of its ways, and wants every blob to be what its name says.
func TestArchive(t *testing.T) {
	dir := t.TempDir()
	layer := filepath.Join(dir, "top.tar")
	l, err := NewLayer(layer, then)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.File("usr/bin/x", 0o755, []byte("x")), l.Dir("data", 0o700, 8440), l.File("usr/bin/y", 0o755, nil), l.Close()); err != nil {
		t.Fatal(err)
	}
	var names []string
	for h := range entries(t, readFile(t, layer)) {
		names = append(names, h.Name)
		if h.Name == "data/" && (h.Uid != 8440 || h.Gid != 8440 || h.Mode != 0o700) {
			t.Errorf("data is of %d:%d, %o", h.Uid, h.Gid, h.Mode)
		}
	}
	if diff := cmp.Diff(names, []string{"usr/", "usr/bin/", "usr/bin/x", "data/", "usr/bin/y"}); diff != "" {
		t.Error(diff)
	}
	image := Image{Name: "cairn", Tags: []string{"latest", "1.2"}, Layers: []string{layer, layer}, Config: Config{User: "8440:8440"}, Time: then}
	out := filepath.Join(dir, "image.tar")
	if err := image.Write(out, dir); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for h, data := range entries(t, readFile(t, out)) {
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		files[h.Name] = data
		if sum, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok && sum != sumOf(data) {
			t.Errorf("%s is not what its name says", h.Name)
		}
	}
	index := decode[struct{ Manifests []descriptor }](t, files["index.json"])
	older := decode[[]struct {
		Config           string
		RepoTags, Layers []string
	}](t, files["manifest.json"])[0]
	if diff := cmp.Diff(older.RepoTags, []string{"cairn:latest", "cairn:1.2"}); diff != "" {
		t.Error(diff)
	}
	if len(index.Manifests) != 2 || index.Manifests[1].Annotations["org.opencontainers.image.ref.name"] != "1.2" {
		t.Fatalf("the index names %+v", index.Manifests)
	}
	manifest := decode[struct {
		Config descriptor
		Layers []descriptor
	}](t, files[blobOf(index.Manifests[0])])
	config := decode[struct {
		Config Config
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}](t, files[blobOf(manifest.Config)])
	if config.Config.User != "8440:8440" || older.Config != blobOf(manifest.Config) || len(config.RootFS.DiffIDs) != 2 {
		t.Errorf("configuration %+v, which the older list calls %s", config, older.Config)
	}
	for i, l := range manifest.Layers {
		gz, err := gzip.NewReader(strings.NewReader(files[blobOf(l)]))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(gz)
		if err != nil || "sha256:"+sumOf(string(plain)) != config.RootFS.DiffIDs[i] || older.Layers[i] != blobOf(l) {
			t.Errorf("layer %d: %v", i, err)
		}
	}
	again := filepath.Join(dir, "again.tar")
	if err := image.Write(again, dir); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readFile(t, out), readFile(t, again)) {
		t.Error("the same image gives other bytes")
	}
}

func TestAnImageNeedsTagAndLayer(t *testing.T) {
	for _, m := range []Image{{Tags: []string{"x"}}, {Layers: []string{"x"}}} {
		if err := m.Write(filepath.Join(t.TempDir(), "x"), t.TempDir()); err == nil {
			t.Errorf("%+v was written", m)
		}
	}
}

func blobOf(d descriptor) string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }

func sumOf(data string) string {
	sum := sha256.Sum256([]byte(data))
	return hex.EncodeToString(sum[:])
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func decode[T any](t *testing.T, data string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(data), &v); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return v
}

// entries goes through an archive.
func entries(t *testing.T, p []byte) func(yield func(*tar.Header, string) bool) {
	return func(yield func(*tar.Header, string) bool) {
		for r := tar.NewReader(bytes.NewReader(p)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if !yield(h, string(data)) {
				return
			}
		}
	}
}
