package command

import (
	"context"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/profile"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

// entry are the flags of login and setup.
type entry struct {
	name         string // of the context
	user         string
	passwordFile string
	tokenFile    string // login: an API token; setup: the set-up token
	token        string // setup only: it is of use once
}

const passwordAdvice = "Give it with --password-file FILE, \"-\" for standard input, or in CAIRN_PASSWORD."

func (a *App) login() *cobra.Command {
	var e entry
	cmd := &cobra.Command{
		Use: "login [SERVER]", Short: "Log in to an appliance and remember it as a context", Args: args("[SERVER]"),
		Long: `Log in with user name and password, or store an API token with --token-file.

The appliance's certificate must be known: by the fingerprint of its CA (--ca-fingerprint, the appliance prints it
when it starts), by a CA file (--cacert), or because the operating system trusts it. On a terminal you are shown the
fingerprint and asked.`,
		Example: `  cairn login https://backup1:8440 --ca-fingerprint sha256:4f1c... --user admin
  cairn login https://backup1:8440 --cacert ca.pem --token-file token.txt --name site1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.enter(cmd.Context(), args, e, a.loginSecret)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&e.name, "name", "", "`NAME` of the context; the host name by default")
	f.StringVarP(&e.user, "user", "u", "", "user `NAME`")
	f.StringVar(&e.passwordFile, "password-file", "", "`FILE` that holds the password, - for standard input")
	f.StringVar(&e.tokenFile, "token-file", "", "`FILE` that holds an API token, - for standard input")
	return cmd
}

func (a *App) setUp() *cobra.Command {
	var e entry
	cmd := &cobra.Command{
		Use: "setup [SERVER]", Short: "Create the first administrator of a new appliance", Args: args("[SERVER]"),
		Long: `Create the first administrator with the one-time set-up token, which the appliance prints when it starts for
the first time, and remember the appliance as a context.`,
		Example: `  cairn setup https://backup1:8440 --ca-fingerprint sha256:4f1c... --token 7KQ2... --user admin`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.enter(cmd.Context(), args, e, a.setUpSecret)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&e.name, "name", "", "`NAME` of the context; the host name by default")
	f.StringVarP(&e.user, "user", "u", "admin", "user `NAME` of the administrator")
	f.StringVar(&e.passwordFile, "password-file", "", "`FILE` that holds the new password, - for standard input")
	f.StringVar(&e.token, "token", "", "the set-up `TOKEN`")
	f.StringVar(&e.tokenFile, "token-file", "", "`FILE` that holds the set-up token")
	return cmd
}

// enter finds out how to trust the server, gets a token with secret, tries it and stores the context.
func (a *App) enter(ctx context.Context, args []string, e entry, secret func(context.Context, *remote.Session, *entry) (string, error)) error {
	config, path, err := a.config()
	if err != nil {
		return err
	}
	if len(args) == 1 {
		a.choice.Server = args[0]
	}
	c, err := profile.Resolve(config, a.choice, a.Getenv)
	if err != nil {
		return err
	}
	c.Token = ""
	if err := a.trust(ctx, &c); err != nil {
		return err
	}
	s, err := remote.Open(c)
	if err != nil {
		return err
	}
	defer s.Close()
	token, err := secret(ctx, s, &e)
	if err != nil {
		return err
	}
	c.Token, c.User = profile.Secret(token), e.user
	known, err := remote.Open(c)
	if err != nil {
		return err
	}
	defer known.Close()
	resp, err := known.GetVersion(ctx)
	v, err := remote.Decode[client.Version](known, resp, err)
	if err != nil {
		return err
	}
	c.Name = contextName(config, e.name, c)
	config.Put(c)
	if err := config.Save(path); err != nil {
		return err
	}
	a.Say("Logged in to %s (version %s). It is now the current context %q.", c.Server, v.Version, c.Name)
	return nil
}

// trust asks a person whether the CA that the server shows is the right one, where nothing else says so.
func (a *App) trust(ctx context.Context, c *profile.Context) error {
	if c.CAFingerprint != "" || c.CAFile != "" || remote.TrustedBySystem(ctx, c.Server) {
		return nil
	}
	seen, err := remote.Probe(ctx, c.Server)
	if err != nil {
		return err
	}
	a.Say("The appliance at %s shows a CA with the fingerprint\n  %s\nCompare it with what the appliance printed when it started.", c.Server, seen)
	if a.Yes {
		// --yes answers questions about what to do, not about whom to trust.
		return failure.UsageError("Repeat the command with --ca-fingerprint, after you compared it.", "whom to trust cannot be answered with --yes")
	}
	if err := a.Confirm(ctx, "Is it the same?"); err != nil {
		return err
	}
	c.CAFingerprint = seen
	return nil
}

func (a *App) loginSecret(ctx context.Context, s *remote.Session, e *entry) (string, error) {
	if e.tokenFile != "" {
		return a.ReadSecret(e.tokenFile)
	}
	if token := a.Getenv("CAIRN_TOKEN"); token != "" && e.user == "" {
		return token, nil
	}
	var err error
	if e.user == "" {
		if e.user, err = a.Ask(ctx, "user name", "Give it with --user, or an API token with --token-file."); err != nil {
			return "", err
		}
	}
	password, err := a.password(ctx, e.passwordFile, false)
	if err != nil {
		return "", err
	}
	resp, err := s.Login(ctx, client.LoginRequest{Username: e.user, Password: password})
	issued, err := remote.Decode[client.IssuedToken](s, resp, err)
	return issued.Secret, err
}

func (a *App) setUpSecret(ctx context.Context, s *remote.Session, e *entry) (string, error) {
	token, err := e.token, error(nil)
	switch {
	case token != "":
	case e.tokenFile != "":
		token, err = a.ReadSecret(e.tokenFile)
	case a.Getenv("CAIRN_SETUP_TOKEN") != "":
		token = a.Getenv("CAIRN_SETUP_TOKEN")
	default:
		token, err = a.AskSecret(ctx, "set-up token", "The appliance printed it when it started; give it with --token or --token-file.")
	}
	if err != nil {
		return "", err
	}
	password, err := a.password(ctx, e.passwordFile, true)
	if err != nil {
		return "", err
	}
	resp, err := s.SetUp(ctx, client.SetUpRequest{Token: token, Username: e.user, Password: password})
	issued, err := remote.Decode[client.IssuedToken](s, resp, err)
	return issued.Secret, err
}

// password comes from a file, the environment or a person, who types a new one twice.
func (a *App) password(ctx context.Context, file string, fresh bool) (string, error) {
	if file != "" {
		return a.ReadSecret(file)
	}
	if p := a.Getenv("CAIRN_PASSWORD"); p != "" {
		return p, nil
	}
	what := "password"
	if fresh {
		what = "new password (12 characters or more)"
	}
	p, err := a.AskSecret(ctx, what, passwordAdvice)
	if err != nil || !fresh {
		return p, err
	}
	again, err := a.AskSecret(ctx, "once more", passwordAdvice)
	if err == nil && again != p {
		return "", failure.UsageError("Try again.", "the two passwords are not the same")
	}
	return p, err
}

// contextName is what was asked for, the name the context has already, or the server's host; with its port where
// another appliance on that host has the name.
func contextName(config profile.Config, asked string, c profile.Context) string {
	if asked != "" {
		return asked
	}
	if c.Name != "" {
		return c.Name
	}
	u, err := url.Parse(c.Server)
	if err != nil {
		return c.Server
	}
	if _, err := config.Find(u.Hostname()); err == nil {
		return u.Host
	}
	return u.Hostname()
}
