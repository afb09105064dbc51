package engine

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

// The engine's single sign-on. A token has no term of its own: the session behind it ends after some idle time
// (30 minutes by default), and the next request is answered by 401 and a HTML page.
const (
	tokenPath  = "/ovirt-engine/sso/oauth/token"
	logoutPath = "/ovirt-engine/services/sso-logout"
	scope      = "ovirt-app-api"
)

// sso is what the single sign-on answers.
type sso struct {
	Token       string `json:"access_token"`
	Error       string `json:"error"`
	Code        string `json:"error_code"`
	Description string `json:"error_description"`
}

// newToken logs in. The user goes as it was typed, with every @ that is in it.
func (c *Conn) newToken(ctx context.Context) (string, error) {
	status, body, err := c.form(ctx, tokenPath, url.Values{
		"grant_type": {"password"}, "scope": {scope}, "username": {c.user}, "password": {c.password},
	}, "")
	if err != nil {
		return "", c.unreachable(ctx, "log in to engine", c.base.Host, err)
	}
	return c.judgeLogin(status, body)
}

// judgeLogin reads the answer to a log-in: a token, or why there is none.
func (c *Conn) judgeLogin(status int, body []byte) (string, error) {
	const op = "log in to engine"
	var answer sso
	parsed := json.Unmarshal(body, &answer) == nil
	switch {
	case status == http.StatusOK && parsed && answer.Token != "" && !strings.ContainsFunc(answer.Token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return answer.Token, nil
	case status >= 500:
		return "", fault.New(fault.Transient, op, c.base.Host, "the single sign-on answers %d", status).
			Explain("The engine does not work at the moment.", "Look whether the service ovirt-engine runs on the engine's machine; it takes minutes to start.")
	case status == http.StatusUnauthorized, status == http.StatusForbidden, parsed && (answer.Error != "" || answer.Code != ""):
		return "", fault.New(fault.Denied, op, c.base.Host, "%s", words(answer, status)).
			Explain("The engine refused the user or the password.",
				"Check both. The user needs its profile: admin@internal, or admin@ovirt@internalsso where the engine uses Keycloak (new since 4.5.1). An account can also be locked or its password expired.")
	}
	return "", fault.New(fault.Invalid, op, c.base.Host, "it answers %d to a log-in", status).
		Explain("This is no oVirt engine, or something stands before it.", "Check the address: it is the engine's own name, not that of a host or a portal.")
}

func words(a sso, status int) string {
	for _, s := range []string{a.Description, a.Error, a.Code} {
		if s = strings.TrimRight(strings.TrimSpace(s), "."); s != "" {
			return Clip(s)
		}
	}
	return http.StatusText(status)
}

// logout ends the session of a token.
func (c *Conn) logout(ctx context.Context, token string) error {
	status, _, err := c.form(ctx, logoutPath, url.Values{"scope": {scope}, "token": {token}}, token)
	if err != nil {
		return c.unreachable(ctx, "log out of engine", c.base.Host, err)
	}
	if status >= 300 && status != http.StatusUnauthorized {
		return fault.New(fault.Transient, "log out of engine", c.base.Host, "it answers %d; the session ends when it has been idle for a while", status)
	}
	return nil
}

// form posts a form outside of the API.
func (c *Conn) form(ctx context.Context, path string, values url.Values, token string) (int, []byte, error) {
	u := *c.base
	u.Path = path
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(values.Encode()))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return c.exchange(req)
}
