package profile_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/profile"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestSecretsAreNotPrinted(t *testing.T) {
	c := profile.Context{Name: "a", Server: "https://a", Token: "cairn_s3cret"}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("context", "context", c, "token", c.Token)
	for _, text := range []string{fmt.Sprint(c), fmt.Sprintf("%+v %s", c, c.Token), log.String()} {
		if strings.Contains(text, "s3cret") {
			t.Errorf("printed: %s", text)
		}
	}
}

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "config.yaml")
	empty, err := profile.Load(path)
	if err != nil || len(empty.Contexts) != 0 {
		t.Fatalf("missing file: %+v, %v", empty, err)
	}
	var c profile.Config
	c.Put(profile.Context{Name: "one", Server: "https://one:8443", CAFingerprint: "sha256:aa", Token: "t1"})
	c.Put(profile.Context{Name: "two", Server: "https://two", CAFile: "/ca.pem", User: "anna", Token: "t2"})
	c.Put(profile.Context{Name: "one", Server: "https://one:9443", Token: "t3"})
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := profile.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, c); diff != "" || got.Current != "one" || len(got.Contexts) != 2 {
		t.Errorf("-got +want:\n%s", diff)
	}
	if err := got.Remove("one"); err != nil || got.Current != "" {
		t.Errorf("remove: %v, current %q", err, got.Current)
	}
	if err := got.Remove("one"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("remove twice: %v", err)
	}
	// A file that others could read is replaced by one that they cannot.
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestServerURL(t *testing.T) {
	tests := []struct{ in, want string }{
		{"host", "https://host"},
		{"Host:8443/", "https://host:8443"},
		{"https://h/cairn/", "https://h/cairn"},
		{"https://[::1]:8443", "https://[::1]:8443"},
		{"http://h", ""},
		{"https://user:pw@h", ""},
		{"https://h?x=1", ""},
		{"https://", ""},
		{"ftp://h", ""},
		{"https://h h", ""},
	}
	for _, tt := range tests {
		got, err := profile.ServerURL(tt.in)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: got %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}

func TestFingerprint(t *testing.T) {
	hex := strings.Repeat("0aF9", 16)
	want := "sha256:" + strings.ToLower(hex)
	for _, in := range []string{hex, "sha256:" + hex, "SHA-256:" + hex, " SHA256:" + hex + "\n", strings.TrimSuffix(strings.Repeat("0A:F9:", 16), ":")} {
		if got, err := profile.Fingerprint(in); got != want || err != nil {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "sha256:", hex[1:], hex + "00", "g" + hex[1:], "md5:" + hex} {
		if got, err := profile.Fingerprint(in); fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}
