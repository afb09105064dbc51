package ovirt

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

// conn makes requests to one engine, with a token that it fetches when it needs one. Its methods may be called from
// several goroutines.
type conn struct {
	base     *url.URL // https://engine
	user     string
	password string
	trust    *trust
	log      *slog.Logger
	http     *http.Client
	// retries are the waits before a request that may be repeated is.
	retries []time.Duration

	logins sync.Mutex // held while logging in, so that two callers do not log in twice

	mu     sync.Mutex
	token  string
	closed bool
}

func newConn(base *url.URL, user, password string, t *trust, log *slog.Logger) *conn {
	transport := &http.Transport{
		TLSClientConfig: t.config(), TLSHandshakeTimeout: 20 * time.Second, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second, ResponseHeaderTimeout: 5 * time.Minute,
	}
	return &conn{
		base: base, user: user, password: password, trust: t, log: log,
		http: &http.Client{
			Transport: transport,
			// A redirect would carry the token to wherever it points.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		retries: []time.Duration{250 * time.Millisecond, time.Second, 3 * time.Second},
	}
}

// request is one call of the API.
type request struct {
	op, subject string // for errors: "create snapshot of VM", its name
	method      string // GET when empty
	path        string // below apiPath
	query       url.Values
	body        []byte
	content     bool // ask for content that is left out otherwise: OVF documents
	// repeat says that the call may be made again when it is not known whether it was carried out. GET always may.
	repeat bool
	wait   time.Duration // for the reply; 0 is two minutes
}

// reply is what the engine answered with a status below 300.
type reply struct {
	status int
	body   []byte
}

// do makes a call. A request that may be repeated is, when the engine cannot be reached or fails for a moment; a token
// that is not good any more is replaced once, for what was answered so was not carried out.
func (c *conn) do(ctx context.Context, r request) (reply, error) {
	if r.method == "" {
		r.method = http.MethodGet
	}
	r.repeat = r.repeat || r.method == http.MethodGet
	for attempt := 0; ; attempt++ {
		out, err := c.attempt(ctx, r)
		if err == nil || !r.repeat || !fault.Retryable(err) || ctx.Err() != nil || attempt == len(c.retries) {
			return out, err
		}
		c.log.DebugContext(ctx, "request is repeated", "op", r.op, "attempt", attempt+1, "err", err)
		select {
		case <-time.After(c.retries[attempt]):
		case <-ctx.Done():
			return reply{}, fault.Wrap(fault.KindOf(ctx.Err()), r.op, r.subject, ctx.Err())
		}
	}
}

func (c *conn) attempt(ctx context.Context, r request) (reply, error) {
	for again := false; ; again = true {
		token, err := c.login(ctx)
		if err != nil {
			return reply{}, fault.Context(r.op, r.subject, err)
		}
		status, body, err := c.send(ctx, r, token)
		switch {
		case err != nil:
			return reply{}, c.unreachable(ctx, r.op, r.subject, err)
		case status == http.StatusUnauthorized && !again:
			c.forget(token)
		case status >= 300:
			return reply{}, refused(r, status, body)
		default:
			return reply{status, body}, nil
		}
	}
}

// send sends a request and reads its reply, whatever it is.
func (c *conn) send(ctx context.Context, r request, token string) (int, []byte, error) {
	wait := r.wait
	if wait == 0 {
		wait = 2 * time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, wait, errNoReply)
	defer cancel()
	u := *c.base
	u.Path, u.RawQuery = apiPath+r.path, r.query.Encode()
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return 0, nil, err
	}
	h := req.Header
	h.Set("Authorization", "Bearer "+token)
	h.Set("Version", "4")
	h.Set("Accept", "application/xml")
	if r.body != nil {
		h.Set("Content-Type", "application/xml")
	}
	if r.content {
		h.Set("All-Content", "true")
	}
	return c.exchange(req)
}

// exchange sends a request and reads its reply within bounds.
func (c *conn) exchange(req *http.Request) (int, []byte, error) {
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

// login returns a token, a new one when there is none.
func (c *conn) login(ctx context.Context) (string, error) {
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
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.token = token
	}
	return token, nil
}

func (c *conn) current() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return "", fault.New(fault.Conflict, "use connection", c.base.Host, "it is closed")
	}
	return c.token, nil
}

// forget drops a token that the engine does not take any more, unless another caller has replaced it already.
func (c *conn) forget(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token == token {
		c.token = ""
	}
}

// close logs out, as far as the engine lets it.
func (c *conn) close() error {
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

// query makes url.Values of names and values in turn.
func query(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return v
}
