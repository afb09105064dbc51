package remote

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// smallPack makes packs of tests small, so that there are several.
const smallPack = 512 << 10

// goOn writes what of a disk the image does not have durably, and finishes it.
func goOn(ctx context.Context, w *ImageWriter, disk []byte, workers int) (store.ImageRef, error) {
	there := make([]bool, len(disk)/65536+1)
	for r, err := range w.Durable(ctx) {
		if err != nil {
			return store.ImageRef{}, err
		}
		for at := r.Offset; at < r.Offset+r.Length; at += 65536 {
			there[at/65536] = true
		}
	}
	todo := make(chan int, len(disk)/65536+1)
	for at := 0; at < len(disk); at += 65536 {
		if !there[at/65536] {
			todo <- at
		}
	}
	close(todo)
	errs := make(chan error, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for at := range todo {
				if err := w.Write(ctx, int64(at), disk[at:min(at+65536, len(disk))]); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return store.ImageRef{}, err
	}
	return w.Finish(ctx)
}

// unique counts the contents of a disk that are not zeros.
func unique(c *Client, disk []byte) int64 {
	seen := map[store.Hash]bool{}
	zero := make([]byte, 65536)
	for p := range slices.Chunk(disk, 65536) {
		p = append(slices.Clone(p), zero[:65536-len(p)]...)
		if id := c.content.Chunk(p); string(p) != string(zero) {
			seen[id] = true
		}
	}
	return int64(len(seen))
}

// cutter loses a message: the one number at, before it is sent or the answer to it.
type cutter struct {
	at     int64
	answer bool
	n      atomic.Int64
	fired  atomic.Bool
}

func (c *cutter) hit() bool {
	if c.n.Add(1) == c.at {
		c.fired.Store(true)
		return true
	}
	return false
}

var errCut = status.Error(codes.Unavailable, "the connection was cut")

func (c *cutter) unary(ctx context.Context, method string, q, a any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	hit := c.hit()
	if hit && !c.answer {
		return errCut
	}
	if err := invoke(ctx, method, q, a, conn, o...); err != nil || !hit {
		return err
	}
	return errCut
}

func (c *cutter) stream(ctx context.Context, d *grpc.StreamDesc, conn *grpc.ClientConn, method string, make grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := make(ctx, d, conn, method, o...)
	if err != nil {
		cancel()
		return nil, err
	}
	return &cutStream{s, c, cancel}, nil
}

type cutStream struct {
	grpc.ClientStream
	c      *cutter
	cancel context.CancelFunc
}

func (s *cutStream) SendMsg(m any) error {
	if s.c.hit() {
		s.cancel()
		return errCut
	}
	return s.ClientStream.SendMsg(m)
}

func (s *cutStream) RecvMsg(m any) error {
	hit := s.c.hit()
	if hit && !s.c.answer {
		s.cancel()
		return errCut
	}
	if err := s.ClientStream.RecvMsg(m); err != nil || !hit {
		return err
	}
	s.cancel()
	return errCut
}

// TestCutAtEveryMessage loses each message of a transfer in turn, and each answer. The transfer does not notice.
func TestCutAtEveryMessage(t *testing.T) {
	rnd := random(t, 11)
	g := newRig(t)
	runs := 0
	for _, answer := range []bool{false, true} {
		for n := int64(1); ; n++ {
			cut := &cutter{at: n, answer: answer}
			conn := g.dial(g.addr, grpc.WithUnaryInterceptor(cut.unary), grpc.WithStreamInterceptor(cut.stream))
			d := disk(rnd, 1<<20+5000)
			s := g.begin()
			c := g.client(conn, Access{Session: s, Image: "sda"}, ClientOptions{})
			c.terms.PackBytes = smallPack
			w, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
			var ref store.ImageRef
			if err == nil {
				ref, err = goOn(t.Context(), w, d, 1)
			}
			if err != nil {
				t.Fatalf("message %d, answer %v: %v", n, answer, err)
			}
			g.mustHold(g.publish(s, ref).Images[0].Ref, d)
			if got, want := w.Stats().ChunksNew, unique(c, d); got > want {
				t.Errorf("message %d: %d chunks stored of %d contents", n, got, want)
			}
			i, err := g.client(conn, Access{Repository: g.repo, Images: []store.ImageRef{ref}}, ClientOptions{}).OpenImage(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := image(t.Context(), i); err != nil || string(got) != string(d) {
				t.Fatalf("message %d, answer %v: reading back: %v", n, answer, err)
			}
			_ = conn.Close()
			runs++
			if !cut.fired.Load() {
				break
			}
		}
	}
	if runs < 60 {
		t.Errorf("only %d runs", runs)
	}
	g.mustBeTight()
	t.Logf("campaign: %d transfers written and read, one message lost in each", runs)
}

// mustBeTight looks for what nothing needs: a pack or a chunk too many.
func (g *rig) mustBeTight() {
	g.t.Helper()
	rep, err := g.repo.Collect(g.t.Context(), store.CollectOptions{DryRun: true})
	if err != nil {
		g.t.Fatal(err)
	}
	if rep.DeadBytes != 0 {
		g.t.Errorf("%d bytes are needed by nothing", rep.DeadBytes)
	}
	g.mustCheck()
}

// proxy passes connections on and cuts each after some bytes.
type proxy struct {
	l    net.Listener
	to   string
	next func() int64
	cuts atomic.Int64
	wg   sync.WaitGroup
}

func newProxy(t *testing.T, to string, next func() int64) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, to: to, next: next}
	p.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			left := p.next()
			p.wg.Go(func() { p.carry(in, left) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) carry(in net.Conn, left int64) {
	defer in.Close()
	out, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer out.Close()
	p.wg.Go(func() {
		_, _ = io.Copy(in, out)
		_ = in.Close()
	})
	if n, _ := io.CopyN(out, in, left); n == left {
		p.cuts.Add(1)
	}
}

// TestTornConnections writes and reads over connections that break again and again in the middle of TLS records.
func TestTornConnections(t *testing.T) {
	rnd := random(t, 12)
	g := newRig(t)
	var mu sync.Mutex
	own := mathrand.New(mathrand.NewPCG(12, 12))
	p := newProxy(t, g.addr, func() int64 {
		mu.Lock()
		defer mu.Unlock()
		return 100_000 + own.Int64N(900_000)
	})
	rounds := 1
	if os.Getenv("CAIRN_SOAK") != "" {
		rounds = 50
	}
	// How much a connection carries before the writer gives it up by itself depends on the machine's load.
	for round := 0; round < rounds || p.cuts.Load() < 5 && round < rounds+20; round++ {
		d := disk(rnd, 6<<20)
		s := g.begin()
		conn := g.dial(p.l.Addr().String())
		c := g.client(conn, Access{Session: s, Image: "sda"}, ClientOptions{})
		c.terms.PackBytes, c.terms.FrameBytes = smallPack/2, smallPack/4 // a pack must fit through one connection
		w, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
		var ref store.ImageRef
		if err == nil {
			ref, err = goOn(t.Context(), w, d, 4)
		}
		if err != nil {
			t.Fatal(err)
		}
		g.mustHold(g.publish(s, ref).Images[0].Ref, d)
	}
	if p.cuts.Load() < 5 {
		t.Errorf("only %d connections were cut", p.cuts.Load())
	}
	g.mustBeTight()
	t.Logf("campaign: %d connections cut", p.cuts.Load())
}

// TestServerRestarts stops the server in the middle of transfers and starts another.
func TestServerRestarts(t *testing.T) {
	rnd := random(t, 13)
	g := newRig(t)
	for at := int64(5); at < 60; at += 9 {
		d := disk(rnd, 3<<20)
		s := g.begin()
		stop := &cutter{at: at}
		restarted := make(chan struct{})
		conn := g.dial(g.addr, grpc.WithUnaryInterceptor(func(ctx context.Context, method string, q, a any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			if stop.hit() {
				go func() {
					defer close(restarted)
					g.grpc.Stop()
					g.serveAgain()
				}()
			}
			return invoke(ctx, method, q, a, conn, o...)
		}))
		c := g.client(conn, Access{Session: s, Image: "sda"}, ClientOptions{})
		c.terms.PackBytes = smallPack
		w, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
		var ref store.ImageRef
		if err == nil {
			ref, err = goOn(t.Context(), w, d, 4)
		}
		if err != nil {
			t.Fatal(err)
		}
		<-restarted
		g.mustHold(g.publish(s, ref).Images[0].Ref, d)
	}
	g.mustBeTight()
}

// TestAnotherMoverGoesOn ends a mover at 20 points, without a word; the next one goes on with what is durable.
func TestAnotherMoverGoesOn(t *testing.T) {
	for name, o := range map[string]func(g *rig) ClientOptions{
		"wire":    func(*rig) ClientOptions { return ClientOptions{} },
		"mounted": func(g *rig) ClientOptions { return ClientOptions{Files: g.b} },
	} {
		t.Run(name, func(t *testing.T) {
			rnd := random(t, 14)
			g := newRig(t)
			saved := 0
			for point := range int64(20) {
				d := disk(rnd, 4<<20)
				s := g.begin()
				ctx, cancel := context.WithCancel(t.Context())
				kill := &cutter{at: 4 + 6*point}
				conn := g.dial(g.addr, grpc.WithUnaryInterceptor(func(c context.Context, method string, q, a any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
					if kill.hit() {
						cancel()
					}
					return invoke(c, method, q, a, conn, o...)
				}))
				c := g.client(conn, Access{Session: s, Image: "sda"}, o(g))
				c.terms.PackBytes = smallPack
				w, err := c.NewImage(ctx, store.ImageOptions{SizeBytes: int64(len(d))})
				if err == nil {
					_, err = goOn(ctx, w, d, 2)
				}
				if err == nil || !kill.fired.Load() {
					t.Fatalf("the mover was not ended at point %d: %v", point, err)
				}
				c.image = nil // it says nothing more
				m := &Meter{}
				c = g.client(g.dial(g.addr, m.Option()), Access{Session: s, Image: "sda"}, o(g))
				c.terms.PackBytes = smallPack
				next, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
				if err != nil {
					t.Fatal(err)
				}
				durable := 0
				for r, err := range next.Durable(t.Context()) {
					if err != nil {
						t.Fatal(err)
					}
					durable += int(r.Length)
				}
				saved += durable
				ref, err := goOn(t.Context(), next, d, 2)
				if err != nil {
					t.Fatal(err)
				}
				denied(t, "the mover that was given up", func() error { return w.Zero(t.Context(), 0, 65536) }())
				if limit := int64(len(d)-durable)*11/10 + 300_000; m.Sent() > limit {
					t.Errorf("point %d: %d bytes sent, with %d of %d durable before", point, m.Sent(), durable, len(d))
				}
				g.mustHold(g.publish(s, ref).Images[0].Ref, d)
			}
			if saved == 0 {
				t.Error("nothing was durable at any point")
			}
			g.mustBeTight()
			t.Logf("campaign: 20 movers ended, %d bytes were not sent again", saved)
		})
	}
}

// TestMounted counts what is on the wire where the mover has the backend's directory.
func TestMounted(t *testing.T) {
	rnd := random(t, 15)
	g := newRig(t)
	d := make([]byte, 64<<20)
	for i := range d {
		d[i] = byte(rnd.Uint32())
	}
	m := &Meter{}
	s := g.begin()
	c := g.client(g.dial(g.addr, m.Option()), Access{Session: s, Image: "sda"}, ClientOptions{Files: g.b})
	w, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
	if err == nil {
		err = put(t.Context(), w, d, nil, 4)
	}
	if err != nil {
		t.Fatal(err)
	}
	ref, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g.mustHold(g.publish(s, ref).Images[0].Ref, d)
	wire := m.Sent() + m.Received()
	t.Logf("%d bytes of data, %d on the wire (%.2f %%)", len(d), wire, 100*float64(wire)/float64(len(d)))
	if wire*50 > int64(len(d)) {
		t.Errorf("%d bytes on the wire for %d of data", wire, len(d))
	}
	other := newRig(t)
	if _, err := Open(t.Context(), g.dial(g.addr), ClientOptions{
		Ticket: g.desk.issue(Access{Session: g.begin(), Image: "sda"}), Files: other.b,
	}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("another repository's directory: %v", err)
	}
}

// TestKilledMovers kills processes that write an image, at 20 points.
func TestKilledMovers(t *testing.T) {
	if os.Getenv("CAIRN_TEST_MOVER") != "" {
		t.Skip("this is the mover")
	}
	rnd := random(t, 16)
	g := newRig(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.cert.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	killed := 0
	for point := range 20 {
		d := disk(rnd, 6<<20)
		file := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(file, d, 0o600); err != nil {
			t.Fatal(err)
		}
		s := g.begin()
		run := func(kill int) bool {
			cmd := exec.Command(os.Args[0], "-test.run=^TestMoverProcess$", "-test.timeout=2m")
			cmd.Env = append(os.Environ(), "CAIRN_TEST_MOVER="+g.addr, "CAIRN_TEST_CA="+ca, "CAIRN_TEST_DISK="+file,
				"CAIRN_TEST_KILL="+strconv.Itoa(kill), "CAIRN_TEST_TICKET="+g.desk.issue(Access{Session: s, Image: "sda"}))
			out, err := cmd.CombinedOutput()
			if err != nil && cmd.ProcessState.ExitCode() != -1 {
				t.Fatalf("the mover failed: %v\n%s", err, out)
			}
			return err == nil
		}
		if run(3 + 9*point) {
			t.Fatalf("point %d: the mover ended before it was killed", point)
		}
		killed++
		if !run(0) {
			t.Fatal("the second mover did not finish")
		}
		w, err := s.Image(t.Context(), "sda", store.ImageOptions{SizeBytes: int64(len(d))})
		if err != nil {
			t.Fatal(err)
		}
		c, err := w.Attach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ref, err := c.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		g.mustHold(g.publish(s, ref).Images[0].Ref, d)
	}
	g.mustBeTight()
	t.Logf("campaign: %d processes killed", killed)
}

// TestMoverProcess is the process that TestKilledMovers kills: by itself, with SIGKILL, at a message.
func TestMoverProcess(t *testing.T) {
	addr := os.Getenv("CAIRN_TEST_MOVER")
	if addr == "" {
		t.Skip("no mover is wanted")
	}
	ca, err := os.ReadFile(os.Getenv("CAIRN_TEST_CA"))
	if err != nil {
		t.Fatal(err)
	}
	g := &rig{t: t, roots: x509.NewCertPool()}
	g.roots.AppendCertsFromPEM(ca)
	d, err := os.ReadFile(os.Getenv("CAIRN_TEST_DISK"))
	if err != nil {
		t.Fatal(err)
	}
	at, err := strconv.Atoi(os.Getenv("CAIRN_TEST_KILL"))
	if err != nil {
		t.Fatal(err)
	}
	kill := &cutter{at: int64(at)}
	die := func() {
		p, _ := os.FindProcess(os.Getpid())
		_ = p.Kill()
		select {}
	}
	conn := g.dial(addr, grpc.WithUnaryInterceptor(func(ctx context.Context, method string, q, a any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
		if kill.hit() {
			die()
		}
		return invoke(ctx, method, q, a, conn, o...)
	}))
	c, err := Open(t.Context(), conn, ClientOptions{Ticket: os.Getenv("CAIRN_TEST_TICKET"), Patience: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c.terms.PackBytes = smallPack
	w, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
	if err == nil {
		_, err = goOn(t.Context(), w, d, 2)
	}
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(w.Stats())
}
