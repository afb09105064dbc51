package command

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) tasks() *cobra.Command {
	group := a.group("task", "The parts of runs, one for each VM", "")
	group.AddCommand(a.taskList(), a.taskShow(), a.taskCancel())
	return group
}

func (a *App) taskList() *cobra.Command {
	var x activity
	var run string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List tasks, the newest first", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			vm, err := x.vmID(ctx, s)
			if err != nil {
				return err
			}
			return a.watch(ctx, x.watch, func(w io.Writer) error {
				all, err := newest(x.limit, func(limit int, token *string) ([]client.Task, string, error) {
					resp, err := s.ListTasks(ctx, &client.ListTasksParams{
						State: optional[client.State](x.state), Run: optional[string](run), VM: vm, Limit: &limit, PageToken: token,
					})
					l, err := remote.Decode[client.TaskList](s, resp, err)
					return l.Items, l.Next, err
				})
				if err != nil {
					return err
				}
				p := a.Printer()
				p.Out = w
				return output.List(p, all, func(t client.Task) string { return t.ID }, "No tasks.", a.taskColumns())
			})
		}),
	}
	x.flags(a, cmd)
	cmd.Flags().StringVar(&run, "run", "", "only tasks of this `RUN`")
	_ = cmd.RegisterFlagCompletionFunc("run", a.completeRuns)
	return cmd
}

func (a *App) taskColumns() []output.Column[client.Task] {
	return []output.Column[client.Task]{
		{Header: "TASK", Value: func(t client.Task) string { return t.ID }},
		{Header: "KIND", Value: func(t client.Task) string { return string(t.Kind) }},
		{Header: "VM", Value: func(t client.Task) string { return t.VMName }},
		{Header: "STATE", State: true, Value: func(t client.Task) string { return string(t.State) }},
		{Header: "PHASE", Value: func(t client.Task) string { return t.Phase }},
		{Header: "PROGRESS", Right: true, Value: func(t client.Task) string { return percent(t.Progress.BytesScanned, t.Progress.BytesTotal) }},
		{Header: "READ", Right: true, Value: func(t client.Task) string { return sizeOrNone(t.Progress.BytesRead) }},
		{Header: "RATE", Right: true, Value: taskRate},
		{Header: "AGE", Right: true, Value: func(t client.Task) string { return a.age(t.CreatedAt) }},
		{Header: "RUN", Wide: true, Value: func(t client.Task) string { return t.RunID }},
		{Header: "RESTORE POINT", Wide: true, Value: func(t client.Task) string { return t.RestorePointID }},
	}
}

func taskRate(t client.Task) string {
	if t.State != client.StateRunning || t.Progress.RateBytesPerSecond == 0 {
		return ""
	}
	return output.Rate(float64(t.Progress.RateBytesPerSecond))
}

func (a *App) taskShow() *cobra.Command {
	return &cobra.Command{
		Use: "show TASK", Short: "Show a task with its progress", Args: args("TASK"), ValidArgsFunction: a.completeTasks,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			resp, err := s.GetTask(ctx, args[0])
			t, err := remote.Decode[client.Task](s, resp, err)
			if err != nil {
				return err
			}
			return a.one(t, t.ID, func(p output.Printer, w io.Writer) error { return a.taskPage(p, w, t) })
		}),
	}
}

func (a *App) taskPage(p output.Printer, w io.Writer, t client.Task) error {
	fields := []output.Field{
		{Name: "Task", Value: t.ID},
		{Name: "Kind", Value: string(t.Kind)},
		{Name: "VM", Value: t.VMName},
		{Name: "State", Value: string(t.State), State: true},
		{Name: "Phase", Value: t.Phase},
		{Name: "Restore point", Value: t.RestorePointID},
		{Name: "Started", Value: a.when(t.StartedAt)},
	}
	if !t.EndedAt.IsZero() && !t.StartedAt.IsZero() {
		fields = append(fields, output.Field{Name: "Took", Value: output.Duration(t.EndedAt.Sub(t.StartedAt))})
	}
	for _, r := range results(t) {
		fields = append(fields, output.Field{Name: upperFirst(r[0]), Value: r[1]})
	}
	if g := t.Progress; g.BytesTotal > 0 {
		fields = append(fields, output.Field{Name: "Looked at", Value: percent(g.BytesScanned, g.BytesTotal) + ", " + output.Size(g.BytesScanned) + " of " + output.Size(g.BytesTotal)},
			output.Field{Name: "Read", Value: output.SizeExact(g.BytesRead)})
		if t.Kind == client.RunBackup {
			fields = append(fields, output.Field{Name: "New", Value: output.SizeExact(g.BytesNew)}, output.Field{Name: "Stored", Value: output.SizeExact(g.BytesStored)})
		}
		fields = append(fields, output.Field{Name: "Rate", Value: taskRate(t)}, output.Field{Name: "Limited by", Value: g.Bottleneck})
	}
	fields = append(fields, output.Lines("Warnings", t.Warnings)...)
	fields = append(fields, failureFields(t.Error)...)
	if err := p.Fields(w, fields...); err != nil {
		return err
	}
	err := output.Section(p, w, "Disks", t.Transfers, []output.Column[client.Transfer]{
		{Header: "DISK", Value: func(x client.Transfer) string { return x.Disk }},
		{Header: "MODE", Value: func(x client.Transfer) string { return x.Mode }},
		{Header: "DONE", Right: true, Value: func(x client.Transfer) string { return percent(x.Progress.BytesScanned, x.Progress.BytesTotal) }},
		{Header: "SIZE", Right: true, Value: func(x client.Transfer) string { return output.Size(x.Progress.BytesTotal) }},
		{Header: "READ", Right: true, Value: func(x client.Transfer) string { return output.Size(x.Progress.BytesRead) }},
		{Header: "MOVER", Value: func(x client.Transfer) string { return x.Mover }},
		{Header: "TRANSPORT", Value: func(x client.Transfer) string { return x.Transport }},
		{Header: "WHY FULL", Value: func(x client.Transfer) string { return x.FullReason }},
	})
	if err != nil {
		return err
	}
	return waysNotTaken(p, w, t.Transfers)
}

func (a *App) taskCancel() *cobra.Command {
	return &cobra.Command{
		Use: "cancel TASK...", Short: "Stop tasks; the other tasks of their runs go on", Args: args("TASK..."), ValidArgsFunction: a.completeTasks,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			var all []client.Task
			for _, id := range args {
				resp, err := s.CancelTask(ctx, id)
				t, err := remote.Decode[client.Task](s, resp, err)
				if err != nil {
					return err
				}
				all = append(all, t)
			}
			return output.List(a.Printer(), all, func(t client.Task) string { return t.ID }, "No tasks.", a.taskColumns())
		}),
	}
}
