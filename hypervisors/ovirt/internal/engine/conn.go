// Package engine is the connection to one oVirt engine: its single sign-on, requests of its API and what answers them, whom to trust, and
// what its refusals mean.
//
// It knows no VM, disk or snapshot: paths and documents are its caller's, and so is when a state that was asked for has come about.
//
// Its invariant: a server that is not trusted gets nothing but the question for its CA; a call that may have been carried out is repeated
// only if its Request says that it may be; and each error has a kind and, where an admin reads it, words.
package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// apiPath is where the API lies on every engine.
const apiPath = "/ovirt-engine/api"

// maxReply bounds a reply: a hundred VMs with all that belongs to them are a few MiB.
const maxReply = 64 << 20

// Conn makes requests to one engine, with a token that it fetches when it needs one. Its methods may be called from
// several goroutines.
type Conn struct {
	base     *url.URL // https://engine
	user     string
	password string
	trust    *trust
	confirm  func(ctx context.Context, host, id string) error // nil takes any engine
	log      *slog.Logger
	http     *http.Client
	// Retries are the waits before a request that may be repeated is. They are set before the first request, if at all.
	Retries []time.Duration

	logins sync.Mutex // held while logging in, so that two callers do not log in twice

	mu     sync.Mutex
	token  string
	closed bool
}

// Config says which engine, and as whom.
type Config struct {
	Base     *url.URL // https://engine, without a path
	User     string   // as typed
	Password string
	Options  map[string]string // those of this package; others are not looked at
	Log      *slog.Logger
	// Confirm is asked at the beginning of each session with the engine's address and its id; its error ends the session before
	// anything else is asked in it. nil takes any engine.
	Confirm func(ctx context.Context, host, id string) error
}

// Open prepares a connection and reads the files that its options name; it does not connect. What is wrong with an option is an Invalid
// error with words for an admin. Close ends it.
func Open(cfg Config) (*Conn, error) {
	t, err := newTrust(cfg.Base, cfg.Options)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		TLSClientConfig: t.config(), TLSHandshakeTimeout: 20 * time.Second, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second, ResponseHeaderTimeout: 5 * time.Minute,
	}
	return &Conn{
		base: cfg.Base, user: cfg.User, password: cfg.Password, trust: t, confirm: cfg.Confirm, log: cfg.Log,
		http: &http.Client{
			Transport: transport,
			// A redirect would carry the token to wherever it points.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Retries: []time.Duration{250 * time.Millisecond, time.Second, 3 * time.Second},
	}, nil
}

// Request is one call of the API.
type Request struct {
	Op, Subject string // for errors: "create snapshot of VM", its name
	Method      string // GET when empty
	Path        string // below apiPath
	Query       url.Values
	Body        []byte
	Content     bool // ask for content that is left out otherwise: OVF documents
	// Repeat says that the call may be made again when it is not known whether it was carried out. GET always may.
	Repeat bool
	Wait   time.Duration // for the reply; 0 is two minutes
}

// Do makes a call and returns the document that answers it; a status of 300 or more is an error. A request that may be repeated is, when the
// engine cannot be reached or fails for a moment; a token that is not good any more is replaced once, for what was answered so was not
// carried out.
func (c *Conn) Do(ctx context.Context, r Request) ([]byte, error) {
	if r.Method == "" {
		r.Method = http.MethodGet
	}
	r.Repeat = r.Repeat || r.Method == http.MethodGet
	for attempt := 0; ; attempt++ {
		out, err := c.attempt(ctx, r)
		if err == nil || !r.Repeat || !fault.Retryable(err) || ctx.Err() != nil || attempt == len(c.Retries) {
			return out, err
		}
		c.log.DebugContext(ctx, "request is repeated", "op", r.Op, "attempt", attempt+1, "err", err)
		select {
		case <-time.After(c.Retries[attempt]):
		case <-ctx.Done():
			return nil, fault.Wrap(fault.KindOf(ctx.Err()), r.Op, r.Subject, ctx.Err())
		}
	}
}

func (c *Conn) attempt(ctx context.Context, r Request) ([]byte, error) {
	for again := false; ; again = true {
		token, err := c.Login(ctx)
		if err != nil {
			return nil, fault.Context(r.Op, r.Subject, err)
		}
		status, body, err := c.send(ctx, r, token)
		switch {
		case err != nil:
			return nil, c.unreachable(ctx, r.Op, r.Subject, err)
		case status == http.StatusUnauthorized && !again:
			c.forget(token)
		case status >= 300:
			return nil, refused(r, status, body)
		default:
			return body, nil
		}
	}
}

// send sends a request and reads its reply, whatever it is.
func (c *Conn) send(ctx context.Context, r Request, token string) (int, []byte, error) {
	wait := r.Wait
	if wait == 0 {
		wait = 2 * time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, wait, errNoReply)
	defer cancel()
	u := *c.base
	u.Path, u.RawQuery = apiPath+r.Path, r.Query.Encode()
	var body io.Reader
	if r.Body != nil {
		body = bytes.NewReader(r.Body)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, u.String(), body)
	if err != nil {
		return 0, nil, err
	}
	h := req.Header
	h.Set("Authorization", "Bearer "+token)
	h.Set("Version", "4")
	h.Set("Accept", "application/xml")
	if r.Body != nil {
		h.Set("Content-Type", "application/xml")
	}
	if r.Content {
		h.Set("All-Content", "true")
	}
	return c.exchange(req)
}

// exchange sends a request and reads its reply within bounds.
func (c *Conn) exchange(req *http.Request) (int, []byte, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		if cause := context.Cause(req.Context()); errors.Is(cause, errNoReply) {
			err = errNoReply
		}
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return 0, nil, err
	}
	if len(body) > maxReply {
		return 0, nil, fault.New(fault.Invalid, "read reply of the engine", "", "it is longer than %d bytes", maxReply)
	}
	return resp.StatusCode, body, nil
}

var errNoReply = errors.New("the engine did not answer in time")

// Login returns a token, a new one when there is none.
func (c *Conn) Login(ctx context.Context) (string, error) {
	if token, err := c.current(); token != "" || err != nil {
		return token, err
	}
	c.logins.Lock()
	defer c.logins.Unlock()
	if token, err := c.current(); token != "" || err != nil {
		return token, err
	}
	token, err := c.newToken(ctx)
	if err != nil {
		return "", err
	}
	if err := c.confirmed(ctx, token); err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.token = token
	}
	return token, nil
}

func (c *Conn) current() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return "", fault.New(fault.Conflict, "use connection", c.base.Host, "it is closed")
	}
	return c.token, nil
}

// forget drops a token that the engine does not take any more, unless another caller has replaced it already.
func (c *Conn) forget(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token == token {
		c.token = ""
	}
}

// Close logs out, as far as the engine lets it.
func (c *Conn) Close() error {
	c.mu.Lock()
	token := c.token
	c.token, c.closed = "", true
	c.mu.Unlock()
	if token == "" {
		c.http.CloseIdleConnections()
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := c.logout(ctx, token)
	c.http.CloseIdleConnections()
	return err
}

// Query makes url.Values of names and values in turn.
func Query(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return v
}
