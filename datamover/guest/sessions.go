package guest

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// session is one of Config.Sessions: a target on the storage network.
type session struct{ kind, host, port, name, user, secret string }

// The kinds of session, the ports that they have where none is named, and what names of targets look like (RFC 3720, 3.2.6;
// NVM Express Base Specification 2.0, 4.5). What they accept can be a word of a command line, or a file's name.
var sessionKinds = map[string]struct {
	port string
	name *regexp.Regexp
}{
	"iscsi":    {"3260", regexp.MustCompile(`^(iqn|eui|naa)\.[a-zA-Z0-9][a-zA-Z0-9.:_-]{0,218}$`)},
	"nvme+tcp": {"4420", regexp.MustCompile(`^nqn\.[a-zA-Z0-9][a-zA-Z0-9.:_-]{0,218}$`)},
}

// parseSession reads "iscsi://portal/iqn…", "iscsi://name:secret@portal:port/iqn…" for CHAP, or "nvme+tcp://address/nqn…". Its errors
// never quote the text, since it may hold a secret.
func parseSession(text string) (session, error) {
	form := errors.New("it is not of the form iscsi://PORTAL/IQN or nvme+tcp://ADDRESS/NQN")
	u, err := url.Parse(text)
	if err != nil {
		return session{}, form
	}
	kind, known := sessionKinds[u.Scheme]
	s := session{kind: u.Scheme, host: u.Hostname(), port: u.Port(), name: strings.TrimPrefix(u.Path, "/")}
	if !known || s.host == "" || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return session{}, form
	}
	if err := checkName(s.host); err != nil && net.ParseIP(s.host) == nil {
		return session{}, err
	}
	if s.port == "" {
		s.port = kind.port
	}
	if n, err := strconv.Atoi(s.port); err != nil || n < 1 || n > 65535 {
		return session{}, fmt.Errorf("%q is no port", s.port)
	}
	if !kind.name.MatchString(s.name) {
		return session{}, fmt.Errorf("%q is no name of a target", s.name)
	}
	if u.User == nil {
		return s, nil
	}
	s.user = u.User.Username()
	s.secret, _ = u.User.Password()
	switch {
	case s.kind != "iscsi":
		return session{}, errors.New("names and secrets are for iSCSI only (CHAP)")
	case s.user == "" || s.secret == "" || printable(s.user) != nil || printable(s.secret) != nil:
		return session{}, errors.New("CHAP needs a name and a secret, without spaces and in ASCII")
	}
	return s, nil
}

// String is the session without its secret.
func (s session) String() string {
	user := ""
	if s.user != "" {
		user = s.user + ":[redacted]@"
	}
	return s.kind + "://" + user + net.JoinHostPort(s.host, s.port) + "/" + s.name
}

// WithoutSecrets returns sessions as they can be shown; what cannot be read is left out.
func WithoutSecrets(sessions []string) (out []string) {
	for _, text := range sessions {
		if s, err := parseSession(text); err == nil {
			out = append(out, s.String())
		}
	}
	return out
}

// sessionTable has a line for each session: kind, host, port, the target's name, and for CHAP its name and secret, or "-" twice.
func (c Config) sessionTable() string {
	var b strings.Builder
	for _, text := range c.Sessions {
		s, err := parseSession(text)
		if err != nil {
			continue // build has refused it
		}
		if s.user == "" {
			s.user, s.secret = "-", "-"
		}
		if s.kind == "iscsi" && strings.Contains(s.host, ":") {
			s.host = "[" + s.host + "]"
		}
		fmt.Fprintln(&b, s.kind, s.host, s.port, s.name, s.user, s.secret)
	}
	return b.String()
}
