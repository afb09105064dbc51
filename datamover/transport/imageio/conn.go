package imageiotransport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Bounds of what a daemon may send.
const (
	maxHead = 64 << 10 // of an answer: status line and headers
	maxText = 4 << 10  // of an error's text that is kept
)

// conn is one HTTP/1.1 connection. One exchange at a time.
type conn struct {
	stream  *stream
	in      *bufio.Reader
	host    string // for the Host header
	born    int64  // by the link's clock
	answers int    // that came on it
	broken  bool   // it cannot be used again
}

// stream ends a connection on which nothing moves.
type stream struct {
	net.Conn
	stall time.Duration // per read and write
	left  int64         // of the head that is being read; negative without a bound
}

var errHeadTooLong = fmt.Errorf("the head of the answer is longer than %d bytes", maxHead)

func (s *stream) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, errHeadTooLong
	}
	if s.left > 0 {
		p = p[:min(int64(len(p)), s.left)]
	}
	_ = s.SetReadDeadline(time.Now().Add(s.stall))
	n, err := s.Conn.Read(p)
	if s.left > 0 {
		s.left -= int64(n)
	}
	return n, err
}

func (s *stream) Write(p []byte) (int, error) {
	const step = 256 << 10 // a slow link must get one through within the limit
	done := 0
	for done < len(p) {
		_ = s.SetWriteDeadline(time.Now().Add(s.stall))
		n, err := s.Conn.Write(p[done:min(len(p), done+step)])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func newConn(nc net.Conn, host string, born int64) *conn {
	s := &stream{Conn: nc, left: -1}
	return &conn{stream: s, in: bufio.NewReaderSize(s, 64<<10), host: host, born: born}
}

// call is one request.
type call struct {
	method, path string
	header       string // lines, each with its end
	body         []byte
	stall        time.Duration // how long the daemon may keep silent
}

// lostError is a connection that broke: what became of the request is not known.
type lostError struct{ err error }

func (e *lostError) Error() string { return "connection lost: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// statusError is an answer other than the one hoped for.
type statusError struct {
	code int
	text string // as the daemon sent it, without tickets
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%d %s: %s", e.code, http.StatusText(e.code), e.text)
}

// exchange sends a request and hands the answer's body to fn if its status is among the wanted ones. fn need not read all of it,
// but what it leaves costs the connection. When ctx ends the connection breaks.
func (c *conn) exchange(ctx context.Context, req call, fn func(r *http.Response) error, want ...int) error {
	stop := context.AfterFunc(ctx, func() { _ = c.stream.Close() })
	err := c.roundTrip(req, fn, want)
	if !stop() {
		c.broken = true
		if err == nil {
			return nil // it was answered before
		}
		return ctx.Err()
	}
	return err
}

func (c *conn) roundTrip(req call, fn func(r *http.Response) error, want []int) error {
	c.stream.stall = req.stall
	head := req.method + " " + req.path + " HTTP/1.1\r\nHost: " + c.host + "\r\n" + req.header
	if req.body != nil {
		head += "Content-Length: " + strconv.Itoa(len(req.body)) + "\r\n"
	}
	_, sent := c.stream.Write([]byte(head + "\r\n"))
	if sent == nil && len(req.body) > 0 {
		_, sent = c.stream.Write(req.body)
	}
	// Also when not all could be sent: the daemon may have said why before it hung up.
	resp, err := c.answer(req.method)
	if err != nil {
		c.broken = true
		if sent != nil {
			err = sent
		}
		return &lostError{err}
	}
	resp.Body = body{resp.Body}
	c.answers++
	c.broken = resp.Close || sent != nil
	for _, code := range want {
		if resp.StatusCode == code {
			return c.rest(resp, fn(resp))
		}
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxText))
	if err != nil {
		c.broken = true
	}
	return c.rest(resp, &statusError{resp.StatusCode, string(text)})
}

// answer reads heads until a final one comes.
func (c *conn) answer(method string) (*http.Response, error) {
	for range 10 {
		c.stream.left = maxHead
		resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
		c.stream.left = -1
		if err != nil || resp.StatusCode >= 200 {
			return resp, err
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	return nil, errors.New("no final answer")
}

// body is an answer's body; an error under way is the connection's.
type body struct{ io.ReadCloser }

func (b body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // a body's own end
		err = &lostError{err}
	}
	return n, err
}

// rest looks that nothing of an answer is left, for the next one begins behind it.
func (c *conn) rest(resp *http.Response, err error) error {
	var one [1]byte
	if n, end := resp.Body.Read(one[:]); n > 0 || end != io.EOF { //nolint:errorlint // a body's own end
		c.broken = true
	}
	return err
}

func (c *conn) close() { _ = c.stream.Close() }
