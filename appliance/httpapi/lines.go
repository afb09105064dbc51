package httpapi

import (
	"bytes"
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/cairn-backup/cairn/appliance/catalog"
)

// linesType is that of lists as lines of JSON, one an item.
const linesType = "application/x-ndjson"

// wantsLines reports whether a client prefers lines to a document, by RFC 9110, 12.5.1: a range such as */* is no wish for lines.
func wantsLines(accept []string) bool {
	lines, document := 0.0, 0.0
	for _, part := range strings.Split(strings.Join(accept, ","), ",") {
		media, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		quality := 1.0
		if text, ok := params["q"]; ok {
			if quality, err = strconv.ParseFloat(text, 64); err != nil {
				continue
			}
		}
		switch media {
		case linesType:
			lines = quality
		case echo.MIMEApplicationJSON:
			document = quality
		}
	}
	return lines > 0 && lines >= document
}

// lines answers with the items of a list, one a line: all of them, read page by page while they are sent, or with `limit` those of one
// page, with the next one in the header Link. Something that fails after the begin cuts the answer off, so that nobody takes it for whole.
func (s *Server) lines(c echo.Context, op *operation, fields map[string]bool) error {
	r := c.Request()
	query, h := r.URL.Query(), c.Response().Header()
	_, paged := op.params["limit"]
	all := paged && query.Get("limit") == ""
	if all {
		query.Set("limit", strconv.Itoa(catalog.MaxLimit))
	}
	query.Del("include_total")
	h.Add(echo.HeaderVary, echo.HeaderAccept)
	out := &eventWriter{w: c.Response(), control: http.NewResponseController(c.Response())}
	for first := true; ; first = false {
		text, next, err := s.page(c, query, fields)
		if err != nil && !first {
			s.log.WarnContext(r.Context(), "list was cut off", "request_id", requestID(c), "err", err)
			panic(http.ErrAbortHandler)
		}
		if err != nil {
			return err
		}
		query.Set("page_token", next)
		if first {
			h.Set(echo.HeaderContentType, linesType)
			if next != "" && !all {
				h.Set("Link", "<"+(&url.URL{Path: r.URL.Path, RawQuery: query.Encode()}).String()+`>; rel="next"`)
			}
			c.Response().WriteHeader(http.StatusOK)
		}
		if out.write(text) != nil || next == "" || !all {
			return nil // the client is gone, or has all
		}
	}
}

// page asks the server's own list for a page, and returns its items as lines.
func (s *Server) page(c echo.Context, query url.Values, fields map[string]bool) (lines []byte, next string, err error) {
	answer, _, err := s.ask(c, query.Encode())
	if err != nil {
		return nil, "", err
	}
	h := held{body: answer.body}
	if fields != nil {
		if err := h.only(fields); err != nil {
			return nil, "", err
		}
	}
	var list struct {
		Items []json.RawMessage `json:"items"`
		Next  string            `json:"next"`
	}
	if err := json.Unmarshal(h.body.Bytes(), &list); err != nil {
		return nil, "", err
	}
	var out bytes.Buffer
	for _, item := range list.Items {
		if err := json.Compact(&out, item); err != nil {
			return nil, "", err
		}
		out.WriteByte('\n')
	}
	return out.Bytes(), list.Next, nil
}
