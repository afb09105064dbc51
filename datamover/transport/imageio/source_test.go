package imageiotransport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
)

const unchanged, data, zero = hypervisors.Unchanged, hypervisors.Data, hypervisors.Zero

func ext(off, n int64, s hypervisors.ExtentState) hypervisors.Extent {
	return hypervisors.Extent{Offset: off, Length: n, State: s}
}

// readAll reads a disk by several goroutines in odd pieces.
func readAll(t testing.TB, d hypervisors.FrozenDisk) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	const step = 300_000
	var wg sync.WaitGroup
	for worker := range 6 {
		wg.Go(func() {
			for off := worker * step; off < len(p); off += 6 * step {
				if _, err := d.ReadAt(p[off:min(len(p), off+step)], int64(off)); err != nil {
					t.Errorf("read at %d: %v", off, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return p
}

func same(t testing.TB, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("byte %d is %#x, want %#x", i, got[i], want[i])
		}
	}
}

func TestSource(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		p.fill(17, 1, 2, 100)
		d := openSource(t, quick, export(p))
		want := []hypervisors.Extent{
			ext(0, block, zero), ext(block, 2*block, data), ext(3*block, 97*block, zero), ext(100*block, block, data), ext(101*block, size-101*block, zero),
		}
		if diff := cmp.Diff(want, extents(t, d)); diff != "" {
			t.Errorf("extents (-want +got):\n%s", diff)
		}
		same(t, readAll(t, d), p.content())
		if n, err := d.ReadAt(make([]byte, 100), size-30); n != 30 || err != io.EOF {
			t.Errorf("read over the end: %d, %v", n, err)
		}
		if err := d.Confirm(t.Context()); err != nil {
			t.Errorf("confirm: %v", err)
		}
		if err := errors.Join(d.Close(), d.Close()); err != nil {
			t.Errorf("close: %v", err)
		}
		p.awaitHungUp(t)
		if _, err := d.ReadAt(make([]byte, 1), 0); fault.KindOf(err) != fault.Canceled {
			t.Errorf("read after close: %v", err)
		}
	})
}

func TestNoMoreConnectionsThanAllowed(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		p.fill(3, 0, 5, 150)
		d := openSource(t, Options{Connections: 5}, export(p))
		same(t, readAll(t, d), p.content())
		limit := 5
		if _, ok := p.(oddPeer); ok {
			limit = 2
		}
		// A connection that has ended for us may still be there for the daemon when the next one comes.
		if most, _ := p.seen(); most > 2*limit || most < 1 {
			t.Errorf("%d connections, want at most %d", most, limit)
		}
	})
}

func TestChangedExtents(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		p.fill(1, 4)
		p.fill(2, 7, 8)
		e := export(p)
		e.DirtyContext = "dirty"
		d := openSource(t, quick, e)
		want := []hypervisors.Extent{
			ext(0, 4*block, unchanged), ext(4*block, block, data), ext(5*block, 2*block, unchanged), ext(7*block, 2*block, data), ext(9*block, size-9*block, unchanged),
		}
		if diff := cmp.Diff(want, extents(t, d)); diff != "" {
			t.Errorf("extents (-want +got):\n%s", diff)
		}
	})
}

// TestReadsGoOn lets everything go wrong that a read survives.
func TestReadsGoOn(t *testing.T) {
	for _, what := range []string{"drop", "half", "500", "crash", "forget"} {
		for _, method := range []string{"GET", "OPTIONS"} {
			t.Run(what+" at "+method, func(t *testing.T) {
				peers(t, func(t *testing.T, p peer) {
					if method == "OPTIONS" && what == "half" {
						t.Skip("its answer is too short to have halves here")
					}
					p.fill(9, 0, 1, 2, 3, 4, 50, 51, 52, 191)
					fired := p.spoil(method, map[string]int{"GET": 3, "OPTIONS": 0}[method], 3, what)
					d := openSource(t, quick, export(p))
					same(t, readAll(t, d), p.content())
					extents(t, d)
					if fired() != 3 {
						t.Errorf("it went wrong %d times, want 3", fired())
					}
				})
			})
		}
	}
}

func TestReadsGoOnAfterIdleConnectionsWereClosed(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		p.fill(9, 0, 1, 2, 3, 4, 50, 51, 52, 191)
		o := quick
		o.Attempts = 1 // what is stale does not count
		d := openSource(t, o, export(p))
		for range 3 {
			same(t, readAll(t, d), p.content())
			p.hangUp()
		}
		extents(t, d)
	})
}

func TestReadsGiveUp(t *testing.T) {
	for what, want := range map[string]fault.Kind{"drop": fault.Transient, "500": fault.Transient, "403": fault.Denied} {
		t.Run(what, func(t *testing.T) {
			peers(t, func(t *testing.T, p peer) {
				o := quick
				o.Attempts = 3
				d := openSource(t, o, export(p))
				fired := p.spoil("GET", 0, 9, what)
				_, err := d.ReadAt(make([]byte, 10), 0)
				checkError(t, what, err, want)
				tries := 3
				if what == "403" {
					tries = 1
				}
				if what == "drop" {
					tries++ // the first one is on a connection that had waited
				}
				if fired() != tries {
					t.Errorf("%d attempts, want %d", fired(), tries)
				}
			})
		})
	}
}

// checkError looks at an error's kind, that it is explained, and that it holds no ticket.
func checkError(t testing.TB, name string, err error, want fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != want {
		t.Errorf("%s: %v, want one of kind %s", name, err, want)
		return
	}
	meaning, advice := fault.Explanation(err)
	if meaning == "" || advice == "" {
		t.Errorf("%s: nothing explains %v", name, err)
	}
	if text := fmt.Sprintf("%v %+v %s %s", err, err, meaning, advice); strings.Contains(text, simTicket) || strings.Contains(text, "odd-777") {
		t.Errorf("%s: the ticket is in the error %s", name, text)
	}
}

func TestExpiredTicket(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		d := openSource(t, quick, export(p))
		p.expire()
		_, err := d.ReadAt(make([]byte, 10), 0)
		checkError(t, "read", err, fault.Denied)
		_, err = listed(t.Context(), d)
		checkError(t, "extents", err, fault.Denied)
		_, err = quick.OpenSource(t.Context(), export(p))
		checkError(t, "open", err, fault.Denied)
		_, err = quick.OpenTarget(t.Context(), export(p))
		checkError(t, "open for writing", err, fault.Denied)
	})
}

func TestWrongSizeAndCA(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		e := export(p)
		e.SizeBytes += 512
		_, err := quick.OpenSource(t.Context(), e)
		checkError(t, "size", err, fault.Conflict)
		_, err = quick.OpenTarget(t.Context(), e)
		checkError(t, "size of a target", err, fault.Conflict)
		e = export(p)
		e.Imageio.CA = "" // the system's authorities do not know it
		_, err = quick.OpenSource(t.Context(), e)
		checkError(t, "CA", err, fault.Denied)
		e.Imageio.CA = "no PEM"
		if _, err = quick.OpenSource(t.Context(), e); fault.KindOf(err) != fault.Invalid {
			t.Errorf("CA without certificates: %v", err)
		}
	})
}

func TestURLs(t *testing.T) {
	for _, tt := range []struct{ name, url, proxy string }{
		{"empty", "", ""},
		{"not encrypted", "http://h:54322/images/t", ""},
		{"no ticket", "https://h:54322/images/", ""},
		{"another path", "https://h:54322/info/t", ""},
		{"a path in the ticket", "https://h:54322/images/t/extents", ""},
		{"a line's end in the ticket", "https://h:54322/images/t%0d%0aX:%20y", ""},
		{"a user", "https://u:p@h:54322/images/t", ""},
		{"a query", "https://h:54322/images/t?x=y", ""},
		{"no host", "https:///images/t", ""},
		{"two tickets", "https://h:54322/images/t", "https://e:54323/images/u"},
	} {
		e := hypervisors.Export{Transport: hypervisors.TransportImageio, Name: "d", SizeBytes: 512, Imageio: &hypervisors.Imageio{
			TransferURL: hypervisors.TicketURL(tt.url), ProxyURL: hypervisors.TicketURL(tt.proxy),
		}}
		_, err := quick.OpenSource(t.Context(), e)
		if fault.KindOf(err) != fault.Invalid || strings.Contains(err.Error(), "54322") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if _, err := quick.OpenSource(t.Context(), hypervisors.Export{Transport: hypervisors.TransportNBD}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("another transport: %v", err)
	}
}

// TestAddresses goes by the proxy where nobody listens at the host, and by an address instead of a name.
func TestAddresses(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		p.fill(5, 3)
		good := strings.TrimPrefix(p.url(), "https://")
		address, path, _ := strings.Cut(good, "/")
		_, port, _ := strings.Cut(address, ":")
		tests := map[string]hypervisors.Imageio{
			"the proxy": {TransferURL: hypervisors.TicketURL("https://127.0.0.1:1/" + path), ProxyURL: hypervisors.TicketURL(p.url())},
			"an address": {
				TransferURL: hypervisors.TicketURL("https://LocalHost:1/" + path), Addresses: map[string]string{"localhost": address},
			},
			"an address without a port": {
				TransferURL: hypervisors.TicketURL("https://localhost:" + port + "/" + path), Addresses: map[string]string{"localhost": "127.0.0.1"},
			},
		}
		for name, i := range tests {
			e := export(p)
			i.CA = p.ca()
			e.Imageio = &i
			d := openSource(t, quick, e)
			same(t, readAll(t, d), p.content())
			p.hangUp()
			same(t, readAll(t, d), p.content())
			if err := d.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		// The certificate is for localhost, whatever the address.
		e := export(p)
		e.Imageio.TransferURL = hypervisors.TicketURL("https://elsewhere.example:1/" + path)
		e.Imageio.Addresses = map[string]string{"elsewhere.example": address}
		_, err := quick.OpenSource(t.Context(), e)
		checkError(t, "another host's certificate", err, fault.Denied)
		// Nobody at all.
		e.Imageio.Addresses = map[string]string{"elsewhere.example": "127.0.0.1:1"}
		e.Imageio.ProxyURL = hypervisors.TicketURL("https://127.0.0.1:1/" + path)
		o := quick
		o.Attempts = 2
		_, err = o.OpenSource(t.Context(), e)
		checkError(t, "nobody", err, fault.Transient)
	})
}

// TestChecksum compares what was read with the daemon's checksum, after reads in any order with parts left out as zeros.
func TestChecksum(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		seed := seeded.Seed(t)
		rnd := rand.New(rand.NewPCG(seed, 0))
		p.fill(7, 0, 15, 16, 33, 34, 100, 192, 194)
		e := export(p)
		e.Imageio.Checksum = true
		read := func(d hypervisors.FrozenDisk, from int) {
			var parts []hypervisors.Extent
			for _, x := range extents(t, d)[from:] {
				for x.State == data && x.Length > 0 {
					n := min(x.Length, 1+rnd.Int64N(2*block))
					parts = append(parts, ext(x.Offset, n, data))
					x.Offset, x.Length = x.Offset+n, x.Length-n
				}
			}
			rnd.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
			for _, x := range parts {
				grow := min(rnd.Int64N(1000), x.Offset) // pieces overlap
				if _, err := d.ReadAt(make([]byte, x.Length+grow), x.Offset-grow); err != nil {
					t.Fatal(err)
				}
			}
		}
		d := openSource(t, quick, e)
		read(d, 0)
		if err := d.Confirm(t.Context()); err != nil {
			t.Errorf("checksum of what was read: %v", err)
		}
		checksums := func() int {
			_, n := p.seen()
			if _, ok := p.(oddPeer); ok {
				return n("GET")
			}
			return n("checksum")
		}
		before := checksums()
		if before == 0 {
			t.Error("the daemon was not asked")
		}
		p.fill(8, 33)
		checkError(t, "what the daemon has changed", d.Confirm(t.Context()), fault.Corrupt)
		part := openSource(t, quick, e)
		read(part, 3)
		before = checksums()
		if err := part.Confirm(t.Context()); err != nil || checksums() != before {
			t.Errorf("a part of the disk: %v, and the daemon was asked: %v", err, checksums() != before)
		}
	})
}

func TestOldDaemon(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		o, ok := p.(oddPeer)
		if !ok {
			t.Skip("the simulator is none")
		}
		o.oldOne = true
		p.fill(7, 3)
		e := export(p)
		e.Imageio.Checksum = true
		d := openSource(t, quick, e)
		if diff := cmp.Diff([]hypervisors.Extent{ext(0, size, data)}, extents(t, d)); diff != "" {
			t.Errorf("extents (-want +got):\n%s", diff)
		}
		same(t, readAll(t, d), p.content())
		e.DirtyContext = "dirty"
		_, err := quick.OpenSource(t.Context(), e)
		checkError(t, "changes", err, fault.NotFound)
		w := openTarget(t, quick, export(p))
		if _, err := w.WriteAt(bytes.Repeat([]byte{4}, 3*block), 1000); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Zero(t.Context(), 2*block, 2*block), w.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, size)
		copy(want[1000:], bytes.Repeat([]byte{4}, 2*block-1000))
		same(t, p.content(), want)
	})
}

func TestKeepAlive(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		o := quick
		o.KeepAlive = time.Millisecond
		for name, open := range map[string]func() io.Closer{
			"source": func() io.Closer { return openSource(t, o, export(p)) },
			"target": func() io.Closer { return openTarget(t, o, export(p)) },
		} {
			beat := make(chan struct{}, 100)
			p.watch(func() {
				select {
				case beat <- struct{}{}:
				default:
				}
			})
			d := open()
			for range 4 { // one is the opening's
				select {
				case <-beat:
				case <-t.Context().Done():
					t.Fatalf("%s: nothing is read", name)
				}
			}
			_ = d.Close()
		}
	})
}

func TestCancel(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		d := openSource(t, quick, export(p))
		hold, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		p.watch(func() {
			once.Do(func() { close(hold) })
			<-release
		})
		defer close(release)
		read := make(chan error, 1)
		go func() {
			_, err := d.ReadAt(make([]byte, 10), 0)
			read <- err
		}()
		<-hold
		_ = d.Close()
		if err := <-read; fault.KindOf(err) != fault.Canceled {
			t.Errorf("a read that was cut short: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := quick.OpenSource(ctx, export(p)); !errors.Is(err, context.Canceled) {
			t.Errorf("open with a context that has ended: %v", err)
		}
	})
}
