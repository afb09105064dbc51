// Package command is the tree of cairn's commands.
//
// It holds no knowledge of its own about VMs or repositories: it asks the appliance, or hands over to package rescue.
// Its one invariant: a command prints its data on standard output in the format that -o asks for, everything else on
// standard error, and ends with one of the documented exit codes.
package command

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/console"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/profile"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/rescue"
)

// App is one run of the command line.
type App struct {
	*console.Console
	choice profile.Choice
	poll   time.Duration // how often a run is asked for while somebody waits
	redraw time.Duration // how often --watch lists again
}

// Run runs one command line and returns its exit code.
func Run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &App{Console: console.New(getenv, stdin, stdout, stderr), poll: 500 * time.Millisecond, redraw: 2 * time.Second}
	return a.Run(ctx, args)
}

// Run runs one command line.
func (a *App) Run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil {
		a.Say("Interrupted.")
		return int(failure.Interrupted)
	}
	failure.Print(a.Err, err, a.ColourErr())
	return int(failure.CodeOf(err))
}

const rootLong = `Cairn backs up virtual machines without agents and restores them.

Configuration, the first that is given counts: flag, environment, context.
  CAIRN_SERVER          address of the appliance, https://HOST:PORT
  CAIRN_TOKEN           API token; CAIRN_TOKEN_FILE names a file that holds it
  CAIRN_CA_FINGERPRINT  SHA-256 of the appliance's CA
  CAIRN_CACERT          file with the appliance's CA, PEM
  CAIRN_CONTEXT         context to use
  CAIRN_CONFIG          file with the contexts, ~/.config/cairn/config.yaml by default
  NO_COLOR              no colours

` + failure.Help

func (a *App) root() *cobra.Command {
	root := a.group("cairn", "Back up and restore virtual machines", rootLong)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return failure.UsageError("See \""+cmd.CommandPath()+" --help\".", "%s", err)
	})
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.Check() }
	a.AddFlags(root)
	f := root.PersistentFlags()
	f.StringVar(&a.choice.Context, "context", "", "`NAME` of the context to use")
	f.StringVar(&a.choice.Server, "server", "", "address of the appliance, `https://HOST:PORT`")
	f.StringVar(&a.choice.CAFingerprint, "ca-fingerprint", "", "`SHA-256` of the appliance's CA certificate")
	f.StringVar(&a.choice.CAFile, "cacert", "", "`FILE` with the appliance's CA certificate, PEM")
	_ = root.RegisterFlagCompletionFunc("context", a.completeContexts)
	root.AddCommand(a.login(), a.setUp(), a.contexts(), a.connections(), a.vms(), a.repositories(), a.keys(), a.backup(), a.policies(), a.exclusions(), a.coverage(), a.maintenance(), a.plan(), a.apply(), a.export(), a.appliance(), a.support(),
		a.points(), a.restore(), a.runs(), a.tasks(), a.events(), a.audit(), a.movers(), a.tokens(), a.version(), a.completion(), a.man(), rescue.Command(a.Console))
	a.letWatch(root)
	return root
}

// group is a noun: it only holds verbs.
func (a *App) group(name, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, Long: long, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			advice := "See \"" + cmd.CommandPath() + " --help\"."
			cmd.SuggestionsMinimumDistance = 2
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				advice = "Did you mean \"" + cmd.CommandPath() + " " + near[0] + "\"?"
			}
			return failure.UsageError(advice, "there is no command \"%s %s\"", cmd.CommandPath(), args[0])
		},
	}
}

// verb is the body of a command that asks the appliance.
type verb func(ctx context.Context, s *remote.Session, args []string) error

// ask makes the function that cobra runs.
func (a *App) ask(v verb) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		s, err := a.open()
		if err != nil {
			return err
		}
		defer s.Close()
		return v(cmd.Context(), s, args)
	}
}

func (a *App) open() (*remote.Session, error) {
	c, err := a.target()
	if err != nil {
		return nil, err
	}
	a.Debug("appliance %s", c.Server)
	return remote.Open(c)
}

// target is the appliance that flags, environment and contexts name.
func (a *App) target() (profile.Context, error) {
	config, _, err := a.config()
	if err != nil {
		return profile.Context{}, err
	}
	return profile.Resolve(config, a.choice, a.Getenv)
}

func (a *App) config() (profile.Config, string, error) {
	path, err := profile.Path(a.Getenv)
	if err != nil {
		return profile.Config{}, "", err
	}
	config, err := profile.Load(path)
	return config, path, err
}

// args checks the number of arguments; names are as in Use: "VM", "[VM]", "VM...".
func args(names ...string) cobra.PositionalArgs {
	least, most := 0, 0
	for _, n := range names {
		if !strings.HasPrefix(n, "[") {
			least++
		}
		if most++; strings.HasSuffix(strings.Trim(n, "[]"), "...") {
			most = 1 << 20
		}
	}
	return func(cmd *cobra.Command, given []string) error {
		advice := "Usage: " + cmd.UseLine()
		switch {
		case len(given) < least:
			return failure.UsageError(advice, "%s is missing", strings.TrimSuffix(names[len(given)], "..."))
		case len(given) > most:
			return failure.UsageError(advice, "there is one argument too many: %q", given[most])
		}
		return nil
	}
}
