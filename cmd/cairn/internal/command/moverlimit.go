package command

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) moverLimits() *cobra.Command {
	group := a.group("limit", "What transfers may use", "Limits of transfers at once, and of bytes a second, for movers, links between movers and the\n"+
		"appliance, hosts and datastores. Of several that hold for the same, the lowest counts.")
	group.AddCommand(a.limitList(), a.limitAdd(), a.limitRemove())
	return group
}

func listLimits(ctx context.Context, s *remote.Session) ([]client.MoverLimit, error) {
	resp, err := s.ListMoverLimits(ctx)
	l, err := remote.Decode[client.MoverLimitList](s, resp, err)
	return l.Items, err
}

func (a *App) limitList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List limits", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			all, err := listLimits(ctx, s)
			if err != nil {
				return err
			}
			return output.List(a.Printer(), all, func(l client.MoverLimit) string { return l.ID }, "No limits but 8 transfers at once for each host and datastore.", []output.Column[client.MoverLimit]{
				{Header: "ID", Value: func(l client.MoverLimit) string { return l.ID }},
				{Header: "OF", Value: func(l client.MoverLimit) string { return string(l.Kind) }},
				{Header: "NAME", Value: func(l client.MoverLimit) string { return l.Name }},
				{Header: "TRANSFERS", Right: true, Value: func(l client.MoverLimit) string { return countOf(l.Slots) }},
				{Header: "DISKS", Right: true, Value: func(l client.MoverLimit) string { return rateOf(l.ReadBytesPerSecond) }},
				{Header: "NETWORK", Right: true, Value: func(l client.MoverLimit) string { return rateOf(l.NetworkBytesPerSecond) }},
				{Header: "WHEN", Value: whenHolds},
				{Header: "NOW", Value: func(l client.MoverLimit) string {
					if l.Holds {
						return "holds"
					}
					return ""
				}},
				{Header: "BY", Wide: true, Value: func(l client.MoverLimit) string { return l.CreatedBy }},
			})
		}),
	}
}

func whenHolds(l client.MoverLimit) string {
	when := "always"
	if l.From != "" {
		when = l.From + "-" + l.To
	}
	if len(l.Days) > 0 {
		when = strings.TrimPrefix(when+" "+strings.Join(l.Days, ","), "always ")
	}
	return when
}

func (a *App) limitAdd() *cobra.Command {
	var req client.MoverLimitRequest
	var read, network, window string
	var days []string
	kinds := []string{string(client.LimitOfMover), string(client.LimitOfLink), string(client.LimitOfHost), string(client.LimitOfDatastore)}
	cmd := &cobra.Command{
		Use: "add " + strings.Join(kinds, "|") + " NAME", Short: "Limit what transfers use", Args: args("KIND", "NAME"),
		Long: "Limit a mover, a link, a host or a datastore. * as the name stands for each that no other limit of the kind names. A\n" +
			"link is a network, such as 192.0.2.0/24: the movers with an address in it that have transfers share it in equal\n" +
			"parts. Times are those of the appliance.",
		Example: `  cairn mover limit add mover m1 --slots 2
  cairn mover limit add link 10.2.0.0/16 --network 20M --window 07:00-19:00 --days mon,tue,wed,thu,fri
  cairn mover limit add datastore fast-pool --slots 16
  cairn mover limit add mover '*' --disks 200M`,
		ValidArgs: kinds,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			req.Kind, req.Name = client.MoverLimitKind(args[0]), args[1]
			var err error
			if req.ReadBytesPerSecond, err = perSecond(read); err != nil {
				return err
			}
			if req.NetworkBytesPerSecond, err = perSecond(network); err != nil {
				return err
			}
			if window != "" {
				from, to, ok := strings.Cut(window, "-")
				if !ok {
					return failure.UsageError("Write it as 22:00-06:00.", "%q is no window", window)
				}
				req.From, req.To = from, to
			}
			for _, d := range days {
				req.Days = append(req.Days, client.MoverLimitRequestDays(strings.ToLower(d)))
			}
			resp, err := s.AddMoverLimit(ctx, nil, req)
			l, err := remote.Decode[client.MoverLimit](s, resp, err)
			if err != nil {
				return err
			}
			return a.one(l, l.ID, func(p output.Printer, w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s: %s %s, %s\n", l.ID, l.Kind, l.Name, whenHolds(l))
				return err
			})
		}),
	}
	f := cmd.Flags()
	f.IntVar(&req.Slots, "slots", 0, "`N` transfers at once")
	f.StringVar(&read, "disks", "", "`SIZE` a second from and to the platform's disks, for example 100M")
	f.StringVar(&network, "network", "", "`SIZE` a second between movers and the appliance, both ways together")
	f.StringVar(&window, "window", "", "holds only between these times of the day, `FROM-TO`, for example 22:00-06:00")
	f.StringSliceVar(&days, "days", nil, "holds only on these `DAYS`: mon,tue,wed,thu,fri,sat,sun")
	return cmd
}

// perSecond reads a rate: a size, with or without what says that it is one a second.
func perSecond(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	return output.ParseSize(strings.TrimSuffix(s, "/s"))
}

func (a *App) limitRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove ID", Aliases: []string{"rm"}, Short: "Take a limit back", Args: args("ID"), ValidArgsFunction: a.completeLimits,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			resp, err := s.RemoveMoverLimit(ctx, args[0], nil)
			return remote.Done(s, resp, err)
		}),
	}
}
