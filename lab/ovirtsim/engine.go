package ovirtsim

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

// Config is what an engine is made of. The zero value, but for the Site, is good.
type Config struct {
	// Dir is an empty directory for disks, with a path that is short enough for a Unix socket in it. By default it is one in
	// the system's temporary directory, which Close removes.
	Dir   string
	Site  Site
	Users []User // default: admin@internal with the password "secret"
	Clock *Clock // default: RealClock
	// Pace is how long each phase of an operation lasts; default 5 ms.
	Pace time.Duration
	// Idle is after what time without a request a session ends; default 30 minutes, as on an engine.
	Idle time.Duration
	// Version of the engine, "4.5.4" by default. Before 4.4.7 a transfer that has ended is forgotten at once.
	Version string
	// CorporateWeb lets the engine's own pages and API have a certificate of another CA than its internal one.
	CorporateWeb bool
	// Listen is "127.0.0.1:0" by default.
	Listen string
	// Seed of the ids and of the order of lists that are not sorted.
	Seed  uint64
	Watch Watch
	// Log gets what the engine does; nothing by default.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	if len(c.Users) == 0 {
		c.Users = []User{{Name: "admin@internal", Password: "secret"}}
	}
	if c.Clock == nil {
		c.Clock = RealClock()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Pace = cmp.Or(c.Pace, 5*time.Millisecond)
	c.Idle = cmp.Or(c.Idle, 30*time.Minute)
	c.Version = cmp.Or(c.Version, "4.5.4")
	c.Listen = cmp.Or(c.Listen, "127.0.0.1:0")
	return c
}

// Engine is a running oVirt engine. Close ends it.
type Engine struct {
	cfg    Config
	clock  *Clock
	log    *slog.Logger
	ca     *authority
	web    *authority // that of the API; ca unless Config.CorporateWeb
	server *http.Server
	addr   string
	served chan struct{}
	routes []route

	data   data
	images images

	working sync.WaitGroup // work beside the lock
	stop    context.CancelFunc
	ctx     context.Context

	connMu sync.Mutex
	conns  map[net.Conn]bool

	mu       sync.Mutex
	closed   bool
	rand     *rand.Rand
	instance string // the engine's own id
	sessions map[string]*session
	injected []*Injected
	counts   map[Behaviour]int
	hanging  []func()
	state
}

// state is all that the engine knows.
type state struct {
	users     table[*user]
	centers   table[*dataCenter]
	clusters  table[*cluster]
	hosts     table[*host]
	domains   table[*domain]
	networks  table[*network]
	profiles  table[*profile]
	pools     table[*macPool]
	templates table[*template]
	tags      table[*tag]
	labels    table[*label]
	vms       table[*vm]
	disks     table[*disk]
	transfers table[*transfer]
	jobs      table[*job]
	events    []*event // oldest first
}

// New starts an engine.
func New(cfg Config) (*Engine, error) {
	cfg = cfg.withDefaults()
	e := &Engine{
		cfg: cfg, clock: cfg.Clock, log: cfg.Log, served: make(chan struct{}), conns: map[net.Conn]bool{},
		rand: rand.New(rand.NewPCG(cfg.Seed, 0x6f566972742073)), sessions: map[string]*session{}, counts: map[Behaviour]int{},
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.routes = e.allRoutes()
	e.instance = e.newID()
	if err := e.build(); err != nil {
		return nil, fmt.Errorf("make the site: %w", err)
	}
	var err error
	if e.ca, err = newAuthority("oVirt internal CA"); err != nil {
		return nil, err
	}
	if err := e.serveImages(); err != nil {
		return nil, err
	}
	if err := e.listen(); err != nil {
		e.stop()
		return nil, errors.Join(err, e.images.close())
	}
	return e, nil
}

func (e *Engine) listen() (err error) {
	e.web = e.ca
	if e.cfg.CorporateWeb {
		if e.web, err = newAuthority("Corporate CA"); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", e.cfg.Listen)
	if err != nil {
		return err
	}
	e.addr = l.Addr().String()
	host, _, err := net.SplitHostPort(e.addr)
	if err != nil {
		return err
	}
	cert, err := e.web.issue(host)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/ovirt-engine/sso/oauth/token", e.front(e.serveToken))
	mux.HandleFunc("/ovirt-engine/services/sso-logout", e.front(e.serveLogout))
	mux.HandleFunc("GET /ovirt-engine/services/pki-resource", e.servePKI)
	mux.HandleFunc(api+"/", e.front(e.serveAPI))
	mux.HandleFunc(api, e.front(e.serveAPI))
	e.server = &http.Server{
		Handler: mux, ReadHeaderTimeout: time.Minute, ConnState: e.noteConn, ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
	}
	go func() {
		defer close(e.served)
		if err := e.server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			e.log.Error("serve", "err", err)
		}
	}()
	return nil
}

// Close stops serving, ends what is under way and waits for it.
func (e *Engine) Close() error {
	err := e.server.Close()
	<-e.served
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.stop()
	e.working.Wait()
	for _, v := range e.vms.all() {
		err = errors.Join(err, e.halt(v)(context.Background()))
		for _, a := range v.attached.all() {
			if a.device != nil {
				err = errors.Join(err, a.device.close(context.Background()))
			}
		}
	}
	for _, t := range e.transfers.all() {
		if t.ticket != nil {
			err = errors.Join(err, t.ticket.close(context.Background()))
		}
	}
	return errors.Join(err, e.images.close(), e.data.close())
}

// URL is where the API is, for a client.
func (e *Engine) URL() string { return "https://" + e.addr + api }

// CA is the certificate, as PEM, that the API's own is signed with.
func (e *Engine) CA() []byte { return e.web.pem }

// InternalCA is the certificate, as PEM, of the engine's internal CA, which imageio's are signed with.
func (e *Engine) InternalCA() []byte { return e.ca.pem }

// servePKI hands out the internal CA's certificate to everybody.
func (e *Engine) servePKI(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("resource") != "ca-certificate" || q.Get("format") != "X509-PEM-CA" && q.Get("format") != "X509-PEM" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-x509-ca-cert")
	_, _ = w.Write(e.ca.pem)
}

func (e *Engine) noteConn(c net.Conn, s http.ConnState) {
	e.connMu.Lock()
	defer e.connMu.Unlock()
	switch s {
	case http.StateNew:
		e.conns[c] = true
	case http.StateClosed, http.StateHijacked:
		delete(e.conns, c)
	}
}

// Restart does what restarting an engine's service does to its clients.
func (e *Engine) Restart() {
	e.mu.Lock()
	e.restart()
	e.mu.Unlock()
	e.dropConns()
}

// restart is the part under the lock: nobody watches backups any more that were not ready. What the hosts are doing for one goes to
// its end before it is failed.
func (e *Engine) restart() {
	clear(e.sessions)
	for _, v := range e.vms.all() {
		b := v.activeBackup()
		switch {
		case b == nil:
		case b.phase == backupInitializing:
			e.failBackup(b)
		case b.phase == backupStarting:
			b.unwatched = true
		}
	}
}

func (e *Engine) dropConns() {
	e.connMu.Lock()
	defer e.connMu.Unlock()
	for c := range e.conns {
		_ = c.Close()
	}
}

// Advance moves a manual clock on, step by step through all that is due, and waits for the work that begins.
func (e *Engine) Advance(d time.Duration) {
	end := e.clock.Now().Add(d)
	for {
		e.working.Wait()
		run, found := e.clock.pop(end)
		if !found {
			return
		}
		run()
	}
}

// later runs a step of an operation, under the lock, after d.
func (e *Engine) later(d time.Duration, step func()) (stop func()) {
	return e.clock.after(d, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if !e.closed {
			step()
		}
	})
}

// work runs something beside the lock and then, under it, what follows from its result. The caller holds mu.
func (e *Engine) work(do func(ctx context.Context) error, then func(err error)) {
	e.working.Go(func() {
		err := do(e.ctx)
		e.mu.Lock()
		defer e.mu.Unlock()
		if err != nil {
			e.log.Warn("work on disks", "err", err)
		}
		then(err)
	})
}

// newID returns a random id.
func (e *Engine) newID() string {
	a, b := e.rand.Uint64(), e.rand.Uint64()
	a, b = a&^0xf000|0x4000, b&^(3<<62)|2<<62
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", a>>32, a>>16&0xffff, a&0xffff, b>>48, b&0xffffffffffff)
}

// readBody reads what a request brings, before anything is locked.
func readBody(r *http.Request) (*node, error) {
	body, err := parse(r.Body)
	if err == nil {
		// A document that was cut off by the limit has failed already; the rest of a longer one is not read.
		_, err = io.CopyN(io.Discard, r.Body, 1)
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err != nil {
		return nil, badRequest("%v", err)
	}
	return body, nil
}
