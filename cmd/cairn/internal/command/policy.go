package command

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) policies() *cobra.Command {
	group := a.group("policy", "Which VMs are backed up by themselves, when, and how long restore points stay", "")
	group.AddCommand(a.policyList(), a.policyShow(), a.policyCreate(), a.policyEdit(), a.policyPause(), a.policyResume(), a.policyRun(),
		a.policyPreview(), a.policyTurns(), a.policyRemove())
	return group
}

func listPolicies(ctx context.Context, s *remote.Session) ([]client.Policy, error) {
	resp, err := s.ListPolicies(ctx)
	l, err := remote.Decode[client.PolicyList](s, resp, err)
	return l.Items, err
}

// findPolicy accepts an id or a name.
func findPolicy(ctx context.Context, s *remote.Session, arg string) (client.Policy, error) {
	all, err := listPolicies(ctx, s)
	if err != nil {
		return client.Policy{}, err
	}
	return pick("policy", arg, all, func(p client.Policy) (string, string, string) { return p.ID, p.Name, p.Filter })
}

func (a *App) completePolicies(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, func(ctx context.Context, s *remote.Session) ([]string, error) {
		all, err := listPolicies(ctx, s)
		var offers []string
		for _, p := range all {
			offers = append(offers, choice(p.Name, p.Filter))
		}
		return offers, err
	})
}

func (a *App) policyList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List policies", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			all, err := listPolicies(ctx, s)
			if err != nil {
				return err
			}
			return output.List(a.Printer(), all, func(p client.Policy) string { return p.Name },
				"No policies. Make one with \"cairn policy create NAME\".", []output.Column[client.Policy]{
					{Header: "NAME", Value: func(p client.Policy) string { return p.Name }},
					{Header: "VMS", Right: true, Value: func(p client.Policy) string { return strconv.Itoa(p.VMs) }},
					{Header: "SCHEDULE", Value: scheduleOf},
					{Header: "NEXT", Value: a.nextDue},
					{Header: "KEEP", Value: func(p client.Policy) string { return keepOf(p.Retention) }},
					{Header: "RPO", Right: true, Value: func(p client.Policy) string { return span(p.RPOSeconds) }},
					{Header: "NOW", Value: turnsNow},
					{Header: "PRIORITY", Wide: true, Right: true, Value: func(p client.Policy) string { return strconv.Itoa(p.Priority) }},
					{Header: "FILTER", Wide: true, Value: func(p client.Policy) string { return p.Filter }},
					{Header: "ID", Wide: true, Value: func(p client.Policy) string { return p.ID }},
				})
		}),
	}
}

func scheduleOf(p client.Policy) string { return p.Schedule + " " + p.TimeZone }

func (a *App) nextDue(p client.Policy) string {
	if p.Paused {
		return "paused"
	}
	if len(p.NextDue) == 0 {
		return "never"
	}
	return output.Time(p.NextDue[0], a.Location)
}

func turnsNow(p client.Policy) string {
	var parts []string
	if p.Running > 0 {
		parts = append(parts, fmt.Sprintf("%d running", p.Running))
	}
	if p.Waiting > 0 {
		parts = append(parts, fmt.Sprintf("%d waiting", p.Waiting))
	}
	return strings.Join(parts, ", ")
}

func (a *App) policyShow() *cobra.Command {
	return &cobra.Command{
		Use: "show POLICY", Short: "Show a policy, when it is due, and how its last turns ended", Args: args("POLICY"), ValidArgsFunction: a.completePolicies,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			p, err := findPolicy(ctx, s, args[0])
			if err != nil {
				return err
			}
			var turns []client.Turn
			var vms, repository string
			if a.Format().Human() {
				if repository, err = repositoryName(ctx, s, p.RepositoryID); err != nil {
					return err
				}
				if vms, err = coveredOf(ctx, s, p); err != nil {
					return err
				}
				if turns, err = lastTurns(ctx, s, p.ID, client.ListTurnsParams{Limit: ref(10)}); err != nil {
					return err
				}
			}
			return a.one(p, p.Name, func(pr output.Printer, w io.Writer) error {
				if err := a.policyPage(pr, w, p, vms, repository); err != nil {
					return err
				}
				return output.Section(pr, w, "Last turns", turns, a.turnColumns())
			})
		}),
	}
}

// coveredOf says how many VMs a policy covers, and of how many that its filter selects: the others are excluded, cannot be backed up, or
// another policy goes before it.
func coveredOf(ctx context.Context, s *remote.Session, p client.Policy) (string, error) {
	resp, err := s.ListVMs(ctx, &client.ListVMsParams{Filter: &p.Filter, Limit: ref(1), IncludeTotal: ref(true)})
	l, err := remote.Decode[client.VMList](s, resp, err)
	if err != nil {
		return "", err
	}
	if l.Total == nil || *l.Total <= p.VMs {
		return strconv.Itoa(p.VMs), nil
	}
	return fmt.Sprintf("%d of %d that its filter selects; \"cairn vm show VM\" says why it does not cover another", p.VMs, *l.Total), nil
}

func (a *App) policyPage(pr output.Printer, w io.Writer, p client.Policy, vms, repository string) error {
	var next []string
	for _, t := range p.NextDue {
		next = append(next, output.Time(t, a.Location))
	}
	if len(next) == 0 && !p.Paused {
		next = []string{"never, its schedule is over"}
	}
	rpo := span(p.RPOSeconds)
	switch {
	case p.RPODerived && p.RPOSeconds == 0:
		rpo = "none, the schedule has no two instants to come: its VMs count as late; --rpo sets one"
	case p.RPODerived:
		rpo += ", from the schedule"
	}
	missed := "begin as soon as they can, until the next"
	if p.Missed == client.MissedSkip {
		missed = "are reported when they cannot begin within " + span(p.WithinSeconds)
	}
	fields := []output.Field{
		{Name: "Name", Value: p.Name},
		{Name: "ID", Value: p.ID},
		{Name: "Paused", Value: map[bool]string{true: "yes, it is never due"}[p.Paused]},
		{Name: "Filter", Value: p.Filter},
		{Name: "VMs", Value: vms},
		{Name: "Priority", Value: strconv.Itoa(p.Priority)},
		{Name: "Schedule", Value: scheduleOf(p)},
		{Name: "Due next", Value: strings.Join(next, ", ")},
		{Name: "Windows", Value: strings.Join(p.Windows, "; ")},
		{Name: "Late turns", Value: missed},
		{Name: "RPO", Value: rpo},
		{Name: "Keeps", Value: keepOf(p.Retention)},
		{Name: "Repository", Value: repository},
		{Name: "Attempts", Value: fmt.Sprintf("%d, the second after %s", p.Retries+1, span(p.BackoffSeconds))},
		{Name: "Tasks at once", Value: tasksAtOnce(p.Limits)},
		{Name: "Quiesce", Value: string(p.Quiesce)},
		{Name: "Left out", Value: strings.Join(p.ExcludeDisks, ", ")},
		{Name: "Mover", Value: p.Mover},
		{Name: "Transport", Value: p.Transport},
		{Name: "Turns now", Value: turnsNow(p)},
		{Name: "Changed", Value: strings.TrimSpace(a.when(p.UpdatedAt) + " " + p.UpdatedBy)},
	}
	if m := p.LastMissed; !m.Due.IsZero() {
		fields = append(fields, output.Field{Name: "Last missed", Value: output.Time(m.Due, a.Location) + ": " + m.Reason})
	}
	return pr.Fields(w, fields...)
}

func tasksAtOnce(l client.PolicyLimits) string {
	var out []string
	for _, one := range []struct {
		name string
		n    int
	}{{"connection", l.Connection}, {"host", l.Host}, {"datastore", l.Datastore}} {
		if one.n > 0 {
			out = append(out, fmt.Sprintf("%d each %s", one.n, one.name))
		}
	}
	return strings.Join(out, ", ")
}

func lastTurns(ctx context.Context, s *remote.Session, policy string, filter client.ListTurnsParams) ([]client.Turn, error) {
	resp, err := s.ListTurns(ctx, policy, &filter)
	l, err := remote.Decode[client.TurnList](s, resp, err)
	return l.Items, err
}

func (a *App) turnColumns() []output.Column[client.Turn] {
	return []output.Column[client.Turn]{
		{Header: "DUE", Value: func(t client.Turn) string { return output.Time(t.Due, a.Location) }},
		{Header: "VM", Value: func(t client.Turn) string { return t.VMName }},
		{Header: "STATE", State: true, Value: func(t client.Turn) string { return string(t.State) }},
		{Header: "ATTEMPT", Right: true, Value: func(t client.Turn) string { return countOf(t.Attempt) }},
		{Header: "RUN", Value: func(t client.Turn) string { return t.RunID }},
		{Header: "ENDED", Wide: true, Value: func(t client.Turn) string { return output.Time(t.EndedAt, a.Location) }},
		{Header: "WHY", Value: func(t client.Turn) string { return t.Reason }},
	}
}

func (a *App) policyTurns() *cobra.Command {
	var state, vm string
	states := []string{"waiting", "running", "done", "failed", "missed", "cancelled"}
	cmd := &cobra.Command{
		Use: "turns POLICY", Short: "List the turns that VMs had", Args: args("POLICY"), ValidArgsFunction: a.completePolicies,
		Long: "List the turns that VMs had when the policy was due, the newest first, with what became of each and why.",
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			p, err := findPolicy(ctx, s, args[0])
			if err != nil {
				return err
			}
			var filter client.ListTurnsParams
			if state != "" {
				filter.State = ref(client.TurnState(state))
			}
			if vm != "" {
				found, err := findVM(ctx, s, vm)
				if err != nil {
					return err
				}
				filter.VM = &found.ID
			}
			all, err := remote.All(func(token *string) ([]client.Turn, string, error) {
				filter.Limit, filter.PageToken = ref(page), token
				resp, err := s.ListTurns(ctx, p.ID, &filter)
				l, err := remote.Decode[client.TurnList](s, resp, err)
				return l.Items, l.Next, err
			})
			if err != nil {
				return err
			}
			return output.List(a.Printer(), all, func(t client.Turn) string { return t.ID }, "No turns.", a.turnColumns())
		}),
	}
	cmd.Flags().StringVar(&state, "state", "", "only turns in this `STATE`: "+strings.Join(states, ", "))
	cmd.Flags().StringVar(&vm, "vm", "", "only turns of this `VM`")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(slices.Clone(states), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("vm", a.completeVMs)
	return cmd
}
