package imageiotransport

import (
	"net"
	"os"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
)

// TestHostsOwnSocket goes by the daemon's Unix socket where it answers to the ticket, and only then.
func TestHostsOwnSocket(t *testing.T) {
	tests := []struct {
		name  string
		serve func(t *testing.T, s *sim) // something at the socket's path
		local bool
	}{
		{"the daemon", func(t *testing.T, s *sim) { listen(t, s.unix, s.server.ServeUnix) }, true},
		{"nothing", func(*testing.T, *sim) {}, false},
		{"a file", func(t *testing.T, s *sim) {
			if err := os.WriteFile(s.unix, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"another daemon, which does not know the ticket", func(t *testing.T, s *sim) {
			other := newSim(t, s.cert, s.pem)
			other.expire()
			listen(t, s.unix, other.server.ServeUnix)
		}, false},
		{"no daemon", func(t *testing.T, s *sim) {
			listen(t, s.unix, func(l net.Listener) error {
				for {
					c, err := l.Accept()
					if err != nil {
						return err
					}
					_ = c.Close()
				}
			})
		}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			peers(t, func(t *testing.T, p peer) {
				s, ok := p.(*sim)
				if !ok {
					t.Skip("it has no Unix socket")
				}
				tt.serve(t, s)
				s.fill(7, 1, 100)
				d := openSource(t, quick, export(s))
				if got := d.(*source).link.places[0].network; (got == "unix") != tt.local {
					t.Errorf("it goes by %s", got)
				}
				same(t, readAll(t, d), s.content())
				s.hangUp()
				same(t, readAll(t, d), s.content())
				w := openTarget(t, quick, export(s))
				if err := w.Zero(t.Context(), 0, size); err != nil {
					t.Fatal(err)
				}
				want := scribble(t, w, 1)
				if err := w.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				same(t, s.content(), want)
				// By way of the proxy the host's socket is not the proxy's.
				e := export(s)
				e.Imageio.ProxyURL, e.Imageio.TransferURL = e.Imageio.TransferURL, hypervisors.TicketURL("https://127.0.0.1:1/images/"+simTicket)
				if got := openSource(t, quick, e).(*source).link.places[0].network; got == "unix" {
					t.Error("the proxy's socket was used")
				}
			})
		})
	}
}

func listen(t *testing.T, path string, serve func(net.Listener) error) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = serve(l) })
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
}
