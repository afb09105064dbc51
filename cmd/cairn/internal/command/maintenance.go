package command

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) maintenance() *cobra.Command {
	group := a.group("maintenance", "What the appliance does by itself to stay in order", "")
	group.AddCommand(a.maintenanceList(), a.maintenanceShow(), a.maintenanceSet(), a.maintenanceRun())
	return group
}

var maintenanceKinds = []string{"inventory", "verify", "prune", "collect", "sweep", "reread"}

func (a *App) maintenanceList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List maintenance, when it is due, and how the last one went", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			resp, err := s.ListMaintenance(ctx)
			l, err := remote.Decode[client.MaintenanceList](s, resp, err)
			if err != nil {
				return err
			}
			return output.List(a.Printer(), l.Items, func(m client.Maintenance) string { return m.Kind }, "No maintenance.", []output.Column[client.Maintenance]{
				{Header: "KIND", Value: func(m client.Maintenance) string { return m.Kind }},
				{Header: "SCHEDULE", Value: func(m client.Maintenance) string { return m.Schedule + " " + m.TimeZone }},
				{Header: "WINDOWS", Value: func(m client.Maintenance) string { return strings.Join(m.Windows, "; ") }},
				{Header: "BUDGET", Right: true, Value: func(m client.Maintenance) string { return sizeOrNone(m.BudgetBytes) }},
				{Header: "NEXT", Value: a.maintenanceNext},
				{Header: "LAST", Value: func(m client.Maintenance) string { return output.Time(m.LastStartedAt, a.Location) }},
				{Header: "RESULT", Value: maintenanceResult},
			})
		}),
	}
}

func (a *App) maintenanceNext(m client.Maintenance) string {
	switch {
	case m.Busy:
		return "under way"
	case m.Paused:
		return "paused"
	}
	return output.Time(m.NextAt, a.Location)
}

func maintenanceResult(m client.Maintenance) string {
	return strings.TrimPrefix(m.LastResult+failedWords(m.LastError), "; ")
}

func (a *App) completeMaintenance(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return maintenanceKinds, cobra.ShellCompDirectiveNoFileComp
}

func (a *App) maintenanceSet() *cobra.Command {
	var schedule, zone, budget string
	var windows []string
	var paused bool
	cmd := &cobra.Command{
		Use: "set KIND", Short: "Change when maintenance is due", Args: args("KIND"), ValidArgsFunction: a.completeMaintenance,
		Long: "Change when maintenance is due: " + strings.Join(maintenanceKinds, ", ") + ". What was due while its window was closed is done when it opens.\n" +
			"How often each repository is read back, and how fast, says \"cairn repository set\".",
		Example: `  cairn maintenance set collect --schedule 'Sat 06:00' --zone Europe/Zurich
  cairn maintenance set verify --window 08:00-18:00 --budget 500G
  cairn maintenance set prune --window 'Sat,Sun 00:00-24:00' --budget 2T
  cairn maintenance set inventory --schedule '*:0/5'`,
	}
	cmd.RunE = a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
		resp, err := s.GetMaintenance(ctx, args[0])
		m, err := remote.Decode[client.Maintenance](s, resp, err)
		if err != nil {
			return err
		}
		req := client.MaintenanceRequest{Schedule: m.Schedule, TimeZone: m.TimeZone, Windows: m.Windows, Paused: m.Paused, BudgetBytes: m.BudgetBytes}
		given := cmd.Flags().Changed
		if cmd.Flags().NFlag() == 0 {
			return failure.UsageError("See --help.", "nothing was said to change")
		}
		if given("schedule") {
			req.Schedule = schedule
		}
		if given("zone") {
			req.TimeZone = zone
		}
		if given("paused") {
			req.Paused = paused
		}
		if given("budget") {
			if req.BudgetBytes, err = output.ParseSize(budget); err != nil {
				return err
			}
		}
		if given("window") {
			req.Windows = nil
			for _, w := range windows {
				if w != "" {
					req.Windows = append(req.Windows, w)
				}
			}
		}
		resp, err = s.ReplaceMaintenance(ctx, args[0], nil, req)
		if m, err = remote.Decode[client.Maintenance](s, resp, err); err != nil {
			return err
		}
		return a.showMaintenance(m)
	})
	f := cmd.Flags()
	f.StringVar(&schedule, "schedule", "", "when it is due, for example `'Sat 06:00'`")
	f.StringVar(&zone, "zone", "", "on whose clocks, for example `Europe/Zurich`")
	f.StringArrayVar(&windows, "window", nil, "it begins only in it, for example `08:00-18:00`; may be repeated, '' for always")
	f.StringVar(&budget, "budget", "", "of verify: how much one verification reads; of prune: how much the restore points that one lets go had stored; of collect: how much one moves out of sparse packs; of reread: how much one reads of a repository; `SIZE` such as 500G")
	f.BoolVar(&paused, "paused", false, "never do it; --paused=false ends that")
	return cmd
}

func (a *App) maintenanceShow() *cobra.Command {
	return &cobra.Command{
		Use: "show KIND", Short: "Show a kind of maintenance, and how the last one went by repository or connection", Args: args("KIND"), ValidArgsFunction: a.completeMaintenance,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			resp, err := s.GetMaintenance(ctx, args[0])
			m, err := remote.Decode[client.Maintenance](s, resp, err)
			if err != nil {
				return err
			}
			return a.showMaintenance(m)
		}),
	}
}

func (a *App) maintenanceRun() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "run KIND", Short: "Do maintenance now", Args: args("KIND"), ValidArgsFunction: a.completeMaintenance,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			resp, err := s.RunMaintenance(ctx, args[0])
			m, err := remote.Decode[client.Maintenance](s, resp, err)
			if err != nil {
				return err
			}
			if wait {
				return a.maintained(ctx, s, m)
			}
			return a.showMaintenance(m)
		}),
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait for the end, of the runs that it begins, too; the exit code says how it ended")
	return cmd
}

// maintained waits until maintenance and the runs that it has begun are over, and shows how it went.
func (a *App) maintained(ctx context.Context, s *remote.Session, m client.Maintenance) error {
	ask := func() (err error) {
		resp, err := s.GetMaintenance(ctx, m.Kind)
		m, err = remote.Decode[client.Maintenance](s, resp, err)
		return err
	}
	for m.Busy {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(a.poll):
		}
		if err := ask(); err != nil {
			return err
		}
	}
	var runs []client.Run
	failed := m.LastError.Detail != "" // of the manager that ended last
	for _, part := range m.LastParts {
		switch {
		case part.At.Before(m.LastStartedAt):
		case part.RunID != "":
			runs = append(runs, client.Run{ID: part.RunID, State: client.StateQueued})
		case part.Error.Detail != "":
			failed = true
		}
	}
	runs, err := a.follow(ctx, s, runs, nil)
	if err != nil {
		return err
	}
	if err := ask(); err != nil {
		return err
	}
	if err := a.showMaintenance(m); err != nil {
		return err
	}
	if failed {
		return failure.Ended{Code: failure.Failed}
	}
	return worstOf(runs)
}

func (a *App) showMaintenance(m client.Maintenance) error {
	return a.one(m, m.Kind, func(p output.Printer, w io.Writer) error {
		err := p.Fields(w,
			output.Field{Name: "Kind", Value: m.Kind},
			output.Field{Name: "Schedule", Value: m.Schedule + " " + m.TimeZone},
			output.Field{Name: "Windows", Value: strings.Join(m.Windows, "; ")},
			output.Field{Name: "Budget", Value: sizeOrNone(m.BudgetBytes)},
			output.Field{Name: "Next", Value: a.maintenanceNext(m)},
			output.Field{Name: "Last", Value: output.Time(m.LastStartedAt, a.Location)},
			output.Field{Name: "Result", Value: maintenanceResult(m)},
		)
		if err != nil || len(m.LastParts) == 0 {
			return err
		}
		return output.Section(p, w, "How the last one went", m.LastParts, []output.Column[client.MaintenancePart]{
			{Header: "NAME", Value: func(part client.MaintenancePart) string { return part.Name }},
			{Header: "AT", Value: func(part client.MaintenancePart) string { return output.Time(part.At, a.Location) }},
			{Header: "RUN", Value: func(part client.MaintenancePart) string { return part.RunID }},
			{Header: "STATE", Value: func(part client.MaintenancePart) string { return string(part.State) }},
			{Header: "RESULT", Value: func(part client.MaintenancePart) string {
				return strings.TrimPrefix(part.Result+failedWords(part.Error), "; ")
			}},
		})
	})
}

func failedWords(f client.Failure) string {
	if f.Detail == "" {
		return ""
	}
	return "; failed: " + f.Detail
}
