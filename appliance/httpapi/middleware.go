package httpapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/oklog/ulid/v2"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/internal/fault"
)

// asked is what the middleware found out about a request, for the handlers.
type asked struct {
	caller      identity.Caller
	source      string // address of the client
	fingerprint string // of method, path, query and body
}

type askedKey struct{}

func askedOf(ctx context.Context) asked {
	a, _ := ctx.Value(askedKey{}).(asked)
	return a
}

const requestIDKey = "request_id"

func requestID(c echo.Context) string {
	id, _ := c.Get(requestIDKey).(string)
	return id
}

// identify gives the request an id. That of a client is not taken over: ids are for our log.
func (s *Server) identify(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		id := "req_" + strings.ToLower(ulid.Make().String())
		c.Set(requestIDKey, id)
		c.Response().Header().Set(echo.HeaderXRequestID, id)
		takeTrace(c)
		return next(c)
	}
}

// logAccess writes a line for each answer. Queries are left out: they can hold names.
func (s *Server) logAccess(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		began := time.Now()
		if err := next(c); err != nil {
			c.Error(err)
		}
		r := c.Request()
		s.log.LogAttrs(r.Context(), slog.LevelDebug, "request", slog.String("request_id", requestID(c)), slog.String("trace_id", traceID(c)),
			slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", c.Response().Status),
			slog.Int64("bytes", c.Response().Size), slog.Duration("elapsed", time.Since(began)),
			slog.String("source", c.RealIP()), slog.String("user", askedOf(r.Context()).caller.User))
		if s.metrics != nil && c.Response().Header().Get(echo.HeaderContentType) != eventStreamType {
			s.measure(c, time.Since(began))
		}
		return nil
	}
}

// measure counts an answer. Routes that are not known are one: clients must not be able to make series.
func (s *Server) measure(c echo.Context, elapsed time.Duration) {
	method, route := c.Request().Method, c.Path()
	if key := method + " " + route; s.contract.operations[key] == nil && !pages[key] && key != metricsRoute {
		method, route = "other", ""
	}
	s.metrics.Request(method, route, c.Response().Status, elapsed)
}

// recoverPanic turns a panic into an Internal error, with its stack in the log only.
func (s *Server) recoverPanic(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			if v := recover(); v != nil && v != http.ErrAbortHandler {
				err = fault.New(fault.Internal, "panic", "", "%v\n%s", v, debug.Stack())
			} else if v != nil {
				panic(v)
			}
		}()
		return next(c)
	}
}

// secure sets headers that keep browsers from doing anything with an answer but showing it, and bounds the time a
// client may take to send its request and to read the answer. Recorders have no deadlines, and no slow clients: the
// error is that.
func (s *Server) secure(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		h := c.Response().Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Strict-Transport-Security", "max-age=31536000")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		control := http.NewResponseController(c.Response())
		_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
		c.Response().Before(func() { _ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) })
		return next(c)
	}
}

// authenticate lets nobody pass without a valid token but to the public operations and pages: what is not known to be
// public is not.
func (s *Server) authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		a := asked{source: c.RealIP()}
		key := c.Request().Method + " " + c.Path()
		if op := s.contract.operations[key]; !pages[key] && (op == nil || !op.public) {
			secret, ok := bearer(c.Request().Header)
			if !ok {
				r := reject(fault.Denied, http.StatusUnauthorized, "credentials", "no API token was sent")
				r.cause.Explain("Everything but set-up, login and health needs a token.",
					"Send the header Authorization: Bearer <token>.")
				return r
			}
			caller, err := s.identity.Authenticate(c.Request().Context(), secret)
			if err != nil {
				return unauthorized(err)
			}
			if caller.Scope == identity.ScopeMetrics && key != metricsRoute {
				r := reject(fault.Denied, 0, "scope", "this token is only good for /metrics")
				r.cause.Explain("It was made for a program that measures, and can do nothing else.", "Use another API token.")
				return r
			}
			a.caller = caller
		}
		c.SetRequest(c.Request().WithContext(context.WithValue(c.Request().Context(), askedKey{}, a)))
		return next(c)
	}
}

func bearer(h http.Header) (string, bool) {
	scheme, secret, ok := strings.Cut(h.Get(echo.HeaderAuthorization), " ")
	return secret, ok && strings.EqualFold(scheme, "bearer") && secret != ""
}

// unauthorized makes wrong credentials a 401, as HTTP has it; Denied alone is a 403.
func unauthorized(err error) error {
	if !errors.Is(err, identity.ErrCredentials) {
		return err
	}
	meaning, advice := fault.Explanation(err)
	r := reject(fault.Denied, http.StatusUnauthorized, "credentials", err.Error())
	r.cause.Explain(meaning, advice)
	return r
}

// conform checks the request against the document and hands the handler a body it can trust.
func (s *Server) conform(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		op := s.contract.operations[r.Method+" "+c.Path()]
		if op == nil {
			return next(c)
		}
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			return reject(fault.Invalid, http.StatusBadRequest, "query", "the query cannot be parsed")
		}
		if err := op.checkParams(query, r.Header); err != nil {
			return err
		}
		body, err := readBody(c)
		if err != nil {
			return err
		}
		canonical, err := op.accept(r.Header, body)
		if err != nil {
			return err
		}
		a := askedOf(r.Context())
		a.fingerprint = fingerprint(r, query, canonical)
		r = r.WithContext(context.WithValue(r.Context(), askedKey{}, a))
		r.Body = io.NopCloser(bytes.NewReader(canonical))
		c.SetRequest(r)
		return next(c)
	}
}

// readBody reads the whole body, which may not be large, and lifts the deadline for reading: from here on the
// connection is only watched for the client going away.
func readBody(c echo.Context) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(c.Response(), c.Request().Body, maxBodyBytes))
	_ = http.NewResponseController(c.Response()).SetReadDeadline(time.Time{}) // see secure
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, reject(fault.Invalid, http.StatusRequestEntityTooLarge, "too-large",
			fmt.Sprintf("the body is larger than %d bytes", maxBodyBytes))
	}
	if err != nil {
		return nil, reject(fault.Invalid, http.StatusBadRequest, "json", "the body could not be read")
	}
	return body, nil
}

// accept checks the body against the operation.
func (o *operation) accept(header http.Header, body []byte) ([]byte, error) {
	if o.body == nil {
		if len(body) > 0 {
			return nil, reject(fault.Invalid, http.StatusBadRequest, "body", "this call takes no body")
		}
		return nil, nil
	}
	media, _, err := mime.ParseMediaType(header.Get(echo.HeaderContentType))
	if err != nil || media != echo.MIMEApplicationJSON {
		return nil, reject(fault.Invalid, http.StatusUnsupportedMediaType, "media-type", "the body must be application/json")
	}
	return o.checkBody(body)
}

func fingerprint(r *http.Request, query url.Values, body []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n", r.Method, r.URL.Path, query.Encode())
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}

// jsonBinder decodes a body that conform has checked. What it still refuses is a number that fits the document but
// not the Go type.
type jsonBinder struct{}

// Bind decodes the body and nothing else into v.
func (jsonBinder) Bind(v any, c echo.Context) error {
	d := json.NewDecoder(c.Request().Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		at := "#/" + strings.ReplaceAll(wrong.Field, ".", "/")
		r := reject(fault.Invalid, 0, "body", at+": it does not fit "+wrong.Type.String())
		r.fields = []server.ProblemField{{Pointer: at, Detail: "it does not fit " + wrong.Type.String()}}
		return r
	}
	if err != nil {
		return reject(fault.Invalid, http.StatusBadRequest, "json", "the body cannot be decoded")
	}
	return nil
}
