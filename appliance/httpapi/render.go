package httpapi

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/identity"
)

// renderError answers with a problem. It is the echo instance's error handler, the only place errors become answers.
func (s *Server) renderError(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	p := problemOf(err)
	p.Instance, p.RequestID, p.TraceID = c.Request().URL.EscapedPath(), requestID(c), traceID(c)
	h := c.Response().Header()
	switch p.Status {
	case http.StatusUnauthorized:
		h.Set(echo.HeaderWWWAuthenticate, `Bearer realm="cairn"`)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		wait := retryAfter
		if t, ok := errors.AsType[*identity.Throttled](err); ok {
			wait = t.Wait
		}
		if t, ok := errors.AsType[*tooMany](err); ok {
			wait = t.wait
		}
		h.Set(echo.HeaderRetryAfter, strconv.Itoa(int(wait.Seconds())+1))
	}
	s.logProblem(c, err, p)
	body, err := json.Marshal(p)
	if err == nil {
		err = c.Blob(p.Status, problemType, body)
	}
	if err != nil {
		s.log.DebugContext(c.Request().Context(), "answer not written", "request_id", p.RequestID, "err", err)
	}
}

// logProblem logs what is our own fault or damage: nobody else sees its text.
func (s *Server) logProblem(c echo.Context, err error, p server.Problem) {
	kind := strings.Split(strings.TrimPrefix(p.Type, problemPath), "/")[0]
	if p.Status == http.StatusInternalServerError {
		s.log.LogAttrs(c.Request().Context(), slog.LevelError, "request failed", slog.String("request_id", p.RequestID),
			slog.String("kind", kind), slog.String("trace_id", p.TraceID), slog.Any("err", err))
	}
}
