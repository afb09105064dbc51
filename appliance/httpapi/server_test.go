package httpapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/appliance/metrics"
	"github.com/cairn-backup/cairn/internal/locked"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	adminName     = "admin"
	adminPassword = "correct horse battery"
)

// testServer is a whole server on a loopback port, over TLS, with real identities.
type testServer struct {
	t *testing.T
	*Server
	core     *fakeCore
	metrics  *metrics.Metrics
	catalog  *catalog.Catalog
	identity *identity.Service
	logs     *locked.Buffer
	url      string
	client   *http.Client
	setUp    string // the one-time token
	token    string
	stop     func() error
	still    atomic.Pointer[time.Time] // when it is for logins; nil: now
}

// start runs a server that is not set up yet, over a fake core.
func start(t *testing.T, heartbeat time.Duration) *testServer {
	t.Helper()
	stream := NewStream()
	core := newFakeCore(stream)
	ts := startOver(t, core, stream, heartbeat)
	ts.core = core
	return ts
}

// startOver runs a server over any core.
func startOver(t *testing.T, core Core, stream *Stream, heartbeat time.Duration) *testServer {
	t.Helper()
	dir := t.TempDir()
	ts := &testServer{t: t, logs: &locked.Buffer{}}
	log := slog.New(slog.NewTextHandler(ts.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	ts.catalog, err = catalog.Open(t.Context(), catalog.Options{Path: filepath.Join(dir, "catalog.db"), KeyFile: filepath.Join(dir, "keys", "catalog.key")})
	check(t, err)
	t.Cleanup(func() { check(t, ts.catalog.Close()) })
	ts.identity = identity.New(identity.Options{Store: ts.catalog, SetUpFile: filepath.Join(dir, "setup-token"), Log: log, Now: ts.now})
	ts.setUp, err = ts.identity.PrepareSetUp(t.Context())
	check(t, err)
	authority, err := identity.OpenAuthority(filepath.Join(dir, "tls"), []string{"127.0.0.1"})
	check(t, err)

	ts.metrics = metrics.New(metrics.Build{Version: "1.2.3"}, log)
	ts.Server, err = New(Options{
		Core: core, Identity: ts.identity, Requests: ts.catalog, Stream: stream, Metrics: ts.metrics, Rate: Rate{PerSecond: 10_000, Burst: 10_000}, Log: log, Version: Version{Version: "1.2.3", Commit: "abc"}, Heartbeat: heartbeat,
	})
	check(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- ts.Serve(ctx, l, authority.TLSConfig()) }()
	ts.stop = sync.OnceValue(func() error { cancel(); return <-served })
	ts.url = "https://" + l.Addr().String()
	ts.client = &http.Client{Transport: &http.Transport{TLSClientConfig: trust(t, authority), ForceAttemptHTTP2: true}}
	t.Cleanup(func() {
		ts.client.CloseIdleConnections()
		check(t, ts.stop())
	})
	return ts
}

func (ts *testServer) now() time.Time {
	if at := ts.still.Load(); at != nil {
		return *at
	}
	return time.Now()
}

func trust(t *testing.T, a *identity.Authority) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(a.CertificateFile())
	check(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
}

// ready runs a server with an administrator, whose token every request carries.
func ready(t *testing.T) *testServer {
	t.Helper()
	ts := start(t, 0)
	ts.becomeReady()
	return ts
}

func (ts *testServer) becomeReady() {
	ts.t.Helper()
	a := ts.do("POST", "/setup", map[string]any{"token": ts.setUp, "username": adminName, "password": adminPassword})
	a.want(ts.t, http.StatusCreated, "")
	var issued server.IssuedToken
	a.decode(ts.t, &issued)
	ts.token = issued.Secret
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// answer is a response with its body read.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends a request (body: nil, a string to send as it is, or a value to send as JSON) and checks the answer against
// the document.
func (ts *testServer) do(method, path string, body any, header ...string) answer {
	ts.t.Helper()
	resp, err := ts.client.Do(ts.request(ts.t.Context(), method, path, body, header...))
	check(ts.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(ts.t, err)
	a := answer{resp.StatusCode, resp.Header, b}
	ts.conforms(method, path, a)
	return a
}

func (ts *testServer) request(ctx context.Context, method, path string, body any, header ...string) *http.Request {
	ts.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		j, err := json.Marshal(b)
		check(ts.t, err)
		r = bytes.NewReader(j)
	}
	if strings.HasPrefix(path, "/") {
		path = ts.url + api.BasePath + path
	}
	req, err := http.NewRequestWithContext(ctx, method, path, r)
	check(ts.t, err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if ts.token != "" {
		req.Header.Set("Authorization", "Bearer "+ts.token)
	}
	if method == http.MethodDelete || method == http.MethodPatch || method == http.MethodPut {
		req.Header.Set("If-Match", "*")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

// conforms checks an answer against the document: status, media type, schema.
func (ts *testServer) conforms(method, path string, a answer) {
	ts.t.Helper()
	path, query, _ := strings.Cut(path, "?")
	template, ok := ts.template(method, path)
	if !ok {
		if a.status < 400 || a.header.Get("Content-Type") != problemType {
			ts.t.Errorf("%s %s is not in the document and answered %d %s", method, path, a.status, a.header.Get("Content-Type"))
		}
		return
	}
	at := "/paths/" + escapePointer(template) + "/" + strings.ToLower(method) + "/responses/"
	status := strconv.Itoa(a.status)
	if ts.contract.object(at+status) == nil {
		if a.status < 400 {
			ts.t.Errorf("%s %s: status %d is not in the document", method, path, a.status)
			return
		}
		status = "default"
	}
	at = ts.contract.resolve(at + status)
	media, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	if ts.contract.object(at+"/content") == nil {
		if len(a.body) > 0 {
			ts.t.Errorf("%s %s: %d has a body: %s", method, path, a.status, a.body)
		}
		return
	}
	if a.status == http.StatusOK && strings.Contains(query, "fields=") {
		return // what was asked for is not all that the schema wants
	}
	schema, err := ts.contract.schema(at + "/content/" + escapePointer(media) + "/schema")
	if err != nil {
		ts.t.Errorf("%s %s: %d with %q is not in the document", method, path, a.status, media)
		return
	}
	documents := [][]byte{a.body}
	if media == linesType {
		documents = bytes.SplitAfter(bytes.TrimSuffix(a.body, []byte("\n")), []byte("\n"))
	}
	for _, document := range documents {
		var v any = string(document)
		if len(document) == 0 && media == linesType {
			break // an empty list
		}
		if strings.HasSuffix(media, "json") {
			v, err = jsonschema.UnmarshalJSON(bytes.NewReader(document))
		}
		check(ts.t, err)
		if wrong := mistakes(schema.Validate(v)); len(wrong) > 0 {
			ts.t.Errorf("%s %s: %d does not conform: %+v\n%s", method, path, a.status, wrong, document)
		}
	}
	for name := range ts.contract.object(at + "/headers") {
		if a.header.Get(name) == "" {
			ts.t.Errorf("%s %s: %d lacks header %s", method, path, a.status, name)
		}
	}
}

// template finds the path of the document that a path is an instance of.
func (ts *testServer) template(method, path string) (string, bool) {
	parts := strings.Split(path, "/")
	for template := range ts.contract.object("/paths") {
		if ts.contract.object("/paths/"+escapePointer(template)+"/"+strings.ToLower(method)) == nil {
			continue
		}
		want := strings.Split(template, "/")
		same := len(want) == len(parts)
		for i := 0; same && i < len(want); i++ {
			same = strings.HasPrefix(want[i], "{") || want[i] == parts[i]
		}
		if same {
			return template, true
		}
	}
	return "", false
}

func (a answer) decode(t *testing.T, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(a.body))
	d.DisallowUnknownFields()
	check(t, d.Decode(v))
}

// want checks the status and, unless it is "", the type of the problem.
func (a answer) want(t *testing.T, status int, problem string) server.Problem {
	t.Helper()
	var p server.Problem
	if a.status != status {
		t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	if problem == "" {
		return p
	}
	a.decode(t, &p)
	if p.Type != problem {
		t.Errorf("type %q, want %q: %s", p.Type, problem, a.body)
	}
	if p.Status != status || p.RequestID == "" || p.RequestID != a.header.Get("X-Request-Id") {
		t.Errorf("problem does not match its answer: %s", a.body)
	}
	return p
}
