package imageiotransport

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/lab/ovirtsim/imageio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	mib   = 1 << 20
	block = 64 << 10
	size  = 12*mib + 3*block + 512
)

// peer is a daemon with one image, which is writable and knows what changed.
type peer interface {
	url() string
	ca() string
	// fill changes the image behind the daemon's back: 64 KiB of a byte at each of the blocks, which then are dirty.
	fill(b byte, blocks ...int64)
	content() []byte // that survives a crash
	// spoil makes so many requests with a method go wrong after the first ones, and returns how many that were so far.
	spoil(method string, skip, times int, what string) (fired func() int)
	crash()          // between two requests
	watch(fn func()) // is called at every GET
	hangUp()
	expire()                                      // the ticket
	awaitHungUp(t testing.TB)                     // waits until no connection is open
	seen() (most int, perMethod func(string) int) // connections at once, and requests
	lost() int64                                  // bytes, in crashes
}

// peers runs a test against both daemons.
func peers(t *testing.T, test func(t *testing.T, p peer)) {
	dir := nbdtest.Certificates(t)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("simulator", func(t *testing.T) { test(t, newSim(t, cert, string(pem))) })
	t.Run("odd", func(t *testing.T) { test(t, oddPeer{newOdd(t, cert, size), string(pem)}) })
}

func export(p peer) hypervisors.Export {
	return hypervisors.Export{
		Transport: hypervisors.TransportImageio, Name: "disk1", SizeBytes: size,
		Imageio: &hypervisors.Imageio{TransferURL: hypervisors.TicketURL(p.url()), CA: p.ca()},
	}
}

// sim is the simulator's daemon on an NBD export in memory.
type sim struct {
	server *imageio.Server
	memory *nbd.Memory
	addr   string
	pem    string
	cert   tls.Certificate
	unix   string

	backend imageio.Backend
	watched *imageio.Injected

	mu    sync.Mutex
	dirty []int64
	now   time.Time
}

const simTicket = "54a22d4e-6d1a-4b6d-8c0e-2f6f0a6f9b11"

func newSim(t testing.TB, cert tls.Certificate, pem string) *sim {
	t.Helper()
	s := &sim{pem: pem, cert: cert, watched: &imageio.Injected{}, now: time.Unix(1e9, 0), unix: nbdtest.Socket(t)}
	const dirty = "qemu:dirty-bitmap:b"
	s.memory = nbd.NewMemory(size, func(_ string, b int64) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.Contains(s.dirty, b)
	})
	server := nbd.NewServer(nbd.ServerOptions{})
	if err := server.Add(nbd.Export{Name: "d", Backend: s.memory, Contexts: []string{nbd.BaseAllocation, dirty}, MultiConn: true}); err != nil {
		t.Fatal(err)
	}
	socket := nbdtest.Socket(t)
	nl, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(nl) })
	backend, err := imageio.OpenNBD(t.Context(), socket, "d", dirty)
	if err != nil {
		t.Fatal(err)
	}
	s.backend = backend
	s.server = imageio.NewServer(imageio.Options{Certificate: cert, UnixSocket: s.unix, Now: s.clock})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	wg.Go(func() { _ = s.server.Serve(l) })
	t.Cleanup(func() {
		_ = s.server.Close()
		_ = backend.Close()
		_ = server.Close()
		wg.Wait()
	})
	err = s.server.AddTicket(imageio.Ticket{ID: simTicket, TransferID: "transfer1", Backend: backend, SizeBytes: size, Write: true, Dirty: true, Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *sim) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *sim) url() string { return "https://" + s.addr + "/images/" + simTicket }
func (s *sim) ca() string  { return s.pem }
func (s *sim) lost() int64 { return s.server.Stats().LostBytes }

func (s *sim) fill(b byte, blocks ...int64) {
	s.mu.Lock()
	s.dirty = append(s.dirty, blocks...)
	s.mu.Unlock()
	for _, at := range blocks {
		_, _ = s.memory.WriteAt(bytes.Repeat([]byte{b}, block), at*block)
	}
}

func (s *sim) content() []byte {
	p := make([]byte, size)
	_, _ = s.memory.ReadAt(p, 0)
	return p
}

func (s *sim) spoil(method string, skip, times int, what string) func() int {
	f := imageio.Fault{Method: method, Skip: skip, Times: times}
	switch what {
	case "drop":
		f.Drop = true
	case "half":
		f.DropAfter = 20000
	case "500":
		f.Status = 500
	case "403":
		f.Status = 403
	case "crash":
		f.Crash = true
	case "forget":
		f.Forget = true
	}
	return s.server.Inject(f).Fired
}

func (s *sim) watch(fn func()) {
	s.watched.Remove()
	s.watched = s.server.Inject(imageio.Fault{Method: "GET", Do: fn})
}

func (s *sim) hangUp() { s.server.HangUp() }

func (s *sim) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(time.Hour)
}

func (s *sim) awaitHungUp(t testing.TB) {
	if err := s.server.AwaitHungUp(t.Context()); err != nil {
		t.Error(err)
	}
}

func (s *sim) seen() (most int, perMethod func(string) int) {
	st := s.server.Stats()
	return st.MostConnections, func(m string) int { return st.Requests[m] }
}

// oddPeer is the other one.
type oddPeer struct {
	*odd
	pem string
}

func (o oddPeer) url() string { return "https://" + o.listener.Addr().String() + "/images/" + o.ticket }
func (o oddPeer) ca() string  { return o.pem }

func (o oddPeer) lost() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.odd.lost
}

func (o oddPeer) fill(b byte, blocks ...int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, at := range blocks {
		o.dirty[at] = true
		copy(o.now[at*block:], bytes.Repeat([]byte{b}, block))
		copy(o.durable[at*block:], bytes.Repeat([]byte{b}, block))
	}
}

func (o oddPeer) content() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.durable)
}

func (o oddPeer) spoil(method string, skip, times int, what string) func() int {
	s := &spoiler{method: method, skip: skip, times: times, what: what}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.odd.spoil = append(o.odd.spoil, s)
	return func() int {
		o.mu.Lock()
		defer o.mu.Unlock()
		return s.fired
	}
}

func (o oddPeer) watch(fn func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.atGet = fn
}

func (o oddPeer) expire() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gone = true
}

func (o oddPeer) awaitHungUp(testing.TB) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.conns) > 0 {
		o.fewer.Wait()
	}
}

func (o oddPeer) seen() (most int, perMethod func(string) int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	requests := map[string]int{}
	for k, v := range o.requests {
		requests[k] = v
	}
	return o.most, func(m string) int { return requests[m] }
}

// quick does not wait long before it tries again.
var quick = Options{Backoff: time.Millisecond, KeepAlive: time.Hour}

func openSource(t testing.TB, o Options, e hypervisors.Export) hypervisors.FrozenDisk {
	t.Helper()
	d, err := o.OpenSource(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func openTarget(t testing.TB, o Options, e hypervisors.Export) hypervisors.TargetDisk {
	t.Helper()
	d, err := o.OpenTarget(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func extents(t testing.TB, d hypervisors.FrozenDisk) []hypervisors.Extent {
	t.Helper()
	out, err := listed(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func listed(ctx context.Context, d hypervisors.FrozenDisk) (out []hypervisors.Extent, err error) {
	for e, err := range d.Extents(ctx) {
		if err != nil {
			return out, err
		}
		out = append(out, e)
	}
	return out, nil
}

// crash ends the daemon's life between two requests.
func (s *sim) crash() { s.server.Crash() }

// readOnly adds a ticket that allows reading only.
func (s *sim) readOnly(t testing.TB) string {
	t.Helper()
	const id = "read-only"
	if err := s.server.AddTicket(imageio.Ticket{ID: id, Backend: s.backend, SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
	return id
}
