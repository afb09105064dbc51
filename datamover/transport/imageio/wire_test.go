package imageiotransport

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestDecodeExtents(t *testing.T) {
	long := strings.Repeat(" ", maxExtent+readExtents)
	tests := []struct {
		name, list string
		dirty      bool
		want       []hypervisors.Extent // nil is an error
	}{
		{"none", `[]`, false, nil}, // of a disk that has bytes
		{"zero and data", `[{"start":0,"length":65536,"zero":true,"hole":true},{"start":65536,"length":65536,"zero":false,"hole":false}]`, false,
			[]hypervisors.Extent{ext(0, block, zero), ext(block, block, data)}},
		{"a hole is not zeros", `[{"start":0,"length":131072,"zero":false,"hole":true}]`, false, []hypervisors.Extent{ext(0, 2*block, data)}},
		{"neighbours", `[{"start":0,"length":65536,"zero":true},{"start":65536,"length":65536,"zero":true}]` + "\n", false, []hypervisors.Extent{ext(0, 2*block, zero)}},
		{"dirty", `[{"start":0,"length":65536,"dirty":true,"zero":true},{"start":65536,"length":65536,"dirty":false,"zero":true}]`, true,
			[]hypervisors.Extent{ext(0, block, zero), ext(block, block, unchanged)}},
		{"dirty data", `[{"start":0,"length":131072,"dirty":true}]`, true, []hypervisors.Extent{ext(0, 2*block, data)}},
		{"does not say whether it is dirty", `[{"start":0,"length":131072,"zero":true}]`, true, nil},
		{"gap", `[{"start":0,"length":65536},{"start":65537,"length":65535}]`, false, nil},
		{"overlap", `[{"start":0,"length":65536},{"start":0,"length":65536}]`, false, nil},
		{"too short", `[{"start":0,"length":65536}]`, false, nil},
		{"too long", `[{"start":0,"length":131073}]`, false, nil},
		{"negative", `[{"start":0,"length":-1}]`, false, nil},
		{"overflow", `[{"start":0,"length":65536},{"start":65536,"length":9223372036854775807}]`, false, nil},
		{"no number", `[{"start":0,"length":99999999999999999999}]`, false, nil},
		{"no list", `{"start":0,"length":131072}`, false, nil},
		{"cut", `[{"start":0,"length":131072}`, false, nil},
		{"more behind it", `[{"start":0,"length":131072}] {}`, false, nil},
		{"endless extent", `[{"start":0,"length":131072,"x":"` + long + `"}]`, false, nil},
		{"endless space", `[` + long + `{"start":0,"length":131072}]`, false, nil},
	}
	for _, tt := range tests {
		m, err := hypervisors.NewExtentMap(2*block, decodeExtents(strings.NewReader(tt.list), tt.dirty))
		var got []hypervisors.Extent
		for e, e2 := range m.Extents() {
			if err == nil {
				err = e2
			}
			got = append(got, e)
		}
		if tt.want == nil {
			if err == nil {
				t.Errorf("%s: no error, but %v", tt.name, got)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}

func FuzzExtents(f *testing.F) {
	for _, list := range []string{
		`[{"start":0,"length":65536,"zero":true,"hole":true},{"start":65536,"length":65536,"zero":false,"hole":false}]`,
		`[{"start":0,"length":65536,"dirty":true,"zero":true},{"start":65536,"length":65536,"dirty":false,"zero":true}]`,
	} {
		f.Add([]byte(list), true)
		for p := range boundary.Text([]byte(list)) {
			f.Add(p, false)
			f.Add(p, true)
		}
	}
	f.Fuzz(func(t *testing.T, list []byte, dirty bool) {
		end := int64(0)
		m, err := hypervisors.NewExtentMap(2*block, decodeExtents(bytes.NewReader(list), dirty))
		if err != nil {
			return
		}
		for e, err := range m.Extents() {
			if err != nil || e.Offset != end || e.Length <= 0 || e.State == unchanged && !dirty {
				t.Fatalf("%+v, %v after %d", e, err, end)
			}
			end += e.Length
		}
		if end != 2*block {
			t.Fatalf("they end at %d", end)
		}
	})
}

func FuzzOptions(f *testing.F) {
	const good = `{"unix_socket":"/run/ovirt-imageio/sock","features":["checksum","extents","zero","flush"],"max_readers":8,"max_writers":1}`
	for p := range boundary.Text([]byte(good)) {
		f.Add(p, "OPTIONS,GET,PUT,PATCH")
	}
	f.Add([]byte(`{"unix_socket":"\u0000/org/ovirt/imageio"}`), "")
	f.Fuzz(func(t *testing.T, b []byte, allow string) {
		o, err := parseOptions(b, allow)
		if err != nil {
			return
		}
		if o.readers < 1 || o.readers > maxConnections || o.writers < 1 || o.writers > maxConnections {
			t.Fatalf("%+v", o)
		}
		if o.socket != "" && (o.socket[0] != '/' || strings.ContainsRune(o.socket, 0)) {
			t.Fatalf("socket %q", o.socket)
		}
	})
}

func FuzzChecksum(f *testing.F) {
	boundary.Add(f, []byte(`{"checksum":"ab","algorithm":"blake2b","block_size":4194304}`), boundary.Text([]byte(`{"checksum":"ab","algorithm":"blake2b","block_size":4194304}`)))
	f.Fuzz(func(t *testing.T, p []byte) {
		sum, err := decodeChecksum(bytes.NewReader(p), 4<<20)
		if err != nil && sum != "" || err == nil && !bytes.Contains(p, []byte("4194304")) {
			t.Errorf("%q of %q, %v", sum, p, err)
		}
	})
}

func TestOptions(t *testing.T) {
	all := features{extents: true, checksum: true, zero: true, flush: true, readers: 8, writers: 1, mayWrite: true, socket: "/run/s"}
	reading := features{extents: true, checksum: true, readers: 8, writers: 8}
	for _, tt := range []struct {
		name, body, allow string
		want              features
	}{
		{"all", `{"unix_socket":"/run/s","features":["checksum","extents","zero","flush"],"max_readers":8,"max_writers":1}`, "OPTIONS,GET,PUT,PATCH", all},
		{"reading", `{"features":["checksum","extents"],"max_readers":8,"max_writers":8}`, "OPTIONS,GET", reading},
		{"nothing", "", "", old},
		{"empty", "{}", "", old},
		{"a socket that is no path", `{"unix_socket":"\u0000/org/ovirt/imageio"}`, "", old},
		{"too many", `{"max_readers":1000000,"max_writers":-5}`, "", features{readers: maxConnections, writers: 1, mayWrite: true}},
	} {
		got, err := parseOptions([]byte(tt.body), tt.allow)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(features{})); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
	for _, bad := range []string{"[]", "{", `{"max_readers":"8"}`, `"` + strings.Repeat("x", maxOptions) + `"`} {
		if _, err := parseOptions([]byte(bad), ""); err == nil {
			t.Errorf("%.20s: no error", bad)
		}
	}
}

// TestHostileAnswers sends what no daemon sends; nothing of it may be used, kept whole, or waited for.
func TestHostileAnswers(t *testing.T) {
	dir := nbdtest.Certificates(t)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	const part = "HTTP/1.1 206 Partial Content\r\n"
	tests := []struct{ name, answer string }{
		{"no HTTP", "SSH-2.0-x\r\n\r\n"},
		{"endless status line", strings.Repeat("x", 2*maxHead)},
		{"endless headers", part + strings.Repeat("A: b\r\n", maxHead/3)},
		{"endless interim answers", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 100)},
		{"another range", part + "Content-Range: bytes 1-1/512\r\nContent-Length: 1\r\n\r\nx"},
		{"no range", part + "Content-Length: 1\r\n\r\nx"},
		{"a size that is no number", part + "Content-Range: bytes 0-0/99999999999999999999\r\nContent-Length: 1\r\n\r\nx"},
		{"all of the disk", "HTTP/1.1 200 OK\r\nContent-Length: 512\r\n\r\n" + strings.Repeat("x", 512)},
		{"longer than asked for", part + "Content-Range: bytes 0-0/512\r\nContent-Length: 512\r\n\r\n" + strings.Repeat("x", 512)},
		{"shorter than asked for", part + "Content-Range: bytes 0-0/512\r\nContent-Length: 0\r\n\r\n"},
		{"elsewhere", "HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/images/t\r\nContent-Length: 0\r\n\r\n"},
		{"two lengths", part + "Content-Range: bytes 0-0/512\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"},
		{"endless error", "HTTP/1.1 400 Bad\r\nContent-Length: 100000000\r\n\r\n" + strings.Repeat("x", 1<<20)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() { serveHostile(l, tt.answer, &wg) })
			defer wg.Wait()
			defer func() { _ = l.Close() }()
			o := quick
			o.Attempts = 2
			_, err = o.OpenSource(t.Context(), hypervisors.Export{
				Transport: hypervisors.TransportImageio, Name: "d", SizeBytes: 512,
				Imageio: &hypervisors.Imageio{TransferURL: hypervisors.TicketURL("https://" + l.Addr().String() + "/images/t"), CA: string(pem)},
			})
			if err == nil || len(err.Error()) > 2*maxText {
				t.Errorf("opened, or an error of %d bytes", len(fmt.Sprint(err)))
			}
			if k := fault.KindOf(err); k != fault.Transient && k != fault.Internal {
				t.Errorf("kind %s: %v", k, err)
			}
		})
	}
}

// serveHostile answers OPTIONS well and everything else with the same bytes.
func serveHostile(l net.Listener, answer string, wg *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer func() { _ = c.Close() }()
			in := bufio.NewReader(c)
			for {
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				say := answer
				if r.Method == http.MethodOptions {
					say = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
				}
				if _, err := io.WriteString(c, say); err != nil {
					return
				}
			}
		})
	}
}
