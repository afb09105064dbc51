package ovirtsim

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// call is a request to the API. Its handler runs under the engine's lock.
type call struct {
	e           *Engine
	r           *http.Request // nil for a link that is followed
	path        string        // below the API's root
	vars        map[string]string
	query       url.Values
	body        *node
	user        *user
	correlation string
}

// reply is what a handler answers; a nil body is none.
type reply struct {
	status int
	body   *node
}

func ok(body *node) (*reply, error)      { return &reply{http.StatusOK, body}, nil }
func created(body *node) (*reply, error) { return &reply{http.StatusCreated, body}, nil }

// accepted answers an operation that goes on after the reply.
func accepted(body *node) (*reply, error) { return &reply{http.StatusAccepted, body}, nil }

// done answers an action.
func done(parts ...part) (*reply, error) {
	return ok(el("action", append(parts, txt("status", "complete"))...))
}

// gone answers a removal.
func gone() (*reply, error) { return &reply{http.StatusOK, nil}, nil }

type handler func(c *call) (*reply, error)

// route is one call of the API. What changes something needs a permit.
type route struct {
	method string
	parts  []string
	permit string
	do     handler
}

func get(path string, do handler) route { return route{http.MethodGet, split(path), "", do} }

func post(path, permit string, do handler) route {
	return route{http.MethodPost, split(path), permit, do}
}
func put(path, permit string, do handler) route {
	return route{http.MethodPut, split(path), permit, do}
}
func del(path, permit string, do handler) route {
	return route{http.MethodDelete, split(path), permit, do}
}

func (e *Engine) allRoutes() []route {
	return slices.Concat(
		rootRoutes(), dataCenterRoutes(), clusterRoutes(), hostRoutes(), domainRoutes(), networkRoutes(), macPoolRoutes(), userRoutes(),
		templateRoutes(), tagRoutes(), labelRoutes(), vmRoutes(), nicRoutes(), diskRoutes(), attachmentRoutes(), snapshotRoutes(), backupRoutes(),
		checkpointRoutes(), transferRoutes(), jobRoutes(), eventRoutes(),
	)
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// match finds the route of a path, which is below the API's root.
func (e *Engine) match(method, path string) (route, map[string]string, error) {
	parts := split(path)
	known := false
	for _, r := range e.routes {
		vars, fits := r.fits(parts)
		if !fits {
			continue
		}
		if r.method == method {
			return r, vars, nil
		}
		known = true
	}
	if known {
		return route{}, nil, refuse(http.StatusMethodNotAllowed, "Operation Failed", "%s is not allowed on %s", method, path)
	}
	return route{}, nil, refuse(http.StatusNotFound, "Operation Failed", "There is no %s", path)
}

func (r route) fits(parts []string) (map[string]string, bool) {
	if len(parts) != len(r.parts) {
		return nil, false
	}
	vars := map[string]string{}
	for i, p := range r.parts {
		switch name, isVar := strings.CutPrefix(p, ":"); {
		case isVar:
			vars[name] = parts[i]
		case p != parts[i]:
			return nil, false
		}
	}
	return vars, true
}

// front lets the behaviours of requests strike before a handler, and breaks the connection after one.
func (e *Engine) front(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name := r.Method + " " + strings.TrimPrefix(r.URL.Path, api)
		e.mu.Lock()
		restarts := e.strikes(EngineRestarts, name)
		if restarts {
			e.restart()
		}
		unavailable := !restarts && e.strikes(Unavailable, name)
		lost := !restarts && !unavailable && e.strikes(ReplyLost, name)
		e.mu.Unlock()
		switch {
		case restarts:
			e.dropConns()
			panic(http.ErrAbortHandler)
		case unavailable:
			writeHTML(w, http.StatusServiceUnavailable, "Service Unavailable")
		case lost:
			h(discard{http.Header{}}, r)
			panic(http.ErrAbortHandler)
		default:
			h(w, r)
		}
	}
}

// discard is a reply that nobody gets.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// serveAPI answers everything below /ovirt-engine/api.
func (e *Engine) serveAPI(w http.ResponseWriter, r *http.Request) {
	body, err := readBody(r)
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	u, token := e.authenticate(r)
	path := strings.TrimPrefix(r.URL.Path, api)
	if u != nil && e.strikes(SessionExpires, r.Method+" "+path) {
		delete(e.sessions, token)
		u = nil
	}
	if u == nil {
		e.mu.Unlock()
		unauthorized(w)
		return
	}
	c := &call{e: e, r: r, path: path, query: r.URL.Query(), body: body, user: u}
	rep, err := c.answer(err)
	e.mu.Unlock()
	if r.Method != http.MethodGet {
		w.Header().Set("Correlation-Id", c.correlation)
	}
	var no *refusal
	switch {
	case errors.As(err, &no):
		rep = &reply{no.status, no.node()}
	case err != nil:
		rep = &reply{http.StatusInternalServerError, (&refusal{reason: "Operation Failed", detail: err.Error()}).node()}
	}
	e.log.Debug("request", "method", r.Method, "path", r.URL.RequestURI(), "status", rep.status, "err", err)
	e.tellDone(r.Method, path, rep.status)
	if rep.body == nil {
		w.WriteHeader(rep.status)
		return
	}
	w.Header().Set("Content-Type", "application/xml;charset=UTF-8")
	w.WriteHeader(rep.status)
	_, _ = w.Write(rep.body.encode())
}

// answer runs the handler of a call whose body was read, or was not. The caller holds mu.
func (c *call) answer(bodyErr error) (*reply, error) {
	c.correlation = c.query.Get("correlation_id")
	if c.correlation == "" {
		c.correlation = c.r.Header.Get("Correlation-Id")
	}
	if c.correlation == "" {
		c.correlation = c.e.newID()
	}
	if c.e.strikes(InternalError, c.r.Method+" "+c.path) {
		return nil, refuse(http.StatusInternalServerError, "Operation Failed", "Internal Engine Error")
	}
	if err := c.checkHeaders(); err != nil {
		return nil, err
	}
	rt, vars, err := c.e.match(c.r.Method, c.path)
	if err != nil {
		return nil, err
	}
	if bodyErr != nil {
		return nil, bodyErr
	}
	if rt.permit != "" && !c.user.may(rt.permit) {
		return nil, refuse(http.StatusForbidden, "Operation Failed", "[User is not authorized to perform this action.]")
	}
	c.vars = vars
	rep, err := rt.do(c)
	if err == nil && rep.body != nil {
		err = c.follow(rep.body)
	}
	return rep, err
}

// correlationMax is how long an id may be.
const correlationMax = 50

func (c *call) checkHeaders() error {
	h := c.r.Header
	if v := h.Get("Version"); v != "" && v != "4" {
		return refuse(http.StatusNotFound, "Operation Failed", "Version %s of the API is not supported", v)
	}
	if a := h.Get("Accept"); a != "" && !strings.Contains(a, "application/xml") && !strings.Contains(a, "*/*") {
		return refuse(http.StatusNotAcceptable, "Operation Failed", "This simulator answers application/xml only")
	}
	if t := h.Get("Content-Type"); c.body != nil && !strings.HasPrefix(t, "application/xml") {
		return refuse(http.StatusUnsupportedMediaType, "Operation Failed", "This simulator takes application/xml only")
	}
	if len(c.correlation) > correlationMax {
		return badRequest("The correlation id is longer than %d characters", correlationMax)
	}
	return nil
}

// inner makes a call of a followed link.
func (c *call) inner(path string) (*node, error) {
	rt, vars, err := c.e.match(http.MethodGet, path)
	if err != nil {
		return nil, err
	}
	in := &call{e: c.e, path: path, vars: vars, query: url.Values{}, user: c.user}
	rep, err := rt.do(in)
	if err != nil {
		return nil, err
	}
	return rep.body, nil
}

// flag returns a parameter of the query that is true or false; so is a header of the same name with dashes.
func (c *call) flag(name string, absent bool) (bool, error) {
	s := c.query.Get(name)
	if s == "" && c.r != nil {
		s = c.r.Header.Get(strings.ReplaceAll(name, "_", "-"))
	}
	switch strings.ToLower(s) {
	case "":
		return absent, nil
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, badRequest("%s is neither true nor false", name)
}
