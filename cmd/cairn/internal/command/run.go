package command

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
	"github.com/cairn-backup/cairn/internal/fault"
)

var (
	states = []string{"queued", "running", "succeeded", "warning", "failed", "cancelled"}
	kinds  = []string{"backup", "restore", "verify", "prune", "collect", "heal", "scrub", "rebuild", "reread", "deploy"}
)

// restoreRun reads the answer of a restore: a run while it goes on, or an outcome that holds it.
func restoreRun(s *remote.Session, resp *http.Response, err error) (client.Run, error) {
	if err == nil && resp.StatusCode == http.StatusOK {
		outcome, err := remote.Decode[client.RestoreOutcome](s, resp, err)
		return outcome.Run, err
	}
	return remote.Decode[client.Run](s, resp, err)
}

func (a *App) runs() *cobra.Command {
	group := a.group("run", "What is going on and what went on", "")
	group.AddCommand(a.runList(), a.runShow(), a.runWatch(), a.runCancel())
	return group
}

// activity are the filters of run list and task list.
type activity struct {
	state, kind, vm string
	limit           int
	watch           bool
}

func (x *activity) flags(a *App, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&x.state, "state", "", "only in this `STATE`: "+strings.Join(states, ", "))
	f.StringVar(&x.vm, "vm", "", "only for this `VM`")
	f.IntVar(&x.limit, "limit", 50, "at most `N`, the newest; 0 for all")
	f.BoolVarP(&x.watch, "watch", "w", false, "list again whenever something may have changed")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("vm", a.completeVMs)
}

// newest reads pages until there are limit items.
func newest[T any](limit int, fetch func(limit int, token *string) ([]T, string, error)) ([]T, error) {
	size := page
	if limit > 0 {
		size = min(limit, page)
	}
	got := 0
	all, err := remote.All(func(token *string) ([]T, string, error) {
		items, next, err := fetch(size, token)
		if got += len(items); limit > 0 && got >= limit {
			next = ""
		}
		return items, next, err
	})
	if limit > 0 && len(all) > limit {
		all = all[:limit]
	}
	return all, err
}

func optional[T ~string](s string) *T {
	if s == "" {
		return nil
	}
	return ref(T(s))
}

// vmID turns the --vm flag into an id.
func (x *activity) vmID(ctx context.Context, s *remote.Session) (*string, error) {
	if x.vm == "" {
		return nil, nil
	}
	vm, err := findVM(ctx, s, x.vm)
	return &vm.ID, err
}

func (a *App) runList() *cobra.Command {
	var x activity
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List runs, the newest first", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			vm, err := x.vmID(ctx, s)
			if err != nil {
				return err
			}
			return a.watch(ctx, x.watch, func(w io.Writer) error {
				all, err := newest(x.limit, func(limit int, token *string) ([]client.Run, string, error) {
					resp, err := s.ListRuns(ctx, &client.ListRunsParams{
						State: optional[client.State](x.state), Kind: optional[client.RunKind](x.kind), VM: vm, Limit: &limit, PageToken: token,
					})
					l, err := remote.Decode[client.RunList](s, resp, err)
					return l.Items, l.Next, err
				})
				if err != nil {
					return err
				}
				names, err := repositoryNames(ctx, s, all)
				if err != nil {
					return err
				}
				p := a.Printer()
				p.Out = w
				return output.List(p, all, func(r client.Run) string { return r.ID }, "No runs.", a.runColumns(names))
			})
		}),
	}
	x.flags(a, cmd)
	cmd.Flags().StringVar(&x.kind, "kind", "", "only of this `KIND`: "+strings.Join(kinds, ", "))
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kinds, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// repositoryNames returns the names of the repositories that runs with no VM are about, by id. Somebody who may not see
// repositories is shown their ids.
func repositoryNames(ctx context.Context, s *remote.Session, runs []client.Run) (map[string]string, error) {
	if !slices.ContainsFunc(runs, func(r client.Run) bool { return runVMs(r) == "" && len(runRepositories(r, nil)) > 0 }) {
		return nil, nil
	}
	all, err := listRepositories(ctx, s)
	if err != nil && fault.KindOf(err) != fault.Denied {
		return nil, err
	}
	names := map[string]string{}
	for _, r := range all {
		names[r.ID] = r.Name
	}
	return names, nil
}

// repositoryName is the name of a repository, or its id where it is not known.
func repositoryName(ctx context.Context, s *remote.Session, id string) (string, error) {
	all, err := listRepositories(ctx, s)
	if err != nil && fault.KindOf(err) != fault.Denied {
		return "", err
	}
	for _, r := range all {
		if r.ID == id {
			return r.Name, nil
		}
	}
	return id, nil
}

// runColumns takes the names of repositories by id.
func (a *App) runColumns(names map[string]string) []output.Column[client.Run] {
	return []output.Column[client.Run]{
		{Header: "RUN", Value: func(r client.Run) string { return r.ID }},
		{Header: "KIND", Value: func(r client.Run) string { return string(r.Kind) }},
		{Header: "SUBJECT", Value: func(r client.Run) string { return cmp.Or(runVMs(r), runRepositories(r, names)) }},
		{Header: "STATE", State: true, Value: func(r client.Run) string { return string(r.State) }},
		{Header: "PROGRESS", Right: true, Value: runPercent},
		{Header: "AGE", Right: true, Value: func(r client.Run) string { return a.age(r.CreatedAt) }},
		{Header: "TOOK", Right: true, Value: func(r client.Run) string { return a.took(r) }},
		{Header: "BY", Wide: true, Value: func(r client.Run) string { return r.RequestedBy }},
		{Header: "CREATED", Wide: true, Value: func(r client.Run) string { return output.Time(r.CreatedAt, a.Location) }},
	}
}

func runPercent(r client.Run) string {
	if r.State == client.StateQueued {
		return ""
	}
	var done, total int64
	for _, t := range r.Tasks {
		done, total = done+t.Progress.BytesScanned, total+t.Progress.BytesTotal
	}
	return percent(done, total)
}

func percent(done, total int64) string {
	if total <= 0 {
		return ""
	}
	return fmt.Sprintf("%d%%", min(int64(float64(done)/float64(total)*100), 100))
}

func (a *App) took(r client.Run) string {
	if r.StartedAt.IsZero() {
		return ""
	}
	end := r.EndedAt
	if end.IsZero() {
		end = a.Now()
	}
	return output.Duration(max(end.Sub(r.StartedAt), 0))
}

func (a *App) runShow() *cobra.Command {
	return &cobra.Command{
		Use: "show RUN", Short: "Show a run with its tasks and what happened", Args: args("RUN"), ValidArgsFunction: a.completeRuns,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			resp, err := s.GetRun(ctx, args[0])
			r, err := remote.Decode[client.Run](s, resp, err)
			if err != nil {
				return err
			}
			var events []client.RunEvent
			if a.Format().Human() {
				if events, err = listRunEvents(ctx, s, r.ID); err != nil {
					return err
				}
			}
			return a.one(r, r.ID, func(p output.Printer, w io.Writer) error { return a.runPage(p, w, r, events) })
		}),
	}
}

func listRunEvents(ctx context.Context, s *remote.Session, id string) ([]client.RunEvent, error) {
	return remote.All(func(token *string) ([]client.RunEvent, string, error) {
		resp, err := s.ListRunEvents(ctx, id, &client.ListRunEventsParams{Limit: ref(page), PageToken: token})
		l, err := remote.Decode[client.RunEventList](s, resp, err)
		return l.Items, l.Next, err
	})
}

func (a *App) runPage(p output.Printer, w io.Writer, r client.Run, events []client.RunEvent) error {
	cancelled := ""
	for _, t := range r.Tasks {
		if t.CancelRequested && !ended(r) {
			cancelled = "asked for; it is cleaning up"
		}
	}
	err := p.Fields(w,
		output.Field{Name: "Run", Value: r.ID},
		output.Field{Name: "Kind", Value: string(r.Kind)},
		output.Field{Name: "State", Value: string(r.State), State: true},
		output.Field{Name: "Cancel", Value: cancelled},
		output.Field{Name: "Asked for by", Value: r.RequestedBy},
		output.Field{Name: "Created", Value: a.when(r.CreatedAt)},
		output.Field{Name: "Took", Value: a.took(r)})
	if err != nil {
		return err
	}
	for _, t := range r.Tasks {
		if _, err := io.WriteString(w, "\n"); err != nil {
			return err
		}
		if err := a.taskPage(p, w, t); err != nil {
			return err
		}
	}
	return output.Section(p, w, "What happened", events, a.eventColumns())
}

func (a *App) eventColumns() []output.Column[client.RunEvent] {
	return []output.Column[client.RunEvent]{
		{Header: "TIME", Value: func(e client.RunEvent) string { return output.Time(e.Time, a.Location) }},
		{Header: "LEVEL", State: true, Value: func(e client.RunEvent) string { return string(e.Level) }},
		{Header: "EVENT", Value: eventText},
	}
}

func eventText(e client.RunEvent) string {
	words := []string{e.Message}
	for k, v := range sorted(e.Fields) {
		if v == "" {
			continue
		}
		if n, err := strconv.ParseInt(v, 10, 64); err == nil && (k == "bytes" || strings.HasSuffix(k, "_bytes") || strings.HasPrefix(k, "bytes_")) {
			v = output.Size(n)
		}
		words = append(words, k+"="+v)
	}
	for _, more := range []string{e.Meaning, e.Advice} {
		if more != "" {
			words = append(words, more)
		}
	}
	return strings.Join(words, "  ")
}

func (a *App) runWatch() *cobra.Command {
	return &cobra.Command{
		Use: "watch RUN", Short: "Follow a run to its end; the exit code says how it ended", Args: args("RUN"), ValidArgsFunction: a.completeRuns,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			resp, err := s.GetRun(ctx, args[0])
			r, err := remote.Decode[client.Run](s, resp, err)
			if err != nil {
				return err
			}
			shown := 0
			tell := func(p *output.Progress) error {
				events, err := listRunEvents(ctx, s, r.ID)
				for ; err == nil && shown < len(events); shown++ {
					e := events[shown]
					p.Message("%s  %-7s  %s", output.Time(e.Time, a.Location), e.Level, output.Printable(eventText(e)))
				}
				return err
			}
			runs, err := a.follow(ctx, s, []client.Run{r}, tell)
			if err != nil {
				return err
			}
			return a.outcome(runs)
		}),
	}
}

func (a *App) runCancel() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "cancel RUN...", Short: "Stop runs; they clean up behind themselves", Args: args("RUN..."), ValidArgsFunction: a.completeRuns,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			var runs []client.Run
			for _, id := range args {
				resp, err := s.CancelRun(ctx, id)
				run, err := remote.Decode[client.Run](s, resp, err)
				if err != nil {
					return err
				}
				runs = append(runs, run)
				a.Debug("asked %s to stop", id)
			}
			if !wait {
				return a.printRuns(runs)
			}
			runs, err := a.follow(ctx, s, runs, nil)
			if err != nil {
				return err
			}
			if err := a.printRuns(runs); err != nil {
				return err
			}
			for _, r := range runs {
				if r.State != client.StateCancelled {
					a.Say("Run %s had %s before it could be stopped.", r.ID, r.State)
					return failure.Ended{Code: failure.Conflict}
				}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until they have stopped")
	return cmd
}
