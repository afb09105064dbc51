package command

import (
	"context"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) repositories() *cobra.Command {
	group := a.group("repository", "Where backups are kept", "")
	group.Aliases = []string{"repo"}
	group.AddCommand(a.repositoryCreate(), a.repositoryList(), a.repositoryShow(), a.repositoryCollect(), a.repositoryDetach())
	return group
}

func (a *App) repositoryCreate() *cobra.Command {
	var attach bool
	var req client.CreateRepositoryRequest
	cmd := &cobra.Command{
		Use: "create NAME PATH", Short: "Create a repository in a directory of the appliance, or attach one", Args: args("NAME", "PATH"),
		Example: `  cairn repository create main /srv/backup
  cairn repository create old /mnt/old --attach --key-file /mnt/old.key`,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			req.Name, req.Path, req.Mode = args[0], args[1], client.RepositoryCreate
			if attach {
				req.Mode = client.RepositoryAttach
			} else if req.KeyFile != "" {
				return failure.UsageError("Give it with --attach.", "a new repository gets its own key; --key-file is for one that exists")
			}
			resp, err := s.CreateRepository(ctx, req)
			r, err := remote.Decode[client.Repository](s, resp, err)
			if err != nil {
				return err
			}
			if err := a.showRepository(r); err != nil {
				return err
			}
			if r.KeyFile != "" {
				a.Say("\nIts key is %s on the appliance. Keep a copy apart from the appliance:\nwithout the key nobody can read these backups.", r.KeyFile)
			}
			return nil
		}),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVar(&attach, "attach", false, "use the repository that is there already")
	cmd.Flags().StringVar(&req.KeyFile, "key-file", "", "with --attach: its key, a `FILE` on the appliance")
	return cmd
}

func (a *App) repositoryList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List repositories", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			all, err := listRepositories(ctx, s)
			if err != nil {
				return err
			}
			return output.List(a.Printer(), all, func(r client.Repository) string { return r.Name },
				"No repositories. Make one with \"cairn repository create NAME PATH\".", []output.Column[client.Repository]{
					{Header: "NAME", Value: func(r client.Repository) string { return r.Name }},
					{Header: "STATE", State: true, Value: func(r client.Repository) string { return string(r.Status) }},
					{Header: "POINTS", Right: true, Value: func(r client.Repository) string { return strconv.Itoa(r.Usage.RestorePoints) }},
					{Header: "LOGICAL", Right: true, Value: func(r client.Repository) string { return output.Size(r.Usage.LogicalBytes) }},
					{Header: "STORED", Right: true, Value: func(r client.Repository) string { return output.Size(r.Usage.StoredBytes) }},
					{Header: "FREE", Right: true, Value: func(r client.Repository) string { return sizeOrNone(r.Usage.FreeBytes) }},
					{Header: "PATH", Value: func(r client.Repository) string { return r.Path }},
					{Header: "ID", Wide: true, Value: func(r client.Repository) string { return r.ID }},
					{Header: "KEY FILE", Wide: true, Value: func(r client.Repository) string { return r.KeyFile }},
				})
		}),
	}
}

func (a *App) repositoryShow() *cobra.Command {
	return a.onRepository("show [NAME]", "Show a repository", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		resp, err := s.GetRepository(ctx, r.ID)
		r, err = remote.Decode[client.Repository](s, resp, err)
		if err != nil {
			return err
		}
		return a.showRepository(r)
	})
}

func (a *App) showRepository(r client.Repository) error {
	return a.one(r, r.Name, func(p output.Printer, w io.Writer) error {
		return p.Fields(w, append([]output.Field{
			{Name: "Name", Value: r.Name},
			{Name: "ID", Value: r.ID},
			{Name: "Path", Value: r.Path},
			{Name: "State", Value: string(r.Status), State: true},
			{Name: "Identity", Value: r.StoreID},
			{Name: "Key file", Value: r.KeyFile},
			{Name: "Created", Value: a.when(r.CreatedAt)},
			{Name: "Checked", Value: a.when(r.CheckedAt)},
			{Name: "Restore points", Value: strconv.Itoa(r.Usage.RestorePoints)},
			{Name: "Disks in them", Value: output.SizeExact(r.Usage.LogicalBytes)},
			{Name: "Stored", Value: output.SizeExact(r.Usage.StoredBytes) + ", " + strconv.Itoa(r.Usage.Packs) + " packs"},
			{Name: "Free", Value: sizeOrNone(r.Usage.FreeBytes)},
		}, failureFields(r.Error)...)...)
	})
}

func (a *App) repositoryCollect() *cobra.Command {
	var w waiting
	var req client.CollectRequest
	cmd := a.onRepository("collect [NAME]", "Free the space no restore point needs", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		resp, err := s.StartCollect(ctx, r.ID, &client.StartCollectParams{IdempotencyKey: w.key()}, req)
		run, err := remote.Decode[client.Run](s, resp, err)
		if err != nil {
			return err
		}
		return a.started(ctx, s, w, []client.Run{run})
	})
	w.flags(cmd)
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say what would be freed")
	return cmd
}

func (a *App) repositoryDetach() *cobra.Command {
	return a.onRepository("detach NAME", "Forget a repository; its files and its key stay", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		if err := a.Confirm(ctx, "Forget the repository %q in %s?", r.Name, r.Path); err != nil {
			return err
		}
		resp, err := s.DetachRepository(ctx, r.ID)
		if err := remote.Done(s, resp, err); err != nil {
			return err
		}
		a.Say("Forgot %q. Its files are still in %s.", r.Name, r.Path)
		return nil
	})
}

// onRepository is a command about one repository, named by id or name, or the only one there is.
func (a *App) onRepository(use, short string, do func(context.Context, *remote.Session, client.Repository) error) *cobra.Command {
	want := "[NAME]"
	if use[len(use)-1] != ']' {
		want = "NAME"
	}
	return &cobra.Command{
		Use: use, Short: short, Args: args(want), ValidArgsFunction: a.completeRepositories,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			arg := ""
			if len(args) == 1 {
				arg = args[0]
			}
			r, err := findRepository(ctx, s, arg)
			if err != nil {
				return err
			}
			return do(ctx, s, r)
		}),
	}
}
