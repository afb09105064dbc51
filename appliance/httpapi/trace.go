package httpapi

import (
	"regexp"
	"strings"

	"github.com/labstack/echo/v4"
)

const (
	headerTrace = "Traceparent"
	traceKey    = "trace_id"
)

// traceparent is a header of W3C Trace Context: version, trace, span, flags.
var traceparent = regexp.MustCompile(`^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$`)

// takeTrace takes a request's traceparent over and sends it back; one that is none is ignored, as the specification wants it.
func takeTrace(c echo.Context) {
	given := c.Request().Header.Get(headerTrace)
	part := traceparent.FindStringSubmatch(given)
	if part == nil || part[1] == "ff" || strings.Trim(part[2], "0") == "" || strings.Trim(part[3], "0") == "" {
		return
	}
	c.Set(traceKey, part[2])
	c.Response().Header().Set(headerTrace, given)
}

// traceID is of the request's traceparent, "" without one.
func traceID(c echo.Context) string {
	id, _ := c.Get(traceKey).(string)
	return id
}
