package httpapi

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/identity"
)

// fuzzed is a server without a network, and a token for it.
func fuzzed(f *testing.F) (*Server, string) {
	f.Helper()
	fail := func(err error) {
		if err != nil {
			f.Fatal(err)
		}
	}
	dir := f.TempDir()
	c, err := catalog.Open(f.Context(), catalog.Options{Path: filepath.Join(dir, "catalog.db"), KeyFile: filepath.Join(dir, "keys", "catalog.key")})
	fail(err)
	f.Cleanup(func() { _ = c.Close() })
	log := slog.New(slog.DiscardHandler)
	people := identity.New(identity.Options{Store: c, SetUpFile: filepath.Join(dir, "setup-token"), Log: log})
	setUp, err := people.PrepareSetUp(f.Context())
	fail(err)
	issued, err := people.SetUp(f.Context(), "192.0.2.1", setUp, adminName, adminPassword)
	fail(err)
	stream := NewStream()
	s, err := New(Options{
		Core: newFakeCore(stream), Identity: people, Requests: c, Stream: stream, Log: log, Rate: Rate{PerSecond: 1_000_000, Burst: 1_000_000},
	})
	fail(err)
	return s, issued.Secret
}

// FuzzRequest: whatever a request is, with a valid token, the answer is no 500, and every refusal is a problem.
func FuzzRequest(f *testing.F) {
	s, token := fuzzed(f)
	seeds, err := Generate(1, f.TempDir(), map[string]string{
		"vm_id": "vm_1", "repository_id": "repo_1", "restore_point_id": "rp_1", "task_id": "task_1", "mover_id": "mover_1", "member_id": "m1",
		"connection_id": "conn_1", "key_id": "key_1", "limit_id": "limit_1", "run_id": "run_1", "token_id": "nothing",
	})
	if err != nil {
		f.Fatal(err)
	}
	for i, g := range seeds {
		if i%17 != 0 && g.Why != "valid" {
			continue
		}
		path, query, _ := strings.Cut(g.Path, "?")
		name, value := "", ""
		for name, value = range g.Header {
			if name != "Content-Type" {
				break
			}
		}
		f.Add(uint8(slices.Index(methods, strings.ToLower(g.Method))), path, query, name, value, g.Body)
	}
	f.Fuzz(func(t *testing.T, method uint8, path, query, name, value string, body []byte) {
		// Streams and calls that wait for a run end with the request.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		r := (&http.Request{
			Method: strings.ToUpper(methods[int(method)%len(methods)]), URL: &url.URL{Path: api.BasePath + path, RawQuery: query},
			Header: http.Header{"Content-Type": {"application/json"}, headerIfMatch: {"*"}}, Proto: "HTTP/2.0", ProtoMajor: 2,
			Host: "appliance", RemoteAddr: "192.0.2.1:1", Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
		}).WithContext(ctx)
		if name != "" {
			r.Header.Set(name, value)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError || w.Code >= 400 && w.Header().Get("Content-Type") != problemType {
			t.Errorf("%s %q?%q %q: %q, body %q: %d %s", r.Method, path, query, name, value, body, w.Code, w.Body)
		}
	})
}
