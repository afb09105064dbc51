package command

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
	"github.com/cairn-backup/cairn/internal/fault"
)

func (a *App) points() *cobra.Command {
	group := a.group("point", "Restore points", "")
	group.AddCommand(a.pointList(), a.pointShow(), a.pointVerify(), a.pointHold(), a.pointRelease(), a.pointPrune())
	return group
}

func listPoints(ctx context.Context, s *remote.Session, filter client.ListRestorePointsParams) ([]client.RestorePoint, error) {
	return remote.All(func(token *string) ([]client.RestorePoint, string, error) {
		filter.Limit, filter.PageToken = ref(page), token
		resp, err := s.ListRestorePoints(ctx, &filter)
		l, err := remote.Decode[client.RestorePointList](s, resp, err)
		return l.Items, l.Next, err
	})
}

func (a *App) pointList() *cobra.Command {
	var repository, sort string
	var watch bool
	cmd := &cobra.Command{
		Use: "list [VM]", Aliases: []string{"ls"}, Short: "List restore points, the newest first", Args: args("[VM]"), ValidArgsFunction: a.completeVMs,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			var filter client.ListRestorePointsParams
			if len(args) == 1 {
				vm, err := findVM(ctx, s, args[0])
				if err != nil {
					return err
				}
				filter.VM = &vm.ID
			}
			if repository != "" {
				r, err := findRepository(ctx, s, repository)
				if err != nil {
					return err
				}
				filter.Repository = &r.ID
			}
			if sort != "" {
				filter.Sort = &sort
			}
			return a.watch(ctx, watch, func(w io.Writer) error {
				all, err := listPoints(ctx, s, filter)
				if err != nil {
					return err
				}
				p := a.Printer()
				p.Out = w
				return output.List(p, all, func(r client.RestorePoint) string { return r.ID },
					"No restore points. Make one with \"cairn backup start VM\".", a.pointColumns())
			})
		}),
	}
	cmd.Flags().StringVarP(&repository, "repository", "r", "", "only restore points in this `REPOSITORY`")
	a.sortFlag(cmd, &sort, "created_at", "time", "vm_name", "stored_bytes")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "list again whenever something may have changed")
	_ = cmd.RegisterFlagCompletionFunc("repository", a.completeRepositories)
	return cmd
}

func (a *App) pointColumns() []output.Column[client.RestorePoint] {
	return []output.Column[client.RestorePoint]{
		{Header: "RESTORE POINT", Value: func(r client.RestorePoint) string { return r.ID }},
		{Header: "VM", Value: func(r client.RestorePoint) string { return r.VMName }},
		{Header: "TIME", Value: func(r client.RestorePoint) string { return output.Time(r.Time, a.Location) }},
		{Header: "AGE", Right: true, Value: func(r client.RestorePoint) string { return a.age(r.Time) }},
		{Header: "DISKS", Right: true, Value: func(r client.RestorePoint) string { return strconv.Itoa(len(r.Disks)) }},
		{Header: "SIZE", Right: true, Value: func(r client.RestorePoint) string { return output.Size(r.SizeBytes) }},
		{Header: "KIND", Value: func(r client.RestorePoint) string { return r.Kind }},
		{Header: "READ", Right: true, Value: func(r client.RestorePoint) string { return output.Size(r.ReadBytes) }},
		{Header: "STORED", Right: true, Value: func(r client.RestorePoint) string { return output.Size(r.StoredBytes) }},
		{Header: "CONSISTENCY", Value: func(r client.RestorePoint) string { return string(r.Consistency) }},
		{Header: "VERIFIED", State: true, Value: a.verified},
		{Header: "HELD", Wide: true, Value: a.held},
		{Header: "REPOSITORY", Wide: true, Value: func(r client.RestorePoint) string { return r.RepositoryID }},
		{Header: "TASK", Wide: true, Value: func(r client.RestorePoint) string { return r.TaskID }},
	}
}

func (a *App) verified(r client.RestorePoint) string {
	if r.VerifyProblem != "" {
		return "damaged"
	}
	if r.VerifiedAt.IsZero() {
		return "never"
	}
	return a.age(r.VerifiedAt) + " ago"
}

func (a *App) pointShow() *cobra.Command {
	return &cobra.Command{
		Use: "show POINT", Short: "Show a restore point", Args: args("POINT"), ValidArgsFunction: a.completePoints,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			resp, err := s.GetRestorePoint(ctx, args[0])
			r, err := remote.Decode[client.RestorePoint](s, resp, err)
			if err != nil {
				return err
			}
			var repository string
			if a.Format().Human() {
				if repository, err = repositoryName(ctx, s, r.RepositoryID); err != nil {
					return err
				}
			}
			return a.one(r, r.ID, func(p output.Printer, w io.Writer) error { return a.pointPage(p, w, r, repository) })
		}),
	}
}

func (a *App) pointPage(p output.Printer, w io.Writer, r client.RestorePoint, repository string) error {
	fields := []output.Field{
		{Name: "Restore point", Value: r.ID},
		{Name: "VM", Value: r.VMName},
		{Name: "VM ID", Value: r.VMID},
		{Name: "Time", Value: a.when(r.Time)},
		{Name: "Consistency", Value: string(r.Consistency)},
		{Name: "Why no better", Value: r.ConsistencyNote},
		{Name: "Repository", Value: repository},
		{Name: "Task", Value: r.TaskID},
		{Name: "Series", Value: r.Series},
		{Name: "Published", Value: a.when(r.PublishedAt)},
		{Name: "Verified", Value: a.verified(r), State: true},
		{Name: "Damage", Value: r.VerifyProblem},
		{Name: "Held", Value: a.held(r)},
		{Name: "Size", Value: output.SizeExact(r.SizeBytes)},
		{Name: "Read", Value: output.SizeExact(r.ReadBytes)},
		{Name: "New", Value: output.SizeExact(r.NewBytes)},
		{Name: "Stored", Value: output.SizeExact(r.StoredBytes)},
	}
	fields = append(fields, hardware(r.Description)...)
	fields = append(fields, output.Lines("Left out", reasons(r.Skipped))...)
	fields = append(fields, output.Lines("Warnings", r.Warnings)...)
	if err := p.Fields(w, append(fields, output.Lines("Notes", r.Description.Notes)...)...); err != nil {
		return err
	}
	err := output.Section(p, w, "Disks in the restore point", r.Disks, []output.Column[client.RestorePointDisk]{
		{Header: "DISK", Value: func(d client.RestorePointDisk) string { return d.ID }},
		{Header: "SIZE", Right: true, Value: func(d client.RestorePointDisk) string { return output.Size(d.SizeBytes) }},
		{Header: "READ", Right: true, Value: func(d client.RestorePointDisk) string { return output.Size(d.ReadBytes) }},
		{Header: "MODE", Value: func(d client.RestorePointDisk) string { return string(d.Mode) }},
		{Header: "ROOT", Wide: true, Value: func(d client.RestorePointDisk) string { return d.Root }},
		{Header: "WHY FULL", Value: func(d client.RestorePointDisk) string { return d.FullReason }},
	})
	if err != nil {
		return err
	}
	return describeDevices(p, w, r.Description, " of the VM at that time")
}

func (a *App) pointVerify() *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use: "verify POINT...", Short: "Read restore points back and check every byte", Args: args("POINT..."), ValidArgsFunction: a.completePoints,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			var runs []client.Run
			for _, id := range args {
				resp, err := s.StartVerify(ctx, id, &client.StartVerifyParams{IdempotencyKey: w.key()})
				run, err := remote.Decode[client.Run](s, resp, err)
				if err != nil {
					return err
				}
				runs = append(runs, run)
			}
			return a.started(ctx, s, w, runs)
		}),
	}
	w.flags(cmd)
	return cmd
}

func (a *App) pointPrune() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "prune POINT...", Short: "Remove restore points for ever", Args: args("POINT..."), ValidArgsFunction: a.completePoints,
		Long: `Remove restore points. They cannot be brought back; every other restore point stays complete. The space is freed
by the next "cairn repository collect".`,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			var found []client.RestorePoint
			for _, id := range args {
				resp, err := s.GetRestorePoint(ctx, id)
				r, err := remote.Decode[client.RestorePoint](s, resp, err)
				if err != nil {
					return err
				}
				if why := a.held(r); why != "" {
					return fault.New(fault.Conflict, "prune restore point", r.ID, "it is held: %s", why).Explain(
						"Somebody keeps this restore point from being pruned. Nothing was removed.", "Release it first, if it is really not needed: cairn point release.")
				}
				found = append(found, r)
				if dryRun || !a.Yes {
					a.Say("%s  %s  %s", r.ID, output.Printable(r.VMName), output.Time(r.Time, a.Location))
				}
			}
			if dryRun {
				a.Say("Nothing was removed.")
				return nil
			}
			if err := a.Confirm(ctx, "Remove %s for ever?", plural(len(found), "restore point")); err != nil {
				return err
			}
			for _, r := range found {
				resp, err := s.PruneRestorePoint(ctx, r.ID, nil)
				if err := remote.Done(s, resp, err); err != nil {
					return err
				}
				a.Say("Removed %s.", r.ID)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be removed")
	return cmd
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
