package command

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) connections() *cobra.Command {
	group := a.group("connection", "The hypervisors", "")
	group.AddCommand(a.connectionAdd(), a.connectionEdit(), a.connectionList(), a.connectionShow(), a.connectionCheck(), a.connectionRefresh(),
		a.connectionRemove(), a.connectionDatastores(), a.connectionNetworks())
	return group
}

func (a *App) connectionAdd() *cobra.Command {
	var req client.CreateConnectionRequest
	var passwordFile string
	cmd := &cobra.Command{
		Use: "add NAME ADDRESS", Short: "Connect a hypervisor", Args: args("NAME", "ADDRESS"),
		Long: "Connect a hypervisor. It is tried first; one that does not work is not kept. With --dry-run it is only tried.",
		Example: `  cairn connection add lab qemu:///system
  cairn connection add host1 qemu+ssh://root@host1/system --option ssh_key_file=/etc/cairn/id_ed25519
  cairn connection add prod https://engine.example.com --platform ovirt --user admin@internal --password-file engine.pw`,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			req.Name, req.Address = args[0], args[1]
			if req.Platform == "" && strings.HasPrefix(req.Address, "qemu") {
				req.Platform = "kvm"
			}
			if req.Platform == "" {
				return failure.UsageError("Name it with --platform: kvm or ovirt.", "the address %q does not tell its platform", req.Address)
			}
			if passwordFile != "" {
				var err error
				if req.Password, err = a.ReadSecret(passwordFile); err != nil {
					return err
				}
			}
			resp, err := s.CreateConnection(ctx, nil, req)
			if req.DryRun {
				health, err := remote.Decode[client.ConnectionHealth](s, resp, err)
				if err != nil {
					return err
				}
				a.Say("It would work. Nothing was kept.")
				return a.showHealth(health)
			}
			c, err := remote.Decode[client.Connection](s, resp, err)
			if err != nil {
				return err
			}
			a.Say("Connected %q.", c.Name)
			return a.showConnection(c)
		}),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&req.Platform, "platform", "", "`PLATFORM`; kvm where the address starts with qemu")
	f.StringVarP(&req.User, "user", "u", "", "user `NAME` on the platform")
	f.StringVar(&passwordFile, "password-file", "", "`FILE` that holds the password, - for standard input")
	f.Var((*optionPairs)(&req.Options), "option", "`KEY=VALUE` for the platform's driver; may be repeated")
	f.BoolVar(&req.DryRun, "dry-run", false, "only try it")
	return cmd
}

func (a *App) connectionList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List connections", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			all, err := listConnections(ctx, s)
			if err != nil {
				return err
			}
			return output.List(a.Printer(), all, func(c client.Connection) string { return c.Name },
				"No connections. Make one with \"cairn connection add NAME ADDRESS\".", a.connectionColumns())
		}),
	}
}

func (a *App) connectionColumns() []output.Column[client.Connection] {
	return []output.Column[client.Connection]{
		{Header: "NAME", Value: func(c client.Connection) string { return c.Name }},
		{Header: "PLATFORM", Value: func(c client.Connection) string { return c.Platform }},
		{Header: "ADDRESS", Value: func(c client.Connection) string { return c.Address }},
		{Header: "VMS", Right: true, Value: func(c client.Connection) string { return strconv.Itoa(c.VMs) }},
		{Header: "STATE", State: true, Value: connectionState},
		{Header: "CHECKED", Right: true, Value: func(c client.Connection) string { return a.age(c.CheckedAt) }},
		{Header: "ID", Wide: true, Value: func(c client.Connection) string { return c.ID }},
		{Header: "PRODUCT", Wide: true, Value: func(c client.Connection) string { return c.Product }},
		{Header: "HOST", Wide: true, Value: func(c client.Connection) string { return c.Host }},
	}
}

// connectionState tells a connection that works but not for everything from one that does not work.
func connectionState(c client.Connection) string {
	if c.Error.Detail == "" && len(c.Problems) > 0 {
		return "warning"
	}
	return string(c.Status)
}

// failureFields shows a kept error as every error is shown.
func failureFields(f client.Failure) []output.Field {
	return []output.Field{
		{Name: "Error", Value: f.Detail},
		{Name: "What it means", Value: f.Meaning},
		{Name: "What to do", Value: f.Advice},
	}
}

func (a *App) connectionShow() *cobra.Command {
	return a.onConnection("show NAME", "Show a connection", func(ctx context.Context, s *remote.Session, c client.Connection) error {
		resp, err := s.GetConnection(ctx, c.ID)
		c, err = remote.Decode[client.Connection](s, resp, err)
		if err != nil {
			return err
		}
		return a.showConnection(c)
	})
}

func (a *App) showConnection(c client.Connection) error {
	return a.one(c, c.Name, func(p output.Printer, w io.Writer) error {
		fields := []output.Field{
			{Name: "Name", Value: c.Name},
			{Name: "ID", Value: c.ID},
			{Name: "Platform", Value: c.Platform},
			{Name: "Address", Value: c.Address},
			{Name: "User", Value: c.User},
			{Name: "State", Value: connectionState(c), State: true},
			{Name: "Product", Value: c.Product},
			{Name: "Host", Value: c.Host},
			{Name: "Identity", Value: c.HostID},
			{Name: "VMs", Value: strconv.Itoa(c.VMs)},
			{Name: "Checked", Value: a.when(c.CheckedAt)},
			{Name: "Inventory", Value: a.when(c.InventoryAt)},
			{Name: "Can", Value: strings.Join(abilities(c.Capabilities), ", ")},
		}
		for k, v := range sorted(c.Options) {
			fields = append(fields, output.Field{Name: "Option " + k, Value: v})
		}
		fields = append(fields, failureFields(c.Error)...)
		return p.Fields(w, append(fields, output.Lines("Will not work", c.Problems)...)...)
	})
}

func abilities(c client.Capabilities) []string {
	var can []string
	for _, x := range []struct {
		yes  bool
		what string
	}{
		{c.Backup, "backup"},
		{c.ChangeTracking, "incremental backup"},
		{c.Quiesce, "quiescing"},
		{c.StoppedBackup, "backup of stopped VMs"},
		{c.Restore, "restore as a new VM"},
		{c.RestoreInPlace, "restore in place"},
		{c.RestoreDisks, "restore disks alone"},
		{c.RestoreInto, "restore disks into a VM"},
		{c.Power, "start and stop"},
	} {
		if x.yes {
			can = append(can, x.what)
		}
	}
	return can
}

func (a *App) connectionCheck() *cobra.Command {
	return a.onConnection("check NAME", "Try a connection; exit code 3 where something will not work", func(ctx context.Context, s *remote.Session, c client.Connection) error {
		resp, err := s.CheckConnection(ctx, c.ID)
		health, err := remote.Decode[client.ConnectionHealth](s, resp, err)
		if err != nil {
			return err
		}
		return a.showHealth(health)
	})
}

func (a *App) showHealth(h client.ConnectionHealth) error {
	err := a.one(h, h.Host, func(p output.Printer, w io.Writer) error {
		state := "ok"
		if len(h.Problems) > 0 {
			state = "warning"
		}
		fields := []output.Field{
			{Name: "State", Value: state, State: true},
			{Name: "Product", Value: h.Product},
			{Name: "Host", Value: h.Host},
			{Name: "VMs", Value: strconv.Itoa(h.VMs)},
		}
		if h.Movers > 0 {
			fields = append(fields, output.Field{Name: "Movers", Value: strconv.Itoa(h.Movers)})
		}
		return p.Fields(w, append(fields, output.Lines("Will not work", h.Problems)...)...)
	})
	if err == nil && len(h.Problems) > 0 {
		return failure.Ended{Code: failure.Warning}
	}
	return err
}

func (a *App) connectionRefresh() *cobra.Command {
	return a.onConnection("refresh NAME", "Read the inventory again", func(ctx context.Context, s *remote.Session, c client.Connection) error {
		resp, err := s.RefreshConnection(ctx, c.ID)
		r, err := remote.Decode[client.InventoryReport](s, resp, err)
		if err != nil {
			return err
		}
		return a.one(r, c.Name, func(_ output.Printer, w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s: %d new, %d changed, %d gone.\n", plural(r.VMs, "VM"), r.Added, r.Changed, r.Gone)
			return err
		})
	})
}

func (a *App) connectionRemove() *cobra.Command {
	cmd := a.onConnection("remove NAME", "Forget a connection; its restore points stay", func(ctx context.Context, s *remote.Session, c client.Connection) error {
		if err := a.Confirm(ctx, "Forget the connection %q to %s?", c.Name, c.Address); err != nil {
			return err
		}
		resp, err := s.DeleteConnection(ctx, c.ID, nil)
		if err := remote.Done(s, resp, err); err != nil {
			return err
		}
		a.Say("Forgot %q. Nothing was changed on the hypervisor.", c.Name)
		return nil
	})
	cmd.Aliases = []string{"rm"}
	return cmd
}

func (a *App) connectionDatastores() *cobra.Command {
	return a.onConnection("datastores NAME", "List the datastores a restore can go to", func(ctx context.Context, s *remote.Session, c client.Connection) error {
		resp, err := s.ListDatastores(ctx, c.ID)
		l, err := remote.Decode[client.DatastoreList](s, resp, err)
		if err != nil {
			return err
		}
		return output.List(a.Printer(), l.Items, func(d client.Datastore) string { return d.Name }, "No datastores.", []output.Column[client.Datastore]{
			{Header: "NAME", Value: func(d client.Datastore) string { return d.Name }},
			{Header: "KIND", Value: func(d client.Datastore) string { return d.Kind }},
			{Header: "ACTIVE", Value: func(d client.Datastore) string { return yesNo(d.Active) }},
			{Header: "CAPACITY", Right: true, Value: func(d client.Datastore) string { return output.Size(d.CapacityBytes) }},
			{Header: "FREE", Right: true, Value: func(d client.Datastore) string { return output.Size(d.FreeBytes) }},
			{Header: "PATH", Wide: true, Value: func(d client.Datastore) string { return d.Path }},
		})
	})
}

func (a *App) connectionNetworks() *cobra.Command {
	return a.onConnection("networks NAME", "List the networks a restored VM can use", func(ctx context.Context, s *remote.Session, c client.Connection) error {
		resp, err := s.ListNetworks(ctx, c.ID)
		l, err := remote.Decode[client.NetworkList](s, resp, err)
		if err != nil {
			return err
		}
		return output.List(a.Printer(), l.Items, func(n client.Network) string { return n.Name }, "No networks.", []output.Column[client.Network]{
			{Header: "NAME", Value: func(n client.Network) string { return n.Name }},
			{Header: "KIND", Value: func(n client.Network) string { return n.Kind }},
			{Header: "ACTIVE", Value: func(n client.Network) string { return yesNo(n.Active) }},
		})
	})
}

// onConnection is a command about one connection, named by id or name.
func (a *App) onConnection(use, short string, do func(context.Context, *remote.Session, client.Connection) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args("NAME"), ValidArgsFunction: a.completeConnections,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			c, err := findConnection(ctx, s, args[0])
			if err != nil {
				return err
			}
			return do(ctx, s, c)
		}),
	}
}

// one prints one object: its name for -o name, a page for people, all of it for programs.
func (a *App) one(v any, name string, human func(output.Printer, io.Writer) error) error {
	p := a.Printer()
	if p.Format == output.Name {
		_, err := io.WriteString(a.Out, name+"\n")
		return err
	}
	return p.Value(v, func(w io.Writer) error { return human(p, w) })
}

// age writes how long ago t was for a table.
func (a *App) age(t time.Time) string { return output.Age(t, a.Now()) }

// when writes an instant for a page: exactly, and how long ago.
func (a *App) when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return output.Time(t, a.Location) + ", " + a.age(t) + " ago"
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
