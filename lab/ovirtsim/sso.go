package ovirtsim

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// User may log in to the engine.
type User struct {
	// Name is as it is typed: "admin@internal", or "admin@ovirt@internalsso" where the engine has Keycloak.
	Name, Password string
	// Role is "SuperUser" by default; the others are "UserRole", which may look only, and "VmBackup", a custom role that
	// may do what a backup needs.
	Role string
}

// session is what stands behind a token.
type session struct {
	user *user
	used time.Time
}

// serveToken is POST /ovirt-engine/sso/oauth/token.
func (e *Engine) serveToken(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	deny := func(code, description string) {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": code, "error_description": description})
	}
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		deny("invalid_request", "The request is not a form")
		return
	}
	for _, field := range []string{"grant_type", "scope"} {
		if r.PostForm.Get(field) == "" {
			deny("invalid_request", "The request is missing a required parameter: "+field)
			return
		}
	}
	if r.PostForm.Get("grant_type") != "password" {
		deny("unsupported_grant_type", "The grant type is not supported")
		return
	}
	if !strings.Contains(" "+r.PostForm.Get("scope")+" ", " ovirt-app-api ") {
		deny("invalid_scope", "The requested scope is not allowed")
		return
	}
	u := e.login(r.PostForm.Get("username"), r.PostForm.Get("password"))
	if u == nil {
		deny("access_denied", "Cannot authenticate user '"+r.PostForm.Get("username")+"': The user name or password is incorrect..")
		return
	}
	token := newToken()
	e.sessions[token] = &session{u, e.clock.Now()}
	writeJSON(w, http.StatusOK, map[string]string{
		"access_token": token, "scope": "ovirt-app-api", "exp": "9223372036854775807", "token_type": "bearer",
	})
}

func (e *Engine) login(name, password string) *user {
	for _, u := range e.users.all() {
		if u.name == name && u.password == password {
			e.audit(&event{code: 30, severity: "normal", text: "User " + name + " connecting using session logged in.", user: u.id})
			return u
		}
	}
	e.audit(&event{code: 114, severity: "error", text: "User " + name + " failed to log in."})
	return nil
}

// serveLogout is POST /ovirt-engine/services/sso-logout. It is empty when all went well.
func (e *Engine) serveLogout(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	token := r.Form.Get("token")
	if token == "" {
		token, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	if s := e.sessions[token]; s != nil {
		delete(e.sessions, token)
		e.audit(&event{code: 31, severity: "normal", text: "User " + s.user.name + " logged out.", user: s.user.id})
	}
}

// authenticate returns whom a request is of, or nil. A session ends when it was not used for Config.Idle. Basic
// authentication makes a session of its own for each request.
func (e *Engine) authenticate(r *http.Request) (u *user, token string) {
	if name, password, ok := r.BasicAuth(); ok {
		return e.login(name, password), ""
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	s := e.sessions[token]
	if !ok || s == nil {
		return nil, ""
	}
	now := e.clock.Now()
	if now.Sub(s.used) > e.cfg.Idle {
		delete(e.sessions, token)
		return nil, ""
	}
	s.used = now
	return s.user, token
}

// unauthorized answers with HTML, whatever was asked for.
func unauthorized(w http.ResponseWriter) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="oVirt Engine"`)
	writeHTML(w, http.StatusUnauthorized, "Unauthorized")
}

func writeHTML(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/html;charset=UTF-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte("<html><head><title>Error</title></head><body>" + text + "</body></html>"))
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json;charset=UTF-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone, or not
}

func newToken() string {
	b := make([]byte, 48)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// Sessions returns how many tokens are good.
func (e *Engine) Sessions() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.sessions)
}

// EndSessions makes every token invalid.
func (e *Engine) EndSessions() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.sessions)
}
