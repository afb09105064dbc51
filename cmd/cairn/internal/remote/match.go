package remote

import (
	"io"
	"net/http"
	"sync"

	"github.com/cairn-backup/cairn/api/client"
)

// matching sends If-Match with what changes or deletes something: the ETag of what this session has seen of it, which is
// read now when it was not. So nothing is changed or deleted that is not what a person was shown.
type matching struct {
	next *http.Client

	mu   sync.Mutex
	seen map[string]string // ETag by path
}

var _ client.HttpRequestDoer = (*matching)(nil)

// Do implements client.HttpRequestDoer.
func (m *matching) Do(r *http.Request) (*http.Response, error) {
	switch r.Method {
	case http.MethodPut, http.MethodPatch, http.MethodDelete:
		if r.Header.Get("If-Match") == "" {
			etag, refused, err := m.etag(r)
			if err != nil || refused != nil {
				return refused, err
			}
			r.Header.Set("If-Match", etag)
		}
	}
	resp, err := m.next.Do(r)
	if err != nil {
		return nil, err
	}
	m.note(r, resp)
	return resp, nil
}

// note remembers what was seen; what was changed is to be seen anew.
func (m *matching) note(r *http.Request, resp *http.Response) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case r.Method != http.MethodGet:
		delete(m.seen, r.URL.Path)
	case resp.StatusCode == http.StatusOK && resp.Header.Get("ETag") != "":
		m.seen[r.URL.Path] = resp.Header.Get("ETag")
	}
}

// etag is of what a request is about, or the answer that refuses to tell it.
func (m *matching) etag(r *http.Request) (etag string, refused *http.Response, err error) {
	m.mu.Lock()
	etag = m.seen[r.URL.Path]
	m.mu.Unlock()
	if etag != "" {
		return etag, nil, nil
	}
	look, err := http.NewRequestWithContext(r.Context(), http.MethodGet, r.URL.String(), nil)
	if err != nil {
		return "", nil, err
	}
	for _, name := range []string{"Authorization", "User-Agent"} {
		look.Header[name] = r.Header[name]
	}
	resp, err := m.next.Do(look)
	if err != nil {
		return "", nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return "", resp, nil
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, bodyLimit)); err != nil {
		return "", nil, err
	}
	return resp.Header.Get("ETag"), nil, nil
}
