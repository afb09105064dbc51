package command

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) movers() *cobra.Command {
	group := a.group("mover", "Who reads and writes the disks", "")
	group.AddCommand(a.moverDeploy(), a.moverToken(), a.moverList(), a.moverShow(), a.moverDrain(), a.moverResume(), a.moverRevoke(), a.moverRemove(), a.moverLimits())
	return group
}

func (a *App) moverToken() *cobra.Command {
	var req client.MoverTokenRequest
	var life time.Duration
	var manager string
	cmd := &cobra.Command{
		Use: "token", Short: "Make a join token and print how to start a mover with it", Args: args(),
		Long: "Make a join token, which enrols one mover, once. The line that is printed starts the mover on its machine. The\n" +
			"token is secret as long as it is good; the mover also takes it from a file, with --token-file.",
		Example: `  cairn mover token --name mover1
  cairn mover token --name mover1 --replace   # mover1 has lost its state or its certificate has expired`,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			if life < time.Minute || life%time.Second != 0 {
				return failure.UsageError("Give whole seconds, at least a minute, for example 30m.", "a token cannot be good for %v", life)
			}
			req.ExpiresInSeconds = int(life / time.Second)
			resp, err := s.CreateMoverToken(ctx, nil, req)
			t, err := remote.Decode[client.MoverToken](s, resp, err)
			if err != nil {
				return err
			}
			if manager == "" {
				manager = managerOf(s.Server, t.Port)
			}
			a.Say("The token enrols one mover, until %s. It is shown only now:", output.Time(t.ExpiresAt, a.Location))
			return a.one(t, t.Token, func(_ output.Printer, w io.Writer) error {
				_, err := fmt.Fprintf(w, "cairn-mover --manager %s --fingerprint %s --token %s\n", manager, t.Fingerprint, t.Token)
				return err
			})
		}),
	}
	f := cmd.Flags()
	f.StringVar(&req.Name, "name", "", "the mover's `NAME`; its host's when not given")
	f.BoolVar(&req.Replace, "replace", false, "it takes the place of the mover with this name")
	f.DurationVar(&life, "expires", time.Hour, "good for this `TIME`, at most 168h")
	f.StringVar(&manager, "manager", "", "`HOST:PORT` under which the mover reaches the appliance, where that is not this client's host")
	return cmd
}

// managerOf puts the host by which this client knows the appliance before the movers' port.
func managerOf(address string, port int) string {
	host := address
	if u, err := url.Parse(address); err == nil && u.Hostname() != "" {
		host = u.Hostname()
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

func listMovers(ctx context.Context, s *remote.Session) ([]client.Mover, error) {
	resp, err := s.ListMovers(ctx)
	l, err := remote.Decode[client.MoverList](s, resp, err)
	return l.Items, err
}

func findMover(ctx context.Context, s *remote.Session, name string) (client.Mover, error) {
	all, err := listMovers(ctx, s)
	if err != nil {
		return client.Mover{}, err
	}
	return pick("mover", name, all, func(m client.Mover) (string, string, string) { return m.ID, m.Name, m.Hostname })
}

func (a *App) moverList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List movers", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			all, err := listMovers(ctx, s)
			if err != nil {
				return err
			}
			return output.List(a.Printer(), all, func(m client.Mover) string { return m.Name }, "No movers.", []output.Column[client.Mover]{
				{Header: "NAME", Value: func(m client.Mover) string { return m.Name }},
				{Header: "STATE", State: true, Value: func(m client.Mover) string { return string(m.State) }},
				{Header: "TRANSFERS", Right: true, Value: func(m client.Mover) string { return fmt.Sprintf("%d/%d", m.Transfers, m.Slots) }},
				{Header: "RATE", Right: true, Value: func(m client.Mover) string { return rateOf(m.Rate) }},
				{Header: "TRANSPORTS", Value: func(m client.Mover) string { return strings.Join(m.Transports, ",") }},
				{Header: "VERSION", Value: versionOf},
				{Header: "HOST", Value: func(m client.Mover) string { return m.Hostname }},
				{Header: "SEEN", Right: true, Value: func(m client.Mover) string { return a.age(m.LastSeenAt) }},
				{Header: "ID", Wide: true, Value: func(m client.Mover) string { return m.ID }},
				{Header: "RECEIVED", Right: true, Wide: true, Value: func(m client.Mover) string { return sizeOf(m.ReceivedBytes) }},
				{Header: "SENT", Right: true, Wide: true, Value: func(m client.Mover) string { return sizeOf(m.SentBytes) }},
				{Header: "SOURCE", Wide: true, Value: func(m client.Mover) string { return m.Source }},
				{Header: "CERTIFICATE", Wide: true, Value: func(m client.Mover) string { return output.Time(m.CertificateEndsAt, a.Location) }},
			})
		}),
	}
}

func rateOf(n int64) string {
	if n == 0 {
		return ""
	}
	return output.Size(n) + "/s"
}

func sizeOf(n int64) string {
	if n == 0 {
		return ""
	}
	return output.Size(n)
}

// versionOf is a mover's version, and whether the appliance has another one.
func versionOf(m client.Mover) string {
	if m.Outdated {
		return m.Version + " (not the appliance's)"
	}
	return m.Version
}

// limitsOf says what a mover may use now.
func limitsOf(m client.Mover) string {
	var out []string
	if m.ReadLimit > 0 {
		out = append(out, rateOf(m.ReadLimit)+" of disks")
	}
	if m.NetworkLimit > 0 {
		out = append(out, rateOf(m.NetworkLimit)+" of network")
	}
	return strings.Join(out, ", ")
}

// networkOf says what went over the network between a mover and the appliance.
func networkOf(m client.Mover) string {
	if m.ReceivedBytes == 0 && m.SentBytes == 0 {
		return ""
	}
	return fmt.Sprintf("%s received from it, %s sent to it since the appliance was started", output.Size(m.ReceivedBytes), output.Size(m.SentBytes))
}

func mountsOf(m client.Mover) string {
	var out []string
	for _, x := range m.Mounts {
		out = append(out, x.Path+" ("+x.StoreID+")")
	}
	return strings.Join(out, ", ")
}

func (a *App) moverShow() *cobra.Command {
	return a.onMover("show NAME", "Show a mover", func(_ context.Context, _ *remote.Session, m client.Mover) error {
		return a.showMover(m)
	})
}

func (a *App) showMover(m client.Mover) error {
	return a.one(m, m.Name, func(p output.Printer, w io.Writer) error {
		memory := ""
		if m.MemoryBytes > 0 {
			memory = output.Size(m.MemoryBytes)
		}
		return p.Fields(w, []output.Field{
			{Name: "Name", Value: m.Name},
			{Name: "ID", Value: m.ID},
			{Name: "State", Value: string(m.State), State: true},
			{Name: "Transfers", Value: fmt.Sprintf("%d of %d at once", m.Transfers, m.Slots)},
			{Name: "Rate", Value: rateOf(m.Rate)},
			{Name: "Limits now", Value: limitsOf(m)},
			{Name: "Network", Value: networkOf(m)},
			{Name: "Transports", Value: strings.Join(m.Transports, ", ")},
			{Name: "Repositories mounted", Value: mountsOf(m)},
			{Name: "Version", Value: versionOf(m)},
			{Name: "Host", Value: m.Hostname},
			{Name: "CPUs", Value: countOf(m.CPUs)},
			{Name: "Memory", Value: memory},
			{Name: "Machine", Value: m.MachineUUID},
			{Name: "Deployed on", Value: m.DeployedOn},
			{Name: "Source", Value: m.Source},
			{Name: "Enrolled", Value: a.when(m.EnrolledAt)},
			{Name: "Connected", Value: a.when(m.ConnectedAt)},
			{Name: "Seen", Value: a.when(m.LastSeenAt)},
			{Name: "Revoked", Value: a.when(m.RevokedAt)},
			{Name: "Certificate until", Value: exactly(m.CertificateEndsAt, a.Location)},
		}...)
	})
}

func countOf(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func exactly(t time.Time, l *time.Location) string {
	if t.IsZero() {
		return ""
	}
	return output.Time(t, l)
}

func (a *App) moverDrain() *cobra.Command {
	var wait bool
	cmd := a.onMover("drain NAME", "Give a mover no more transfers; those under way go on", func(ctx context.Context, s *remote.Session, m client.Mover) error {
		resp, err := s.DrainMover(ctx, m.ID)
		if m, err = remote.Decode[client.Mover](s, resp, err); err != nil {
			return err
		}
		for wait && m.State == client.MoverDraining {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
			}
			resp, err := s.GetMover(ctx, m.ID)
			if m, err = remote.Decode[client.Mover](s, resp, err); err != nil {
				return err
			}
		}
		return a.showMover(m)
	})
	cmd.Long = "Give a mover no more transfers; those under way go on. To upgrade a mover: drain it with --wait, put the new program or\n" +
		"image in its place and start it with the state it has, then resume it. One that has lost its state, such as a machine\n" +
		"that was deployed anew, enrols with a token of `cairn mover token --name NAME --replace`."
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it has no transfers left")
	return cmd
}

func (a *App) moverResume() *cobra.Command {
	return a.onMover("resume NAME", "Give a drained mover transfers again", func(ctx context.Context, s *remote.Session, m client.Mover) error {
		resp, err := s.ResumeMover(ctx, m.ID)
		if m, err = remote.Decode[client.Mover](s, resp, err); err != nil {
			return err
		}
		return a.showMover(m)
	})
}

func (a *App) moverRevoke() *cobra.Command {
	return a.onMover("revoke NAME", "Make a mover's certificates worthless, at once", func(ctx context.Context, s *remote.Session, m client.Mover) error {
		if err := a.Confirm(ctx, "Revoke the mover %q? Its %s will fail.", m.Name, plural(m.Transfers, "transfer")); err != nil {
			return err
		}
		resp, err := s.RevokeMover(ctx, m.ID)
		if m, err = remote.Decode[client.Mover](s, resp, err); err != nil {
			return err
		}
		return a.showMover(m)
	})
}

func (a *App) moverRemove() *cobra.Command {
	cmd := a.onMover("remove NAME", "Remove a mover, with its VM if that was deployed", func(ctx context.Context, s *remote.Session, m client.Mover) error {
		question := "Forget the mover %q?"
		if m.DeployedOn != "" {
			question = "Remove the mover %q and its VM?"
		}
		if err := a.Confirm(ctx, question, m.Name); err != nil {
			return err
		}
		resp, err := s.RemoveMover(ctx, m.ID, nil)
		return remote.Done(s, resp, err)
	})
	cmd.Aliases = []string{"rm"}
	return cmd
}

// onMover is a command about one mover, named by id or name.
func (a *App) onMover(use, short string, do func(context.Context, *remote.Session, client.Mover) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args("NAME"), ValidArgsFunction: a.completeMovers,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			m, err := findMover(ctx, s, args[0])
			if err != nil {
				return err
			}
			return do(ctx, s, m)
		}),
	}
}

func (a *App) audit() *cobra.Command {
	group := a.group("audit", "Who did, or was refused, what", "")
	var limit int
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the audit log, the newest first", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			all, err := newest(limit, func(limit int, token *string) ([]client.AuditEntry, string, error) {
				resp, err := s.ListAudit(ctx, &client.ListAuditParams{Limit: &limit, PageToken: token})
				l, err := remote.Decode[client.AuditList](s, resp, err)
				return l.Items, l.Next, err
			})
			if err != nil {
				return err
			}
			return output.List(a.Printer(), all, func(e client.AuditEntry) string { return e.ID }, "Nothing yet.", []output.Column[client.AuditEntry]{
				{Header: "TIME", Value: func(e client.AuditEntry) string { return output.Time(e.Time, a.Location) }},
				{Header: "WHO", Value: func(e client.AuditEntry) string { return e.Actor }},
				{Header: "FROM", Value: func(e client.AuditEntry) string { return e.Source }},
				{Header: "ACTION", Value: func(e client.AuditEntry) string { return e.Action }},
				{Header: "SUBJECT", Value: func(e client.AuditEntry) string { return e.Subject }},
				{Header: "OUTCOME", State: true, Value: outcome},
				{Header: "DETAIL", Value: func(e client.AuditEntry) string { return e.Detail }},
				{Header: "HASH", Wide: true, Value: func(e client.AuditEntry) string { return e.Hash }},
			})
		}),
	}
	list.Flags().IntVar(&limit, "limit", 50, "at most `N`; 0 for all")
	group.AddCommand(list)
	return group
}

func outcome(e client.AuditEntry) string {
	if e.Refused {
		return "refused"
	}
	return "done"
}
