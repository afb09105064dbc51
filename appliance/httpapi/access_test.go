package httpapi

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
)

// TestEveryRouteRefusesStrangers takes the routes from the document and from echo, so that one that is forgotten in
// either is found.
func TestEveryRouteRefusesStrangers(t *testing.T) {
	ts := ready(t)
	good := ts.token
	public := map[string]bool{
		"POST /api/v1/setup": true, "POST /api/v1/login": true, "GET /api/v1/livez": true, "GET /api/v1/readyz": true,
		"GET /": true, "GET /api/v1/openapi.yaml": true, "GET /api/v1/openapi.json": true,
		"GET /api/v1/docs": true, "GET /api/v1/docs.css": true,
	}
	registered := map[string]bool{}
	for _, r := range ts.echo.Routes() {
		key := r.Method + " " + r.Path
		registered[key] = true
		if ts.contract.operations[key] == nil && !pages[key] && key != metricsRoute {
			t.Errorf("%s is served but not in the document", key)
		}
	}
	before := ts.core.count()
	for key, op := range ts.contract.operations {
		if !registered[key] {
			t.Errorf("%s is in the document but not served", key)
		}
		if op.public != public[key] {
			t.Errorf("%s: public is %v", key, op.public)
		}
		if public[key] {
			continue
		}
		method, path, _ := strings.Cut(key, " ")
		path = strings.TrimPrefix(path, api.BasePath)
		for name, header := range map[string]string{
			"none": "", "wrong": "Bearer cairn_wrong", "no prefix": "Bearer x", "empty": "Bearer ", "other scheme": "Basic " + good,
			"longer": "Bearer " + good + "x", "shorter": "Bearer " + good[:len(good)-1],
		} {
			ts.token = ""
			a := ts.do(method, path, nil, "Authorization", header)
			if a.status != http.StatusUnauthorized || !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("%s with %s token: %d %s", key, name, a.status, a.body)
			}
		}
	}
	for _, method := range []string{"GET", "PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND"} {
		for _, path := range []string{"/nothing", "/vms/", "//vms", "/vms/a%2Fb/../x", "/VMS"} {
			ts.do(method, path, nil).want(t, http.StatusUnauthorized, "/problems/denied/credentials")
		}
	}
	if got := ts.core.count(); got != before {
		t.Errorf("%d calls of strangers reached the core", got-before)
	}
}

func TestPublicPages(t *testing.T) {
	ts := start(t, 0)
	for path, media := range map[string]string{
		"/": "text/html; charset=utf-8", "/api/v1/openapi.yaml": "application/yaml", "/api/v1/openapi.json": "application/json",
		"/api/v1/docs": "text/html; charset=utf-8", "/api/v1/docs.css": "text/css; charset=utf-8",
		"/api/v1/livez": "application/json", "/api/v1/readyz": "application/json",
	} {
		resp, err := ts.client.Get(ts.url + path)
		check(t, err)
		check(t, resp.Body.Close())
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != media {
			t.Errorf("%s: %s %s", path, resp.Status, resp.Header.Get("Content-Type"))
		}
		for _, h := range []string{"Content-Security-Policy", "X-Content-Type-Options", "X-Frame-Options", "Strict-Transport-Security"} {
			if resp.Header.Get(h) == "" {
				t.Errorf("%s: no %s", path, h)
			}
		}
		if resp.TLS.Version < 0x0304 || resp.ProtoMajor != 2 {
			t.Errorf("%s: TLS %x, %s", path, resp.TLS.Version, resp.Proto)
		}
	}
}

func TestSetUpWorksOnce(t *testing.T) {
	ts := start(t, 0)
	request := map[string]any{"token": "setup_wrong", "username": adminName, "password": adminPassword}
	ts.do("POST", "/setup", request).want(t, http.StatusUnauthorized, "/problems/denied/credentials")
	request["token"], request["password"] = ts.setUp, "short"
	ts.do("POST", "/setup", request).want(t, http.StatusUnprocessableEntity, "/problems/invalid/body")
	ts.becomeReady()
	request["password"] = adminPassword
	ts.do("POST", "/setup", request).want(t, http.StatusConflict, "/problems/exists/set-up")
	ts.do("GET", "/version", nil).want(t, http.StatusOK, "")
	if logs := ts.logs.String(); strings.Contains(logs, adminPassword) || strings.Contains(logs, ts.token) || strings.Contains(logs, ts.setUp) {
		t.Error("a secret is in the log")
	}
}

func TestLogin(t *testing.T) {
	ts := ready(t)
	ts.token = ""
	for name, c := range map[string]struct{ user, password string }{
		"wrong password": {adminName, "wrong horse battery"}, "unknown user": {"nobody", adminPassword},
	} {
		p := ts.do("POST", "/login", map[string]any{"username": c.user, "password": c.password}).
			want(t, http.StatusUnauthorized, "/problems/denied/credentials")
		if p.Detail != "the credentials are not right" {
			t.Errorf("%s: detail %q tells more than that", name, p.Detail)
		}
	}
	a := ts.do("POST", "/login", map[string]any{"username": adminName, "password": adminPassword})
	a.want(t, http.StatusOK, "")
	var issued server.IssuedToken
	a.decode(t, &issued)
	if until := time.Until(issued.Token.ExpiresAt); until > 24*time.Hour || until < time.Hour {
		t.Errorf("the token of a login lasts %v", until)
	}
	ts.token = issued.Secret
	ts.do("GET", "/version", nil).want(t, http.StatusOK, "")
	ts.do("DELETE", "/tokens/"+issued.Token.ID, nil).want(t, http.StatusNoContent, "")
	ts.do("GET", "/version", nil).want(t, http.StatusUnauthorized, "/problems/denied/credentials")
}

func TestLoginIsSlowedDown(t *testing.T) {
	ts := ready(t)
	now := time.Now() // and for as long as it takes: a password may be checked for longer than one has to wait after five
	ts.still.Store(&now)
	wrong := map[string]any{"username": adminName, "password": "wrong horse battery"}
	for range 5 {
		ts.do("POST", "/login", wrong).want(t, http.StatusUnauthorized, "/problems/denied/credentials")
	}
	wrong["password"] = adminPassword
	a := ts.do("POST", "/login", wrong, "X-Forwarded-For", "192.0.2.7", "X-Real-Ip", "192.0.2.8")
	p := a.want(t, http.StatusTooManyRequests, "/problems/transient/throttled")
	if a.header.Get("Retry-After") == "" || !p.Retryable || p.Advice == "" {
		t.Errorf("Retry-After %q, problem %+v", a.header.Get("Retry-After"), p)
	}
}

func TestTokens(t *testing.T) {
	ts := ready(t)
	a := ts.do("POST", "/tokens", map[string]any{"name": "robot", "expires_in_days": 3})
	a.want(t, http.StatusCreated, "")
	var issued server.IssuedToken
	a.decode(t, &issued)
	if !strings.HasPrefix(issued.Secret, "cairn_") || len(issued.Secret) < 6+43 {
		t.Errorf("secret %q", issued.Secret)
	}
	a = ts.do("GET", "/tokens?limit=1", nil)
	a.want(t, http.StatusOK, "")
	var page server.TokenList
	a.decode(t, &page)
	if len(page.Items) != 1 || page.Items[0].ID != issued.Token.ID || page.Items[0].User != adminName || page.Next == "" {
		t.Errorf("tokens %+v", page)
	}
	if strings.Contains(string(a.body), issued.Secret) {
		t.Error("the secret is shown a second time")
	}
	ts.do("DELETE", "/tokens/tok_other", nil).want(t, http.StatusNotFound, "/problems/not-found")
	ts.do("DELETE", "/tokens/"+issued.Token.ID, nil).want(t, http.StatusNoContent, "")
	ts.token = issued.Secret
	ts.do("GET", "/version", nil).want(t, http.StatusUnauthorized, "/problems/denied/credentials")
}

func TestExpiredToken(t *testing.T) {
	ts := ready(t)
	caller, err := ts.identity.Authenticate(t.Context(), ts.token)
	check(t, err)
	issued, err := ts.identity.IssueToken(t.Context(), caller, "past", "", -time.Second)
	check(t, err)
	ts.token = issued.Secret
	p := ts.do("GET", "/version", nil).want(t, http.StatusUnauthorized, "/problems/denied/credentials")
	if !strings.Contains(p.Meaning, "expired") {
		t.Errorf("meaning %q", p.Meaning)
	}
}

func TestTokenOfAnotherUserStaysHidden(t *testing.T) {
	ts := ready(t)
	other := catalog.User{Name: "other"}
	check(t, ts.catalog.CreateUser(t.Context(), &other))
	expires := time.Now().Add(time.Hour)
	token := catalog.Token{Hash: "x", Name: "theirs", UserID: other.ID, ExpiresAt: &expires}
	check(t, ts.catalog.CreateToken(t.Context(), &token))
	ts.do("DELETE", "/tokens/"+token.ID, nil).want(t, http.StatusNotFound, "/problems/not-found")
	a := ts.do("GET", "/tokens", nil)
	if strings.Contains(string(a.body), token.ID) {
		t.Errorf("tokens of another user are listed: %s", a.body)
	}
}
