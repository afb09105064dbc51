package remote

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/loopback"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// desk is an Authorizer with a list of tickets.
type desk struct {
	mu      sync.Mutex
	tickets map[string]Access
	openers map[string]string
}

func (d *desk) Open(_ context.Context, ticket, opener string) (Access, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if was, ok := d.openers[ticket]; ok && was != opener {
		return Access{}, fault.New(fault.Denied, "use ticket", "", "it was used already")
	}
	a, ok := d.tickets[ticket]
	if !ok {
		return Access{}, fault.New(fault.Denied, "use ticket", "", "it is not known")
	}
	d.openers[ticket] = opener
	return a, nil
}

func (d *desk) Check(_ context.Context, ticket, opener string) (Access, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a, ok := d.tickets[ticket]
	if !ok || d.openers[ticket] != opener {
		return Access{}, fault.New(fault.Denied, "use ticket", "", "it is not known here")
	}
	return a, nil
}

func (d *desk) issue(a Access) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := rand.Text()
	d.tickets[t] = a
	return t
}

func (d *desk) void(ticket string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.tickets, ticket)
}

// rig is a repository with a server before it, on loopback with TLS.
type rig struct {
	t     testing.TB
	dir   string
	b     *file.Store
	key   store.Key
	repo  *store.Repository
	desk  *desk
	srv   *Server
	grpc  *grpc.Server
	addr  string
	cert  tls.Certificate
	roots *x509.CertPool
}

func newRig(t *testing.T) *rig {
	t.Helper()
	g := makeRig(t)
	t.Cleanup(func() {
		g.grpc.Stop()
		if err := g.repo.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// benchRig is a rig that its user ends.
func benchRig(b *testing.B) *rig {
	b.Helper()
	return makeRig(b)
}

func makeRig(t testing.TB) *rig {
	t.Helper()
	g := &rig{t: t, dir: filepath.Join(t.TempDir(), "repo"), desk: &desk{tickets: map[string]Access{}, openers: map[string]string{}}}
	g.cert, g.roots = certificate(t)
	b, err := file.Create(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Create(t.Context(), b, g.key, store.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	g.b = b
	g.open()
	l, err := loopback.Listen()
	if err != nil {
		t.Fatal(err)
	}
	g.serve(l)
	return g
}

func (g *rig) open() {
	g.t.Helper()
	var err error
	if g.repo, err = store.Open(g.t.Context(), g.b, g.key, store.Options{}); err != nil {
		g.t.Fatal(err)
	}
}

// serveAgain starts another server where the last one was.
func (g *rig) serveAgain() {
	l, err := net.Listen("tcp", g.addr)
	if err != nil {
		g.t.Error(err)
		return
	}
	g.serve(l)
}

func (g *rig) serve(l net.Listener) {
	g.addr = l.Addr().String()
	g.srv = NewServer(Options{Authorizer: g.desk})
	o := append(GRPC(), grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{g.cert}, MinVersion: tls.VersionTLS13})))
	s := grpc.NewServer(o...)
	mover.RegisterRepositoryServer(s, g.srv)
	g.grpc = s
	go func() { _ = s.Serve(l) }()
}

func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

// dial connects to an address, with options before those every test has.
func (g *rig) dial(addr string, more ...grpc.DialOption) *grpc.ClientConn {
	g.t.Helper()
	o := append(Dial(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: g.roots, MinVersion: tls.VersionTLS13})))
	conn, err := grpc.NewClient(addr, append(o, more...)...)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (g *rig) begin() *store.Session {
	g.t.Helper()
	s, err := g.repo.Begin(g.t.Context(), store.SessionOptions{Series: "vm"})
	if err != nil {
		g.t.Fatal(err)
	}
	return s
}

// client opens a client with a new ticket.
func (g *rig) client(conn *grpc.ClientConn, a Access, o ClientOptions) *Client {
	g.t.Helper()
	o.Ticket = g.desk.issue(a)
	c, err := Open(g.t.Context(), conn, o)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

// sink is what both ways of writing an image are.
type sink interface {
	Write(ctx context.Context, off int64, p []byte) error
	Zero(ctx context.Context, off, n int64) error
}

const segment = 1 << 20

// put writes the segments of a disk that differ from before, by some goroutines.
func put(ctx context.Context, w sink, disk, before []byte, workers int) error {
	var wg sync.WaitGroup
	todo := make(chan int, len(disk)/segment+1)
	for at := 0; at < len(disk); at += segment {
		if end := min(at+segment, len(disk)); before == nil || len(before) < end || !bytes.Equal(disk[at:end], before[at:end]) {
			todo <- at
		}
	}
	close(todo)
	errs := make(chan error, workers)
	for range workers {
		wg.Go(func() {
			for at := range todo {
				p := disk[at:min(at+segment, len(disk))]
				var err error
				if len(bytes.Trim(p, "\x00")) == 0 {
					err = w.Zero(ctx, int64(at), int64(len(p)))
				} else {
					err = w.Write(ctx, int64(at), p)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

func (g *rig) publish(s *store.Session, ref store.ImageRef) store.RestorePoint {
	g.t.Helper()
	p, err := s.Publish(g.t.Context(), store.Manifest{Time: time.Now(), Images: []store.NamedImage{{Name: "sda", Ref: ref}}})
	if err != nil {
		g.t.Fatal(err)
	}
	return p
}

// local writes a disk in this process.
func (g *rig) local(disk, before []byte, parent *store.ImageRef) store.RestorePoint {
	g.t.Helper()
	s := g.begin()
	w, err := s.NewImage(g.t.Context(), store.ImageOptions{SizeBytes: int64(len(disk)), Parent: parent})
	if err == nil {
		err = put(g.t.Context(), w, disk, before, 1)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	ref, err := w.Finish(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	return g.publish(s, ref)
}

// mustHold reads an image back in this process and compares it.
func (g *rig) mustHold(ref store.ImageRef, disk []byte) {
	g.t.Helper()
	i, err := g.repo.OpenImage(g.t.Context(), ref)
	if err != nil {
		g.t.Fatal(err)
	}
	defer i.Close()
	got := make([]byte, len(disk))
	if _, err := i.ReadAt(got, 0); err != nil && len(disk) > 0 {
		if i.Size() != int64(len(disk)) {
			g.t.Fatal(err)
		}
	}
	if !bytes.Equal(got, disk) {
		g.t.Fatal("the image is not what was written")
	}
}

// packBytes is the size of all packs.
func (g *rig) packBytes() int64 {
	g.t.Helper()
	u, err := g.repo.Usage(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	return u.StoredBytes
}

// mustCheck looks at the structure: no problem, and no object twice.
func (g *rig) mustCheck() {
	g.t.Helper()
	rep, err := g.repo.Check(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	for _, p := range append(rep.Problems, rep.Notes...) {
		g.t.Error(p)
	}
}

// disk is random data that compresses in part, with zeros and repetitions.
func disk(rnd *mathrand.Rand, size int) []byte {
	p := make([]byte, size)
	for at := 0; at < size; {
		n := min(size-at, (1+rnd.IntN(40))*4096)
		switch rnd.IntN(5) {
		case 0: // zeros
		case 1:
			if at > 0 {
				copy(p[at:at+n], p[rnd.IntN(at)/4096*4096:])
			}
		case 2:
			for i := range n {
				p[at+i] = byte('a' + rnd.IntN(4))
			}
		default:
			for i := range n {
				p[at+i] = byte(rnd.Uint32())
			}
		}
		at += n
	}
	return p
}

func random(t *testing.T, seed uint64) *mathrand.Rand {
	t.Helper()
	t.Logf("seed %d", seed)
	return mathrand.New(mathrand.NewPCG(seed, seed))
}
