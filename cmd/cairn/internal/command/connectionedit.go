package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) connectionEdit() *cobra.Command {
	var req client.ConnectionRequest
	var passwordFile string
	var dryRun bool
	cmd := &cobra.Command{
		Use: "edit NAME", Short: "Change how a hypervisor is reached", Args: args("NAME"), ValidArgsFunction: a.completeConnections,
		Long: "Change how a hypervisor is reached. The new way is tried first, and must lead to the same host or manager. What no flag names stays.\n" +
			"--accept-host lets another host take the place of the one before: one that was set up anew, or whose identity has changed. Its VMs are then\n" +
			"those of the connection; the ones that it does not have count as gone.",
		Example: `  cairn connection edit prod --user backup@internal --password-file engine.pw
  cairn connection edit host1 --address qemu+ssh://root@10.0.0.7/system
  cairn connection edit host1 --accept-host 4c4c4544-0042-3510-8053-c4c04f564433`,
	}
	cmd.RunE = a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
		c, err := findConnection(ctx, s, args[0])
		if err != nil {
			return err
		}
		given := cmd.Flags().Changed
		if cmd.Flags().NFlag() == 0 {
			return failure.UsageError("See --help.", "nothing was said to change")
		}
		if !given("address") {
			req.Address = c.Address
		}
		if !given("user") {
			req.User = c.User
		}
		if !given("option") {
			req.Options = c.Options
		}
		if passwordFile != "" {
			if req.Password, err = a.ReadSecret(passwordFile); err != nil {
				return err
			}
		}
		change, err := replaceConnection(ctx, s, c.ID, req, dryRun)
		if err != nil {
			return err
		}
		switch {
		case len(change.Fields) == 0:
			a.Say("It is so already.")
		case dryRun:
			a.Say("Would change: %s.", strings.Join(change.Fields, ", "))
		default:
			a.Say("Changed: %s.", strings.Join(change.Fields, ", "))
		}
		return a.showConnection(change.Connection)
	})
	f := cmd.Flags()
	f.StringVar(&req.Address, "address", "", "its `ADDRESS`")
	f.StringVarP(&req.User, "user", "u", "", "user `NAME` on the platform")
	f.StringVar(&passwordFile, "password-file", "", "`FILE` that holds the password, - for standard input")
	f.Var((*optionPairs)(&req.Options), "option", "`KEY=VALUE` for the platform's driver; may be repeated, and replaces all that are set")
	f.StringVar(&req.AcceptHost, "accept-host", "", "the `IDENTITY` of the host that may take the place of the one before, as its refusal says it")
	f.BoolVar(&dryRun, "dry-run", false, "only say what would change")
	return cmd
}

// replaceConnection changes a connection that was seen just before.
func replaceConnection(ctx context.Context, s *remote.Session, id string, req client.ConnectionRequest, dryRun bool) (client.ConnectionChange, error) {
	resp, err := s.GetConnection(ctx, id)
	if _, err := remote.Decode[client.Connection](s, resp, err); err != nil {
		return client.ConnectionChange{}, err
	}
	params := &client.ReplaceConnectionParams{}
	if dryRun {
		params.DryRun = ref(true)
	}
	resp, err = s.ReplaceConnection(ctx, id, params, req)
	return remote.Decode[client.ConnectionChange](s, resp, err)
}
