package httpapi

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api"
)

// Over serves a core for the tests of package httpapi_test, which can import the appliance. The client it returns
// compares every answer with the document; the token is an administrator's.
func Over(t *testing.T, core Core, stream *Stream) (url string, c *http.Client, token string) {
	t.Helper()
	ts := startOver(t, core, stream, 0)
	ts.becomeReady()
	return ts.url + api.BasePath, &http.Client{Transport: conforming{ts}}, ts.token
}

// conforming passes requests on and checks what is answered.
type conforming struct{ ts *testServer }

func (c conforming) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.ts.client.Transport.RoundTrip(r)
	if err != nil || resp.Header.Get("Content-Type") == "text/event-stream" {
		return resp, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(b))
	path := strings.TrimPrefix(r.URL.Path, api.BasePath)
	c.ts.conforms(r.Method, path, answer{resp.StatusCode, resp.Header, b})
	return resp, nil
}
