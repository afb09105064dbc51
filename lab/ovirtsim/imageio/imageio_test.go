package imageio

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

const size = 3 << 20

// daemon is a Server on a Unix socket, with tickets of a file.
type daemon struct {
	*Server
	client *http.Client
	path   string // of the file

	mu  sync.Mutex
	now time.Time
}

func start(t *testing.T) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "io")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{path: filepath.Join(dir, "disk"), now: time.Unix(1e9, 0)}
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	if err := os.WriteFile(d.path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := OpenFile(d.path, true)
	if err != nil {
		t.Fatal(err)
	}
	d.Server = NewServer(Options{UnixSocket: "/run/sock", Now: d.clock})
	for _, tk := range []Ticket{{ID: "rw", Backend: b, SizeBytes: size, Write: true, TransferID: "T1"}, {ID: "ro", Backend: b, SizeBytes: size, TransferID: "T2"}} {
		if err := d.AddTicket(tk); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.ServeUnix(l) })
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.Addr().String())
	}}
	d.client = &http.Client{Transport: tr}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		if err := errors.Join(d.Close(), b.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	return d
}

func (d *daemon) clock() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now
}

func (d *daemon) later(by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = d.now.Add(by)
}

// ask sends a request; header is "Name: value" or "".
func (d *daemon) ask(t *testing.T, method, path, header, body string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://host"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if name, value, ok := strings.Cut(header, ": "); ok {
		r.Header.Set(name, value)
	}
	if header == "chunked" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), -1
	}
	resp, err := d.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// TestProtocol holds the daemon to what the real one (2.5.3) has answered to the same requests; only the spaces in its JSON, its md5
// and where it has /info/ are others.
func TestProtocol(t *testing.T) {
	const refused = "You are not allowed to access this resource: "
	tests := []struct {
		name, method, path, header, body string
		code                             int
		text                             string // that the body holds
		rangeHeader                      string
		hangUp                           bool
	}{
		{"a range", "GET", "/images/ro", "Range: bytes=1-4", "", 206, "1234", "bytes 1-4/3145728", false},
		{"up to the end", "GET", "/images/ro", "Range: bytes=3145726-", "", 206, "ef", "bytes 3145726-3145727/3145728", false},
		{"everything", "GET", "/images/ro", "", "", 200, "0123456789abcdef", "", false},
		{"a suffix", "GET", "/images/ro", "Range: bytes=-5", "", 416, "suffix", "", false},
		{"two ranges", "GET", "/images/ro", "Range: bytes=1-2,4-5", "", 416, "", "", false},
		{"from the end on", "GET", "/images/ro", "Range: bytes=3145728-", "", 206, "", "bytes 3145728-3145727/3145728", false},
		{"beyond the end", "GET", "/images/ro", "Range: bytes=3145729-", "", 416, "", "bytes */3145728", false},
		{"over the end", "GET", "/images/ro", "Range: bytes=0-3145728", "", 416, "out of allowed range", "bytes */3145728", false},
		{"hang up afterwards", "GET", "/images/ro?close=y", "Range: bytes=0-0", "", 206, "0", "bytes 0-0/3145728", true},
		{"HEAD", "HEAD", "/images/ro", "", "", 405, "", "", false},
		{"POST", "POST", "/images/rw", "", "", 405, "", "", false},
		{"no ticket", "GET", "/images/none", "", "", 403, refused + "No such ticket none", "", true},
		{"no ticket, for its options", "OPTIONS", "/images/none", "", "", 403, refused, "", true},
		{"writing by a ticket for reading", "PUT", "/images/ro", "Content-Range: bytes 0-0/*", "x", 403, refused + "Transfer=T2 forbids write", "", true},
		{"zeroing by a ticket for reading", "PATCH", "/images/ro", "", `{"op":"zero","offset":0,"size":1}`, 403, refused, "", true},
		{"write", "PUT", "/images/rw?flush=n", "Content-Range: bytes 3145700-3145701/*", "ab", 200, "", "", false},
		{"write over the end", "PUT", "/images/rw", "Content-Range: bytes 3145727-3145728/*", "ab", 416, "", "bytes */3145728", true},
		{"write without a length", "PUT", "/images/rw", "chunked", "ab", 400, "Content-Length header is required", "", false},
		{"write with an odd flush", "PUT", "/images/rw?flush=maybe", "", "ab", 400, "", "", true},
		{"zero", "PATCH", "/images/rw", "", `{"op":"zero","offset":16,"size":16,"flush":true}`, 200, "", "", false},
		{"flush", "PATCH", "/images/rw", "", `{"op":"flush"}`, 200, "", "", false},
		{"another operation", "PATCH", "/images/rw", "", `{"op":"trim"}`, 400, "", "", false},
		{"no JSON", "PATCH", "/images/rw", "", `{`, 400, "Invalid JSON", "", false},
		{"extents", "GET", "/images/ro/extents", "", "", 200, `[{"start":0,"length":3145728,"zero":false,"hole":false}]`, "", false},
		{"changes that nobody tracks", "GET", "/images/ro/extents?context=dirty", "", "", 404, "Ticket does not support dirty extents", "", false},
		{"a checksum of small blocks", "GET", "/images/ro/checksum?block_size=4096", "", "", 400, "out of allowed range", "", false},
		{"another checksum", "GET", "/images/ro/checksum?algorithm=md5", "", "", 400, "", "", false},
		{"algorithms", "GET", "/images/ro/checksum/algorithms", "", "", 200, "blake2b", "", false},
		{"options of a ticket for reading", "OPTIONS", "/images/ro", "", "", 200, `"features":["checksum","extents"],"max_readers":8,"max_writers":1`, "", false},
		{"options of all", "OPTIONS", "/images/*", "", "", 200, `"unix_socket":"/run/sock"`, "", false},
		{"the map that the real one's documents speak of", "GET", "/images/ro/map", "", "", 403, refused + "No such ticket ro/map", "", true},
		{"info", "GET", "/info/", "", "", 200, "version", "", false},
	}
	d := start(t)
	for _, tt := range tests {
		r, body := d.ask(t, tt.method, tt.path, tt.header, tt.body)
		if r.StatusCode != tt.code || !strings.Contains(body, tt.text) || r.Header.Get("Content-Range") != tt.rangeHeader || r.Close != tt.hangUp {
			t.Errorf("%s: %d %.100q, range %q, hangs up %v; want %d %q %q %v", tt.name, r.StatusCode, body, r.Header.Get("Content-Range"), r.Close,
				tt.code, tt.text, tt.rangeHeader, tt.hangUp)
		}
	}
	b, err := os.ReadFile(d.path)
	if err != nil || string(b[10:40]) != "abcdef"+strings.Repeat("\x00", 16)+"01234567" || string(b[3145700:3145702]) != "ab" {
		t.Errorf("the file holds %q and %q, %v", b[10:40], b[3145700:3145702], err)
	}
	r, body := d.ask(t, "OPTIONS", "/images/rw", "", "")
	var o struct{ Features []string }
	if err := json.Unmarshal([]byte(body), &o); err != nil || fmt.Sprint(o.Features) != "[checksum extents flush zero]" || r.Header.Get("Allow") != "OPTIONS,GET,PUT,PATCH" {
		t.Errorf("options for writing: %s, %v, allow %q", body, err, r.Header.Get("Allow"))
	}
}

func TestTicketsEnd(t *testing.T) {
	d := start(t)
	d.later(299 * time.Second)
	if r, _ := d.ask(t, "GET", "/images/rw", "Range: bytes=0-9", ""); r.StatusCode != 206 {
		t.Fatalf("status %d", r.StatusCode)
	}
	d.later(299 * time.Second) // the last operation counts
	i, _ := d.Ticket("rw")
	if i.IdleTime != 299*time.Second || i.Active || i.Transferred != 10 {
		t.Errorf("%+v", i)
	}
	d.later(2 * time.Second)
	r, body := d.ask(t, "GET", "/images/rw", "Range: bytes=0-9", "")
	if r.StatusCode != 403 || !strings.Contains(body, "Transfer=T1 expired") || !r.Close {
		t.Errorf("an expired ticket: %d %s", r.StatusCode, body)
	}
	if err := d.ExtendTicket("rw", time.Minute); err != nil {
		t.Fatal(err)
	}
	if r, _ := d.ask(t, "GET", "/images/rw", "Range: bytes=0-9", ""); r.StatusCode != 206 {
		t.Errorf("an extended ticket: %d", r.StatusCode)
	}
	if err := errors.Join(d.RemoveTicket(t.Context(), "rw"), d.RemoveTicket(t.Context(), "rw")); err != nil {
		t.Errorf("removal with a connection that waits: %v", err)
	}
	if r, _ := d.ask(t, "GET", "/images/rw", "Range: bytes=0-9", ""); r.StatusCode != 403 {
		t.Errorf("a removed ticket: %d", r.StatusCode)
	}
}

// slow is a backend whose reads wait.
type slow struct {
	Backend
	once           *sync.Once
	began, release chan struct{}
}

func (s slow) Read(ctx context.Context, p []byte, off int64) error {
	s.once.Do(func() { close(s.began) })
	<-s.release
	return s.Backend.Read(ctx, p, off)
}

// TestRemovalWaitsForOperations removes a ticket while it is used: that takes until the operation has ended, and the operation fails.
func TestRemovalWaitsForOperations(t *testing.T) {
	d := start(t)
	b := slow{d.find("ro").Backend, &sync.Once{}, make(chan struct{}), make(chan struct{})}
	if err := d.AddTicket(Ticket{ID: "slow", Backend: b, SizeBytes: size, TransferID: "T3"}); err != nil {
		t.Fatal(err)
	}
	got := make(chan int, 1)
	go func() {
		r, err := d.client.Get("http://host/images/slow")
		if err != nil {
			got <- 0
			return
		}
		_, err = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
		if err != nil {
			got <- 0
			return
		}
		got <- r.StatusCode
	}()
	<-b.began
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.RemoveTicket(ctx, "slow"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("removal under way: %v", err)
	}
	if i, ok := d.Ticket("slow"); !ok || !i.Active || !i.Canceled {
		t.Errorf("%+v, %v", i, ok)
	}
	close(b.release)
	if err := d.RemoveTicket(t.Context(), "slow"); err != nil {
		t.Error(err)
	}
	if code := <-got; code == 200 {
		t.Error("the read has worked")
	}
}
