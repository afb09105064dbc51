package profile

import (
	"encoding/hex"
	"net/url"
	"os"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Choice is what flags say; empty fields were not given.
type Choice struct {
	Context       string
	Server        string
	CAFingerprint string
	CAFile        string
}

// Resolve decides which appliance to speak to: a flag beats the environment, which beats the file. A server that is
// not the context's gets nothing of that context, above all not its token.
func Resolve(c Config, choice Choice, getenv func(string) string) (Context, error) {
	name := first(choice.Context, getenv("CAIRN_CONTEXT"))
	server := first(choice.Server, getenv("CAIRN_SERVER"))
	var ctx Context
	if name == "" && server == "" {
		name = c.Current
	}
	if name == "" && server != "" {
		for _, known := range c.Contexts {
			if SameServer(known.Server, server) {
				ctx = known
				break
			}
		}
	}
	if name != "" {
		found, err := c.Find(name)
		if err != nil {
			return Context{}, err
		}
		ctx = found
	}
	if server != "" && !SameServer(ctx.Server, server) {
		ctx = Context{Server: server}
	}
	if ctx.Server == "" {
		return Context{}, fault.New(fault.Invalid, "", "", "no appliance was chosen").
			Explain("The command has to know which appliance to speak to.",
				"Log in with \"cairn login https://HOST:PORT\", or set CAIRN_SERVER and CAIRN_TOKEN.")
	}
	for _, level := range [][2]string{
		{choice.CAFingerprint, choice.CAFile},
		{getenv("CAIRN_CA_FINGERPRINT"), getenv("CAIRN_CACERT")},
	} {
		if level != [2]string{} {
			ctx.CAFingerprint, ctx.CAFile = level[0], level[1]
			break
		}
	}
	return withToken(ctx, getenv)
}

func withToken(ctx Context, getenv func(string) string) (Context, error) {
	if t := getenv("CAIRN_TOKEN"); t != "" {
		ctx.Token = Secret(t)
	} else if path := getenv("CAIRN_TOKEN_FILE"); path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return Context{}, fault.Wrap(fault.KindOf(err), "read token", path, err)
		}
		ctx.Token = Secret(strings.TrimSpace(string(b)))
	}
	server, err := ServerURL(ctx.Server)
	if err != nil {
		return Context{}, err
	}
	ctx.Server = server
	if ctx.CAFingerprint != "" {
		ctx.CAFingerprint, err = Fingerprint(ctx.CAFingerprint)
	}
	return ctx, err
}

// ServerURL makes "host" and "host:port" into https URLs and refuses everything that is not https: tokens are never
// sent in the clear.
func ServerURL(s string) (string, error) {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fault.New(fault.Invalid, "", "", "%q is not the address of an appliance", s).
			Explain("", "Give it as https://HOST:PORT.")
	}
	return "https://" + strings.ToLower(u.Host) + strings.TrimRight(u.Path, "/"), nil
}

// SameServer reports whether two addresses are the same.
func SameServer(a, b string) bool {
	x, errX := ServerURL(a)
	y, errY := ServerURL(b)
	return errX == nil && errY == nil && x == y
}

// Fingerprint accepts a SHA-256 in the usual ways of writing, with or without colons and "sha256:" before it, and
// returns it as "sha256:" and 64 hexadecimal digits.
func Fingerprint(s string) (string, error) {
	digits := strings.ToLower(strings.TrimSpace(s))
	digits = strings.TrimPrefix(digits, "sha256:")
	digits = strings.TrimPrefix(digits, "sha-256:")
	digits = strings.ReplaceAll(digits, ":", "")
	if b, err := hex.DecodeString(digits); err != nil || len(b) != 32 {
		return "", fault.New(fault.Invalid, "", "", "%q is not a SHA-256 fingerprint", s).
			Explain("", "Copy the CA fingerprint that the appliance prints when it starts: sha256: and 64 hexadecimal digits.")
	}
	return "sha256:" + digits, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
