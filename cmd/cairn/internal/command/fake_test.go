package command

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/console"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noon is the present in these tests.
var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

const token = "cairn_t0ken"

// appliance is a TLS server with a CA of its own that answers as an appliance does.
type appliance struct {
	*httptest.Server
	*http.ServeMux
	fingerprint string
	caFile      string

	mu       sync.Mutex
	requests []string // "GET /vms?name=x body"
	keys     []string // idempotency keys
}

func newAppliance(t *testing.T) *appliance {
	t.Helper()
	ca, chain := certificates(t)
	a := &appliance{ServeMux: http.NewServeMux(), fingerprint: remote.FingerprintOf(ca), caFile: filepath.Join(t.TempDir(), "ca.pem")}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})
	if err := os.WriteFile(a.caFile, block, 0o600); err != nil {
		t.Fatal(err)
	}
	a.Server = httptest.NewUnstartedServer(http.HandlerFunc(a.serve))
	a.Config.ErrorLog = log.New(t.Output(), "", 0)
	a.TLS = &tls.Config{Certificates: []tls.Certificate{chain}}
	a.StartTLS()
	t.Cleanup(a.Close)
	a.ServeMux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, client.Version{Version: "1.2.3", Go: "go1.26", API: "1.0.0"})
	})
	return a
}

func (a *appliance) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	path, ok := strings.CutPrefix(r.URL.Path, "/api/v1")
	if r.Method == http.MethodGet {
		w.Header().Set("ETag", etag)
		if ok && a.onlyChanged(path) {
			reply(w, 200, struct{}{})
			return
		}
	}
	a.mu.Lock()
	line := r.Method + " " + path
	if r.URL.RawQuery != "" {
		line += "?" + r.URL.RawQuery
	}
	if len(body) > 0 {
		line += " " + strings.TrimSpace(string(body))
	}
	a.requests = append(a.requests, line)
	if k := r.Header.Get("Idempotency-Key"); k != "" {
		a.keys = append(a.keys, k)
	}
	a.mu.Unlock()
	open := path == "/login" || path == "/setup"
	if !ok || (!open && r.Header.Get("Authorization") != "Bearer "+token) {
		refuse(w, 401, "denied", "no valid token was sent", "", "")
		return
	}
	if changes[r.Method] && r.Header.Get("If-Match") != etag {
		refuse(w, 428, "invalid", "no If-Match was sent", "", "")
		return
	}
	r.URL.Path = path
	a.ServeMux.ServeHTTP(w, r)
}

// etag is that of everything, and changes are the methods that need it.
const etag = `"kept.all"`

var changes = map[string]bool{http.MethodPut: true, http.MethodPatch: true, http.MethodDelete: true}

// onlyChanged reports whether a test answers what changes or deletes something, but not the look at it.
func (a *appliance) onlyChanged(path string) bool {
	known := func(method string) bool {
		_, pattern := a.ServeMux.Handler(&http.Request{Method: method, URL: &url.URL{Path: path}})
		return strings.HasPrefix(pattern, method+" ")
	}
	return !known(http.MethodGet) && (known(http.MethodDelete) || known(http.MethodPatch))
}

func (a *appliance) seen() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.requests...)
}

// get answers a path with a value.
func (a *appliance) get(path string, v any) {
	a.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, v) })
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, kind, detail, meaning, advice string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(client.Problem{
		Type: "/problems/" + kind, Title: http.StatusText(status), Status: status, Detail: detail, Meaning: meaning, Advice: advice, RequestID: "req-7",
	})
}

// result is how a command line ended.
type result struct {
	code           int
	stdout, stderr string
}

// env are variables; those of every run are in it already.
type env map[string]string

func (a *appliance) run(t *testing.T, args ...string) result {
	t.Helper()
	return run(t, env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": a.fingerprint, "CAIRN_TOKEN": token}, "", args...)
}

func run(t *testing.T, e env, stdin string, args ...string) result {
	t.Helper()
	return runContext(t.Context(), t, e, stdin, args...)
}

func runContext(ctx context.Context, t *testing.T, e env, stdin string, args ...string) result {
	t.Helper()
	if e["CAIRN_CONFIG"] == "" && e["HOME"] == "" {
		e["CAIRN_CONFIG"] = filepath.Join(t.TempDir(), "config.yaml")
	}
	var out, errs bytes.Buffer
	c := console.New(func(k string) string { return e[k] }, strings.NewReader(stdin), &out, &errs)
	c.Now, c.Location = func() time.Time { return noon }, time.UTC
	app := &App{Console: c, poll: time.Millisecond, redraw: time.Millisecond}
	code := app.Run(ctx, args)
	return result{code, out.String(), errs.String()}
}

func certificates(t *testing.T) (*x509.Certificate, tls.Certificate) {
	t.Helper()
	caKey, ca := certificate(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Cairn CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	key, leaf := certificate(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "appliance"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey)
	return ca, tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.Raw}, PrivateKey: key}
}

func certificate(t *testing.T, template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}
