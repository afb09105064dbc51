package imageio

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// httpError is an answer that is no success.
type httpError struct {
	code         int
	text         string
	contentRange string
	hangUp       bool
}

func (e *httpError) Error() string { return e.text }

func status(code int, format string, args ...any) *httpError {
	return &httpError{code: code, text: fmt.Sprintf(format, args...)}
}

// request is one under way.
type request struct {
	http.ResponseWriter
	*http.Request
	server *Server
	ticket *ticket
	sent   bool // the head of the answer
	unread bool // the body of a PUT, which nobody will read after an error
	limit  int  // bytes of the answer's body before the connection breaks; negative is none
}

var errBroken = errors.New("the connection was broken")

// handle answers one request.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	req := &request{ResponseWriter: w, Request: r, server: s, limit: -1}
	if i := s.due(r); i != nil && !req.spoil(i.fault) {
		return
	}
	err := req.dispatch()
	if err == nil {
		return
	}
	if errors.Is(err, errBroken) {
		panic(http.ErrAbortHandler)
	}
	req.fail(err)
}

// spoil lets a fault happen; false if nothing more is to be done.
func (r *request) spoil(f Fault) bool {
	if f.Do != nil {
		f.Do()
	}
	switch {
	case f.Crash:
		r.server.Crash()
		panic(http.ErrAbortHandler)
	case f.Drop:
		panic(http.ErrAbortHandler)
	case f.DropAfter > 0:
		r.limit = f.DropAfter
	case f.Forget:
		r.limit = 0
	case f.Status > 0:
		r.fail(injected(f.Status))
		return false
	}
	return true
}

func injected(code int) error {
	switch code {
	case http.StatusForbidden:
		return refusal("Transfer=injected expired")
	case http.StatusInternalServerError:
		return errors.New("injected")
	}
	return status(code, "injected")
}

// fail answers with an error. Those of tickets end the connection.
func (r *request) fail(err error) {
	var h *httpError
	if refused, ok := errors.AsType[refusal](err); ok {
		h = status(http.StatusForbidden, "You are not allowed to access this resource: %s", refused)
		h.hangUp = true
	} else if he, ok := errors.AsType[*httpError](err); ok {
		h = he
	} else {
		h = status(http.StatusInternalServerError, "Server failed to perform the request, check logs")
	}
	if h.contentRange != "" {
		r.Header().Set("Content-Range", h.contentRange)
	}
	if h.hangUp || r.unread {
		r.Header().Set("Connection", "close")
	}
	r.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	r.WriteHeader(h.code)
	_, _ = io.WriteString(r.ResponseWriter, h.text+"\n")
}

func (r *request) Header() http.Header { return r.ResponseWriter.Header() }

// dispatch finds who is to answer.
func (r *request) dispatch() error {
	rest, ok := strings.CutPrefix(r.URL.Path, "/images/")
	if r.URL.Path == "/info/" || r.URL.Path == "/info" {
		return r.only(http.MethodGet, func() error { return r.json(map[string]string{"version": "2.5.3"}) })
	}
	id, sub, _ := strings.Cut(rest, "/")
	if !ok || id == "" {
		return status(http.StatusNotFound, "Not found: %q", r.URL.Path)
	}
	switch sub {
	case "":
	case "extents":
		return r.only(http.MethodGet, func() error { return r.extents(id) })
	case "checksum":
		return r.only(http.MethodGet, func() error { return r.checksum(id) })
	case "checksum/algorithms":
		return r.only(http.MethodGet, func() error { return r.json(map[string][]string{"algorithms": {"blake2b"}}) })
	default:
		id = rest // the daemon takes all of it for a ticket
	}
	r.server.count(r.Method)
	switch r.Method {
	case http.MethodOptions:
		return r.options(id)
	case http.MethodGet:
		return r.get(id)
	case http.MethodPut:
		return r.put(id)
	case http.MethodPatch:
		return r.patch(id)
	}
	return status(http.StatusMethodNotAllowed, "Invalid method %q for this resource", r.Method)
}

func (r *request) only(method string, fn func() error) error {
	if r.Method != method {
		return status(http.StatusMethodNotAllowed, "Invalid method %q for this resource", r.Method)
	}
	return fn()
}

// authorize finds the ticket and looks what it allows.
func (r *request) authorize(id string, writing bool) error {
	t := r.server.find(id)
	if t == nil {
		return refusal("No such ticket " + id)
	}
	if err := t.may(writing); err != nil {
		return err
	}
	r.ticket = t
	if c := connOf(r.Request); c != nil {
		c.allow(t.InactivityTimeout)
	}
	return nil
}

// json answers with a value.
func (r *request) json(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	r.Header().Set("Content-Type", "application/json")
	return r.send(b)
}

// send writes a part of the answer's body, up to where it is to break.
func (r *request) send(p []byte) error {
	if r.limit >= 0 && r.limit <= len(p) {
		_, _ = r.Write(p[:r.limit])
		if f, ok := r.ResponseWriter.(http.Flusher); ok && r.limit > 0 {
			f.Flush()
		}
		return errBroken
	}
	if r.limit >= 0 {
		r.limit -= len(p)
	}
	_, err := r.Write(p)
	if err != nil {
		return errBroken
	}
	return nil
}

func (r *request) Write(p []byte) (int, error) { return r.ResponseWriter.Write(p) }

func (r *request) options(id string) error {
	o := map[string]any{}
	if path := r.server.options.UnixSocket; path != "" {
		o["unix_socket"] = path
	}
	if id == "*" {
		r.Header().Set("Allow", "OPTIONS,GET,PUT,PATCH")
		o["features"] = []string{"checksum", "extents", "flush", "zero"}
		return r.json(o)
	}
	if err := r.authorize(id, false); err != nil {
		return err
	}
	r.ticket.touch()
	allow, features := "OPTIONS,GET", []string{"checksum", "extents"}
	if r.ticket.Write {
		allow += ",PUT,PATCH"
		features = append(features, "flush", "zero")
	}
	o["features"] = features
	o["max_readers"], o["max_writers"] = r.ticket.Backend.Limits()
	r.Header().Set("Allow", allow)
	return r.json(o)
}

func (r *request) extents(id string) error {
	r.server.count("extents")
	if err := r.authorize(id, false); err != nil {
		return err
	}
	dirty := false
	switch c := r.URL.Query().Get("context"); c {
	case "", "zero":
	case "dirty":
		dirty = true
	default:
		return status(http.StatusBadRequest, "Unsupported value '%s' for 'context', expecting one of ['dirty', 'zero']", c)
	}
	if dirty && !r.ticket.Dirty {
		return status(http.StatusNotFound, "Ticket does not support dirty extents")
	}
	list, err := r.ticket.Backend.Extents(r.Context(), dirty)
	if errors.Is(err, errors.ErrUnsupported) {
		return status(http.StatusNotFound, "%s", err)
	}
	if err != nil {
		return err
	}
	return r.json(list)
}
