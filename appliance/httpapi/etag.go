package httpapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash/fnv"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/labstack/echo/v4"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/internal/fault"
)

// This file holds ETags and what depends on them. An ETag has two parts, "kept.all": a hash of the answer without what
// changes by itself, and one of all of it. If-None-Match looks at both, If-Match at the first.

const (
	headerETag        = "ETag"
	headerIfMatch     = "If-Match"
	headerIfNoneMatch = "If-None-Match"
)

// tag gives answers to GET their ETag, answers 304 where the client has them already, and leaves out what `fields` does
// not name.
func (s *Server) tag(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		op := s.contract.operations[c.Request().Method+" "+c.Path()]
		if op == nil || op.answer == "" || c.Request().Method != http.MethodGet {
			return next(c)
		}
		fields, err := op.fields(c.QueryParam("fields"))
		if err != nil {
			return err
		}
		if op.members != nil && wantsLines(c.Request().Header.Values(echo.HeaderAccept)) {
			return s.lines(c, op, fields)
		}
		h, err := hold(c, next)
		if err != nil || c.Response().Status != http.StatusOK {
			return sendUnless(err, c, h)
		}
		if fields != nil {
			if err := h.only(fields); err != nil {
				return err
			}
		}
		etag, err := s.contract.etag(h.body.Bytes(), op.answer)
		if err != nil {
			return err
		}
		c.Response().Header().Set(headerETag, etag)
		if matches(c.Request().Header.Values(headerIfNoneMatch), etag, false) {
			h.status = http.StatusNotModified
		}
		return h.send(c)
	}
}

func sendUnless(err error, c echo.Context, h *held) error {
	if err != nil {
		c.Response().Committed = false // what was written was held, and is dropped
		return err
	}
	return h.send(c)
}

// etag makes the tag of an answer whose schema is at a pointer into the document.
func (c *contract) etag(body []byte, schema string) (string, error) {
	all := sha256.Sum256(body)
	kept := all
	if c.volatile(schema) {
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			return "", err
		}
		rest, err := json.Marshal(c.settle(v, schema))
		if err != nil {
			return "", err
		}
		kept = sha256.Sum256(rest)
	}
	return `"` + hex.EncodeToString(kept[:10]) + "." + hex.EncodeToString(all[:10]) + `"`, nil
}

// volatile reports whether a schema has members that change by themselves, itself or one of its members.
func (c *contract) volatile(at string) bool {
	o := c.object(at)
	if o["x-volatile"] != nil {
		return true
	}
	for name := range c.object(at + "/properties") {
		member := c.resolve(at + "/properties/" + escapePointer(name))
		if c.object(member)["x-volatile"] != nil {
			return true
		}
	}
	return false
}

// settle leaves out of an answer what changes by itself.
func (c *contract) settle(v any, at string) any {
	at = c.resolve(at)
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = c.settle(v[i], at+"/items")
		}
	case map[string]any:
		volatile, _ := c.object(at)["x-volatile"].([]any)
		for name := range v {
			if slices.Contains(volatile, any(name)) {
				delete(v, name)
				continue
			}
			v[name] = c.settle(v[name], at+"/properties/"+escapePointer(name))
		}
	}
	return v
}

// matches compares a tag with those of a header; "*" is any.
func matches(header []string, etag string, kept bool) bool {
	for _, line := range header {
		for _, given := range strings.Split(line, ",") {
			given = strings.TrimSpace(given)
			if given == "*" {
				return true
			}
			if kept && keptPart(given) == keptPart(etag) || !kept && strings.TrimPrefix(given, "W/") == etag {
				return true
			}
		}
	}
	return false
}

// keptPart is the part of a tag that If-Match looks at; of a weak one, which If-Match must not take, all.
func keptPart(etag string) string {
	kept, _, ok := strings.Cut(etag, ".")
	if !ok || !strings.HasPrefix(etag, `"`) || !strings.HasSuffix(etag, `"`) {
		return etag
	}
	return kept
}

// changes lets one request at a time change a thing, so that nothing comes between the look at its ETag and the change. What other
// processes do is kept away by Options.Changes.
type changes [64]sync.Mutex

func (m *changes) of(path string) *sync.Mutex {
	h := fnv.New32a()
	_, _ = h.Write([]byte(path)) // never fails
	return &m[h.Sum32()%uint32(len(m))]
}

// guard keeps a client from changing something that is not what it has seen.
func (s *Server) guard(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		op := s.contract.operations[r.Method+" "+c.Path()]
		if op == nil || op.params[headerIfMatch].in != "header" {
			return next(c)
		}
		wanted := r.Header.Values(headerIfMatch)
		if strings.Join(wanted, "") == "" {
			e := reject(fault.Invalid, http.StatusPreconditionRequired, "if-match", "no If-Match was sent")
			e.cause.Explain("What changes or deletes something must say what it has seen of it, so that nobody undoes what another one did.",
				"Read it, and send its ETag in If-Match; or send If-Match: * to do it whatever it is now.")
			e.fields = []server.ProblemField{{Parameter: headerIfMatch, Detail: "it is missing"}}
			return e
		}
		m := s.changes.of(r.URL.Path)
		m.Lock()
		defer m.Unlock()
		if s.others != nil {
			unlock, err := s.others.LockChange(r.Context(), r.URL.Path)
			if err != nil {
				return err
			}
			defer unlock()
		}
		etag, err := s.present(c)
		if err != nil {
			return err
		}
		if !matches(wanted, etag, true) {
			c.Response().Header().Set(headerETag, etag)
			e := reject(fault.Conflict, http.StatusPreconditionFailed, "changed", "it is not what it was any more")
			e.cause.Explain("Somebody has changed it since it was read.", "Read it again, look whether the change is still wanted, and send the new ETag.")
			return e
		}
		return next(c)
	}
}

// present asks the server's own GET for what a request is about, and returns its tag.
func (s *Server) present(c echo.Context) (string, error) {
	answer, op, err := s.ask(c, c.Request().URL.RawQuery)
	if err != nil {
		return "", err
	}
	return s.contract.etag(answer.body.Bytes(), op.answer)
}

// ask asks the server's own GET on a request's path.
func (s *Server) ask(c echo.Context, query string) (*unsent, *operation, error) {
	r := c.Request().Clone(c.Request().Context())
	r.Method, r.Body, r.ContentLength = http.MethodGet, http.NoBody, 0
	r.URL.RawQuery = query
	answer := &unsent{header: http.Header{}}
	get := s.echo.NewContext(r, answer)
	s.echo.Router().Find(r.Method, echo.GetPath(r), get)
	op := s.contract.operations[r.Method+" "+get.Path()]
	if op == nil {
		return nil, nil, fault.New(fault.Internal, "look at", r.URL.Path, "it cannot be read")
	}
	return answer, op, get.Handler()(get)
}

// unsent is an answer that nobody gets.
type unsent struct {
	header http.Header
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (u *unsent) Header() http.Header { return u.header }

// WriteHeader implements http.ResponseWriter.
func (u *unsent) WriteHeader(int) {}

// Write implements http.ResponseWriter.
func (u *unsent) Write(b []byte) (int, error) { return u.body.Write(b) }
