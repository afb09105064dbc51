package command

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) completion() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use: "completion bash|zsh|fish", Short: "Print the completion script for a shell", Args: args("SHELL"),
		Long: `Print the completion script for a shell. It completes names of VMs, connections, repositories, restore points and
runs by asking the appliance.

  bash:  cairn completion bash > /etc/bash_completion.d/cairn
  zsh:   cairn completion zsh > "${fpath[1]}/_cairn"
  fish:  cairn completion fish > ~/.config/fish/completions/cairn.fish`,
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(a.Out, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(a.Out)
			case "fish":
				return cmd.Root().GenFishCompletion(a.Out, true)
			}
			return failure.UsageError("Use one of bash, zsh, fish.", "there is no completion for %q", args[0])
		},
	}
}

// completionTime bounds how long a person waits for the names after pressing the Tab key.
const completionTime = 3 * time.Second

// offer asks the appliance for names. A failure offers nothing: there is nowhere to print it.
func (a *App) offer(cmd *cobra.Command, names func(context.Context, *remote.Session) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	s, err := a.open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer s.Close()
	offers, err := names(ctx, s)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return offers, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}

// choice is a word to complete to and what is said about it.
func choice(word, note string) string {
	return cobra.CompletionWithDesc(output.Printable(word), output.Printable(note))
}

func (a *App) completeVMs(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, func(ctx context.Context, s *remote.Session) ([]string, error) {
		all, err := listVMs(ctx, s, client.ListVMsParams{Name: ref(typed + "*")})
		var offers []string
		for _, v := range all {
			offers = append(offers, choice(v.Name, string(v.Power)+", "+output.Size(v.SizeBytes)))
		}
		return offers, err
	})
}

func (a *App) completeConnections(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, func(ctx context.Context, s *remote.Session) ([]string, error) {
		all, err := listConnections(ctx, s)
		var offers []string
		for _, c := range all {
			offers = append(offers, choice(c.Name, c.Address))
		}
		return offers, err
	})
}

func (a *App) completeMovers(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, func(ctx context.Context, s *remote.Session) ([]string, error) {
		all, err := listMovers(ctx, s)
		var offers []string
		for _, m := range all {
			offers = append(offers, choice(m.Name, m.Hostname))
		}
		return offers, err
	})
}

func (a *App) completeRepositories(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, func(ctx context.Context, s *remote.Session) ([]string, error) {
		all, err := listRepositories(ctx, s)
		var offers []string
		for _, r := range all {
			offers = append(offers, choice(r.Name, repositoryPlace(r)))
		}
		return offers, err
	})
}

// completeMembers offers repositories first, then the members of the one that was named.
func (a *App) completeMembers(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.completeSecond(cmd, args, typed, func(ctx context.Context, s *remote.Session, r client.Repository) ([]string, error) {
		resp, err := s.GetRepository(ctx, r.ID)
		r, err = remote.Decode[client.Repository](s, resp, err)
		var offers []string
		for _, m := range r.Members {
			offers = append(offers, choice(m.ID, string(m.State)+" "+m.Path))
		}
		return offers, err
	})
}

// completeKeys offers repositories first, then the keys of the one that was named.
func (a *App) completeKeys(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.completeSecond(cmd, args, typed, func(ctx context.Context, s *remote.Session, r client.Repository) ([]string, error) {
		all, err := listKeys(ctx, s, r)
		var offers []string
		for _, k := range all {
			offers = append(offers, choice(k.Key, string(k.Kind)+" "+k.Label))
		}
		return offers, err
	})
}

func (a *App) completeSecond(cmd *cobra.Command, args []string, typed string, second func(context.Context, *remote.Session, client.Repository) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeRepositories(cmd, args, typed)
	case 1:
		return a.offer(cmd, func(ctx context.Context, s *remote.Session) ([]string, error) {
			r, err := findRepository(ctx, s, args[0])
			if err != nil {
				return nil, err
			}
			return second(ctx, s, r)
		})
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func (a *App) completePoints(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, func(ctx context.Context, s *remote.Session) ([]string, error) {
		resp, err := s.ListRestorePoints(ctx, &client.ListRestorePointsParams{Limit: ref(100)})
		l, err := remote.Decode[client.RestorePointList](s, resp, err)
		var offers []string
		for _, r := range l.Items {
			offers = append(offers, choice(r.ID, r.VMName+" "+output.Time(r.Time, a.Location)))
		}
		return offers, err
	})
}

func (a *App) completeRuns(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, func(ctx context.Context, s *remote.Session) ([]string, error) {
		resp, err := s.ListRuns(ctx, &client.ListRunsParams{Limit: ref(50)})
		l, err := remote.Decode[client.RunList](s, resp, err)
		var offers []string
		for _, r := range l.Items {
			offers = append(offers, choice(r.ID, runLabel([]client.Run{r})+" "+string(r.State)))
		}
		return offers, err
	})
}

func (a *App) completeTasks(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, func(ctx context.Context, s *remote.Session) ([]string, error) {
		resp, err := s.ListTasks(ctx, &client.ListTasksParams{Limit: ref(50)})
		l, err := remote.Decode[client.TaskList](s, resp, err)
		var offers []string
		for _, t := range l.Items {
			offers = append(offers, choice(t.ID, string(t.Kind)+" of "+t.VMName+" "+string(t.State)))
		}
		return offers, err
	})
}

func (a *App) completeTokens(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, func(ctx context.Context, s *remote.Session) ([]string, error) {
		all, err := listTokens(ctx, s)
		var offers []string
		for _, t := range all {
			offers = append(offers, choice(t.ID, t.Name))
		}
		return offers, err
	})
}

func (a *App) completeLimits(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, func(ctx context.Context, s *remote.Session) ([]string, error) {
		all, err := listLimits(ctx, s)
		var offers []string
		for _, l := range all {
			offers = append(offers, choice(l.ID, string(l.Kind)+" "+l.Name))
		}
		return offers, err
	})
}

func (a *App) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	config, _, err := a.config()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var offers []string
	for _, c := range config.Contexts {
		offers = append(offers, choice(c.Name, c.Server))
	}
	return offers, cobra.ShellCompDirectiveNoFileComp
}
