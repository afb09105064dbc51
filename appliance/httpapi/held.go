package httpapi

import (
	"bytes"
	"net/http"

	"github.com/labstack/echo/v4"
)

// held is an answer that is kept back, so that it can be looked at before it is sent.
type held struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

// WriteHeader keeps the status.
func (h *held) WriteHeader(status int) { h.status = status }

// Write keeps the bytes.
func (h *held) Write(b []byte) (int, error) { return h.body.Write(b) }

// Unwrap is for http.ResponseController.
func (h *held) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// hold runs a handler and keeps its answer; its headers are set already. When the handler fails nothing is kept.
func hold(c echo.Context, next echo.HandlerFunc) (*held, error) {
	r := c.Response()
	h := &held{ResponseWriter: r.Writer, status: http.StatusOK}
	r.Writer = h
	defer func() { r.Writer = h.ResponseWriter }()
	return h, next(c)
}

// send sends an answer that was held.
func (h *held) send(c echo.Context) error {
	r := c.Response()
	if h.status == http.StatusNotModified {
		h.body.Reset()
		r.Header().Del(echo.HeaderContentType)
		r.Header().Del(echo.HeaderContentLength)
	}
	r.Status, r.Size, r.Committed = h.status, int64(h.body.Len()), true
	r.Writer.WriteHeader(h.status)
	_, err := r.Writer.Write(h.body.Bytes())
	if h.body.Len() == 0 {
		err = nil
	}
	return err
}
