package httpapi

import (
	"context"
	"crypto/tls"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/identity"
)

const (
	maxBodyBytes   = 1 << 20
	maxHeaderBytes = 64 << 10
	headerTimeout  = 10 * time.Second
	bodyTimeout    = 30 * time.Second
	idleTimeout    = 2 * time.Minute
	// requestTimeout bounds everything but streams and waiting for a run: trying a connection may take a while.
	requestTimeout = 2 * time.Minute
	writeTimeout   = 30 * time.Second
	drainTimeout   = 10 * time.Second
	maxWait        = 300 * time.Second
)

// Identity is what the interface needs to know who is asking. *identity.Service is one.
type Identity interface {
	SetUp(ctx context.Context, source, setUpToken, name, password string) (identity.Issued, error)
	Login(ctx context.Context, source, name, password string) (identity.Issued, error)
	Authenticate(ctx context.Context, secret string) (identity.Caller, error)
	AuthenticateHash(ctx context.Context, hash string) (identity.Caller, error)
	IssueToken(ctx context.Context, c identity.Caller, name, scope string, lifetime time.Duration) (identity.Issued, error)
	Tokens(ctx context.Context, c identity.Caller, p catalog.Page) (catalog.List[catalog.Token], error)
	Token(ctx context.Context, c identity.Caller, id string) (catalog.Token, error)
	DeleteToken(ctx context.Context, c identity.Caller, id string) error
}

// Version is what /version answers.
type Version struct {
	Version, Commit string
	Built           time.Time // the commit's
	Schema          int       // of the catalog
}

// Metrics counts what the server does and renders all there is to measure. *metrics.Metrics is one.
type Metrics interface {
	http.Handler
	// Request is told of each answer but event streams; route is a pattern, "" when the path matches none.
	Request(method, route string, status int, elapsed time.Duration)
	// Stream is told that an event stream begins; the function that it returns, that it ends.
	Stream() (end func())
}

// Changes keeps other processes from changing a thing, by its path, between the look at its ETag and the change. *catalog.Catalog does.
type Changes interface {
	LockChange(ctx context.Context, what string) (unlock func(), err error)
}

// Options of New.
type Options struct {
	Core      Core
	Identity  Identity
	Requests  Requests
	Stream    *Stream
	Rate      Rate    // the zero value is DefaultRate
	Metrics   Metrics // nil: nothing is counted, and there is no /metrics
	Log       *slog.Logger
	Version   Version
	Heartbeat time.Duration     // of event streams; 0 is 15 seconds
	Changes   Changes           // nil: no other process changes anything
	Peers     http.RoundTripper // to the APIs of other managers on the same database; nil if there can be none
}

// Server is the HTTP side of the appliance.
type Server struct {
	core      Core
	identity  Identity
	requests  Requests
	stream    *Stream
	limiter   *limiter
	changes   changes
	others    Changes
	docs      []byte
	metrics   Metrics
	log       *slog.Logger
	version   Version
	heartbeat time.Duration
	contract  *contract
	echo      *echo.Echo
	peers     http.RoundTripper

	closing chan struct{} // closed when streams and waiting calls shall end
	once    sync.Once
}

// New makes a server; it listens nowhere yet.
func New(o Options) (*Server, error) {
	c, err := loadContract(api.Document)
	if err != nil {
		return nil, err
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = 15 * time.Second
	}
	if o.Rate == (Rate{}) {
		o.Rate = DefaultRate
	}
	docs, err := c.docs()
	if err != nil {
		return nil, err
	}
	s := &Server{
		core: o.Core, identity: o.Identity, requests: o.Requests, stream: o.Stream, limiter: newLimiter(o.Rate), docs: docs, metrics: o.Metrics, log: o.Log, version: o.Version, heartbeat: o.Heartbeat,
		contract: c, others: o.Changes, peers: o.Peers, closing: make(chan struct{}),
	}
	s.echo = s.routes()
	return s, nil
}

//go:embed index.html
var index []byte

// The routes that are not operations of the document.
var pages = map[string]bool{
	"GET /":                    true,
	"GET /api/v1/openapi.yaml": true,
	"GET /api/v1/openapi.json": true,
	"GET /api/v1/docs":         true,
	"GET /api/v1/docs.css":     true,
}

// metricsRoute is no operation of the document either, but not for everybody.
const metricsRoute = "GET /metrics"

func (s *Server) routes() *echo.Echo {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.IPExtractor = echo.ExtractIPDirect() // nobody may choose the address that logins are throttled by
	e.HTTPErrorHandler = s.renderError
	e.Binder = jsonBinder{}
	e.Use(s.identify, s.logAccess, s.recoverPanic, s.secure, s.authenticate, s.limit, s.conform, s.forward, s.onlyOnce, s.guard, s.tag)
	server.RegisterHandlersWithBaseURL(e, server.NewStrictHandler(&handlers{s}, nil), api.BasePath)
	e.GET("/", func(c echo.Context) error { return c.Blob(http.StatusOK, "text/html; charset=utf-8", index) })
	e.GET(api.BasePath+"/openapi.yaml", func(c echo.Context) error {
		return c.Blob(http.StatusOK, "application/yaml", api.Document)
	})
	e.GET(api.BasePath+"/openapi.json", func(c echo.Context) error {
		return c.Blob(http.StatusOK, "application/json", s.contract.json)
	})
	if s.metrics != nil {
		e.GET("/metrics", echo.WrapHandler(s.metrics))
	}
	e.GET(api.BasePath+"/docs", func(c echo.Context) error { return c.Blob(http.StatusOK, "text/html; charset=utf-8", s.docs) })
	e.GET(api.BasePath+"/docs.css", func(c echo.Context) error { return c.Blob(http.StatusOK, "text/css; charset=utf-8", docsStyle) })
	return e
}

// Handler serves one request; for tests and for who brings a listener of his own.
func (s *Server) Handler() http.Handler { return s.echo }

// Serve answers on the listener until ctx is done, then lets requests end, streams at once and others within ten
// seconds, and returns nil. It owns the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener, config *tls.Config) error {
	hs := &http.Server{
		Handler: s.echo, TLSConfig: config, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- hs.ServeTLS(l, "", "") }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve API: %w", err)
	case <-ctx.Done():
	}
	s.Close()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := hs.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		err = hs.Close()
	}
	if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// Close ends event streams and waiting calls. May be repeated.
func (s *Server) Close() { s.once.Do(func() { close(s.closing) }) }
