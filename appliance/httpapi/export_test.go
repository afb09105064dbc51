package httpapi

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api"
)

// Conforming passes requests on and compares every answer with the document; for the tests of package httpapi_test,
// which can import the appliance.
func Conforming(t *testing.T, next http.RoundTripper) http.RoundTripper {
	t.Helper()
	c, err := loadContract(api.Document)
	check(t, err)
	return conforming{&testServer{t: t, Server: &Server{contract: c}}, next}
}

type conforming struct {
	ts   *testServer
	next http.RoundTripper
}

func (c conforming) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	if err != nil || resp.Header.Get("Content-Type") == "text/event-stream" {
		return resp, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(b))
	path := strings.TrimPrefix(r.URL.EscapedPath(), api.BasePath) + "?" + r.URL.RawQuery
	c.ts.conforms(r.Method, path, answer{resp.StatusCode, resp.Header, b})
	return resp, nil
}
