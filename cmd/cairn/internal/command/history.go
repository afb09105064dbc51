package command

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) coverageHistory() *cobra.Command {
	var since, until, filter string
	cmd := &cobra.Command{
		Use: "history [VM]", Short: "Which RPO was achieved, day by day", Args: args("[VM]"), ValidArgsFunction: a.completeVMs,
		Long: `Show, day by day (UTC), how much of the time promises were kept: of one VM, of those that a filter selects, or of all. What
was pruned since changes nothing in it. The last day goes until now.`,
		Example: `  cairn coverage history --since 90d
  cairn coverage history web01 --since 2026-10-01 --until 2026-10-31`,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			var params client.CoverageHistoryParams
			if len(args) == 1 {
				vm, err := findVM(ctx, s, args[0])
				if err != nil {
					return err
				}
				params.VMID = &vm.ID
			}
			if filter != "" {
				params.Filter = &filter
			}
			var err error
			if params.Since, err = dayFlag("since", since); err != nil {
				return err
			}
			if params.Until, err = dayFlag("until", until); err != nil {
				return err
			}
			resp, err := s.CoverageHistory(ctx, &params)
			h, err := remote.Decode[client.CoverageHistory](s, resp, err)
			if err != nil {
				return err
			}
			return output.List(a.Printer(), h.Items, func(d client.CoverageDay) string { return d.Date }, "Nothing is known of these days.", historyColumns(len(args) == 1))
		}),
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "", "the first `DAY`, as 2026-10-01, or so many days before today, as 90d; 30 days when left out")
	f.StringVar(&until, "until", "", "the last `DAY`; today when left out")
	f.StringVar(&filter, "filter", "", "only VMs that this filter selects, for example `'cluster = prod'`")
	return cmd
}

// dayFlag is a day, or one so many days ago.
func dayFlag(name, text string) (*string, error) {
	if text == "" {
		return nil, nil
	}
	day := text
	if n := len(text) - 1; text[n] == 'd' {
		days, err := strconv.Atoi(text[:n])
		if err != nil || days < 0 || days > 10_000 {
			return nil, failure.UsageError("Write it as 2026-10-01, or as 90d.", "--%s %q is no day", name, text)
		}
		day = time.Now().UTC().AddDate(0, 0, -days).Format(time.DateOnly)
	}
	if _, err := time.Parse(time.DateOnly, day); err != nil {
		return nil, failure.UsageError("Write it as 2026-10-01, or as 90d.", "--%s %q is no day", name, text)
	}
	return &day, nil
}

func historyColumns(one bool) []output.Column[client.CoverageDay] {
	type day = client.CoverageDay
	out := []output.Column[day]{
		{Header: "DAY", Value: func(d day) string { return d.Date }},
		{Header: "KEPT", Right: true, Value: attained},
		{Header: "LATE", Right: true, Value: func(d day) string { return span(d.LateSeconds) }},
		{Header: "WORST RPO", Right: true, Value: func(d day) string { return span(d.RPOWorstSeconds) }},
	}
	if one {
		out = append(out, output.Column[day]{Header: "PROMISED", Right: true, Value: func(d day) string { return span(d.RPOTargetSeconds) }})
	} else {
		out = append(out, output.Column[day]{Header: "VMS", Right: true, Value: func(d day) string { return strconv.Itoa(d.VMs) }},
			output.Column[day]{Header: "OF THEM LATE", Right: true, Value: func(d day) string { return strconv.Itoa(d.VMsLate) }})
	}
	return append(out, output.Column[day]{Header: "RESTORE POINTS", Right: true, Value: func(d day) string { return strconv.Itoa(d.RestorePoints) }})
}

// attained never rounds up to all of the time.
func attained(d client.CoverageDay) string {
	if d.CoveredSeconds == 0 {
		return ""
	}
	if d.LateSeconds == 0 {
		return "100 %"
	}
	return fmt.Sprintf("%.1f %%", min(99.9, 100*d.Attained))
}
