package httpapi

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"

	"github.com/labstack/echo/v4"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Elsewhere is an error about something that another manager on the same database has to do. A request that meets it is
// passed on to that one.
type Elsewhere struct {
	Address string // of its API
	Err     error  // for who cannot be passed on
}

// Error is that of who cannot be passed on.
func (e *Elsewhere) Error() string { return e.Err.Error() }

// Unwrap returns it.
func (e *Elsewhere) Unwrap() error { return e.Err }

// forwarded marks a request that came from another manager. It is passed on once: who owns what may change meanwhile, and two
// managers must not pass a request to and fro.
const forwarded = "Cairn-Forwarded"

// forward passes a request on to the manager that can answer it. It has been checked, and its body is in memory.
func (s *Server) forward(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if s.peers == nil || c.Request().Header.Get(forwarded) != "" {
			return next(c)
		}
		r := c.Request()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return reject(fault.Invalid, http.StatusBadRequest, "json", "the body could not be read")
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		err = next(c)
		e, ok := errors.AsType[*Elsewhere](err)
		if !ok || e.Address == "" || c.Response().Committed {
			return err
		}
		target, parseErr := url.Parse(e.Address)
		if parseErr != nil {
			return err
		}
		return s.pass(c, target, body)
	}
}

func (s *Server) pass(c echo.Context, target *url.URL, body []byte) (err error) {
	proxy := httputil.ReverseProxy{
		Transport: s.peers,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Header.Set(forwarded, "1")
		},
		ModifyResponse: func(r *http.Response) error { // what this manager says of itself gives way
			for name := range r.Header {
				c.Response().Header().Del(name)
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, cause error) {
			err = fault.Wrap(fault.Transient, "pass request on", target.Host, cause).Explain(
				"Another manager works with this repository, and cannot be reached from this one.",
				"Try again. If it stays away, its repositories become another manager's within a minute.")
		},
		ErrorLog: nil,
	}
	r := c.Request()
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	proxy.ServeHTTP(c.Response(), r)
	return err
}
