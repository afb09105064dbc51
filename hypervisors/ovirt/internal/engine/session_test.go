package engine

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

// FuzzLogin reads what answers to a log-in.
func FuzzLogin(f *testing.F) {
	base, err := url.Parse("https://engine.example.com/ovirt-engine/api")
	if err != nil {
		f.Fatal(err)
	}
	c := &Conn{base: base}
	for _, doc := range []string{
		`{"access_token":"t","scope":"ovirt-app-api","exp":"9223372036854775807","token_type":"bearer"}`, `{"access_token":""}`, `[]`, `{"access_token":7}`,
		`{"error":"access_denied","error_description":"Cannot authenticate user 'admin@internal'"}`, "<html></html>", "",
	} {
		for _, status := range []int{200, 302, 400, 401, 503} {
			f.Add([]byte(doc), status)
		}
		for seed := range boundary.Text([]byte(doc)) {
			f.Add(seed, 200)
		}
	}
	f.Fuzz(func(t *testing.T, doc []byte, status int) {
		token, err := c.judgeLogin(status, doc)
		if (token == "") == (err == nil) || token != "" && status != http.StatusOK || err != nil && fault.KindOf(err) == fault.Internal {
			t.Errorf("%d: token %q, %v", status, token, err)
		}
		if strings.ContainsAny(token, "\r\n") {
			t.Errorf("the token %q is more than one header", token)
		}
	})
}
