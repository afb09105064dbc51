package ovirtsim_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

const form = "application/x-www-form-urlencoded"

func TestLogIn(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite(), Users: []ovirtsim.User{
		{Name: "admin@internal", Password: "secret"}, {Name: "admin@ovirt@internalsso", Password: "p@ss&word"},
	}})
	for _, c := range []struct{ name, body, want string }{
		{"both parts", "grant_type=password&scope=ovirt-app-api&username=admin%40internal&password=secret", "access_token"},
		{"two @", "grant_type=password&scope=ovirt-app-api&username=admin%40ovirt%40internalsso&password=p%40ss%26word", "access_token"},
		{"no scope", "grant_type=password&username=admin%40internal&password=secret", "invalid_request"},
		{"another scope", "grant_type=password&scope=openid&username=admin%40internal&password=secret", "invalid_scope"},
		{"another grant", "grant_type=refresh_token&scope=ovirt-app-api", "unsupported_grant_type"},
		{"wrong password", "grant_type=password&scope=ovirt-app-api&username=admin%40internal&password=wrong", "access_denied"},
		{"a part of the name", "grant_type=password&scope=ovirt-app-api&username=admin%40ovirt&password=p%40ss%26word", "access_denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, text, _ := call(t, e, "POST", "/ovirt-engine/sso/oauth/token", c.body, "Content-Type", form, "Accept", "application/json")
			if !strings.Contains(text, c.want) || (status == http.StatusOK) != (c.want == "access_token") {
				t.Errorf("got %d %s, want %s", status, text, c.want)
			}
		})
	}
	if got := e.Sessions(); got != 2 {
		t.Errorf("%d sessions, want 2", got)
	}
	ok(connect(t, e, "admin@ovirt@internalsso", "p@ss&word").Get().Send())(t)
	var auth *sdk.AuthError
	if _, err := connect(t, e, "admin@internal", "wrong").Get().Send(); !errors.As(err, &auth) {
		t.Errorf("wrong password: %v", err)
	}
}

func TestSessionEnds(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	list := func(s *sdk.SystemService) error {
		_, err := s.VmsService().List().Send()
		return err
	}
	// go-ovirt expects a fault and finds HTML.
	ended := func(err error) bool {
		var parse *sdk.ResponseParseError
		return errors.As(err, &parse) && strings.Contains(string(parse.Body()), "<html>")
	}
	s := admin(t, e)
	if err := list(s); err != nil {
		t.Fatal(err)
	}
	e.Advance(29 * time.Minute)
	if err := list(s); err != nil {
		t.Errorf("after 29 minutes: %v", err)
	}
	e.Advance(29 * time.Minute)
	if err := list(s); err != nil {
		t.Errorf("29 minutes after it was used: %v", err)
	}
	e.Advance(31 * time.Minute)
	if err := list(s); !ended(err) {
		t.Errorf("31 minutes after it was used: %v", err)
	}
	s = admin(t, e)
	f := e.Inject(ovirtsim.SessionExpires, ovirtsim.Fault{On: "GET /vms", Skip: 1, Times: 1})
	if err := list(s); err != nil {
		t.Errorf("before the fault: %v", err)
	}
	if err := list(s); !ended(err) || f.Fired() != 1 {
		t.Errorf("at the fault: %v, fired %d times", err, f.Fired())
	}
	if err := list(s); !ended(err) {
		t.Errorf("after the fault: %v", err)
	}
}

func TestLogOut(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	_, text, _ := call(t, e, "POST", "/ovirt-engine/sso/oauth/token", "grant_type=password&scope=ovirt-app-api&username=admin%40internal&password=secret", "Content-Type", form)
	_, rest, _ := strings.Cut(text, `"access_token":"`)
	token, _, _ := strings.Cut(rest, `"`)
	ask := func() int {
		status, body, _ := call(t, e, "GET", "/ovirt-engine/api/vms", "", "Authorization", "Bearer "+token)
		if status == http.StatusUnauthorized && !strings.Contains(body, "<html>") {
			t.Errorf("401 with %s", body)
		}
		return status
	}
	if got := ask(); got != http.StatusOK {
		t.Fatalf("with the token: %d", got)
	}
	if status, body, _ := call(t, e, "POST", "/ovirt-engine/services/sso-logout", "scope=ovirt-app-api&token="+token, "Content-Type", form); status != http.StatusOK || body != "" {
		t.Errorf("log-out: %d %s", status, body)
	}
	if got := ask(); got != http.StatusUnauthorized || e.Sessions() != 0 {
		t.Errorf("after log-out: %d, %d sessions", got, e.Sessions())
	}
	if status, _, _ := call(t, e, "GET", "/ovirt-engine/api", "", "Authorization", "Basic YWRtaW5AaW50ZXJuYWw6c2VjcmV0"); status != http.StatusOK {
		t.Errorf("basic authentication: %d", status)
	}
}

func TestCertificates(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite(), CorporateWeb: true})
	status, text, _ := call(t, e, "GET", "/ovirt-engine/services/pki-resource?resource=ca-certificate&format=X509-PEM-CA", "")
	if status != http.StatusOK || text != string(e.InternalCA()) || text == string(e.CA()) {
		t.Errorf("%d, and the internal CA is %v", status, text == string(e.InternalCA()))
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", e.URL(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := httpClient(e.InternalCA()).Do(req); err == nil {
		_ = resp.Body.Close()
		t.Error("the internal CA is good for the API, whose certificate is of another one")
	}
}

func TestMalformedRequests(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite(), Users: []ovirtsim.User{{Name: "admin@internal", Password: "secret"}, {Name: "viewer@internal", Password: "v", Role: "UserRole"}}})
	const asAdmin, asViewer = "Basic YWRtaW5AaW50ZXJuYWw6c2VjcmV0", "Basic dmlld2VyQGludGVybmFsOnY="
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		want                     int
	}{
		{"no path", "GET", "/nothing", "", nil, 404},
		{"no such VM", "GET", "/vms/123", "", nil, 404},
		{"another method", "PATCH", "/vms", "", nil, 405},
		{"a broken document", "POST", "/tags", "<tag><name>", []string{"Content-Type", "application/xml"}, 400},
		{"a document type", "POST", "/tags", `<!DOCTYPE x><tag><name>a</name></tag>`, []string{"Content-Type", "application/xml"}, 400},
		{"no field", "POST", "/tags", "<tag/>", []string{"Content-Type", "application/xml"}, 400},
		{"no name", "POST", "/vms", "<vm/>", []string{"Content-Type", "application/xml"}, 400},
		{"a broken search", "GET", "/vms?search=name%3D", "", nil, 400},
		{"an unknown field", "GET", "/vms?search=colour%3Dred", "", nil, 400},
		{"JSON", "POST", "/tags", `{"name":"a"}`, []string{"Content-Type", "application/json"}, 400},
		{"JSON wanted", "GET", "/vms", "", []string{"Accept", "application/json"}, 406},
		{"version 3", "GET", "/vms", "", []string{"Version", "3"}, 404},
		{"a long correlation id", "GET", "/vms?correlation_id=" + strings.Repeat("x", 51), "", nil, 400},
		{"a viewer who changes something", "POST", "/tags", "<tag><name>a</name></tag>", []string{"Content-Type", "application/xml", "Authorization", asViewer}, 403},
		{"a viewer who looks", "GET", "/vms", "", []string{"Authorization", asViewer}, 200},
		{"nobody", "GET", "/vms", "", []string{"Authorization", ""}, 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, text, h := call(t, e, c.method, "/ovirt-engine/api"+c.path, c.body, append([]string{"Authorization", asAdmin}, c.header...)...)
			if status != c.want {
				t.Errorf("got %d %s, want %d", status, text, c.want)
			}
			if c.want >= 400 && c.want != 401 && !strings.Contains(text, "<fault>") {
				t.Errorf("it is no fault: %s", text)
			}
			if c.method == "POST" && h.Get("Correlation-Id") == "" {
				t.Error("no correlation id")
			}
		})
	}
}
