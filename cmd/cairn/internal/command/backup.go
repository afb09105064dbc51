package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) backup() *cobra.Command {
	group := a.group("backup", "Back up virtual machines", "")
	group.AddCommand(a.backupStart())
	return group
}

var quiesceModes = []string{string(client.QuiesceTry), string(client.QuiesceRequire), string(client.QuiesceNever)}

func (a *App) backupStart() *cobra.Command {
	var w waiting
	var repository, quiesce string
	var exclude []string
	var full bool
	var by ways
	cmd := &cobra.Command{
		Use: "start VM...", Short: "Back up now", Args: args("VM..."), ValidArgsFunction: a.completeVMs,
		Long: `Back up virtual machines now, each in a run of its own. VM is an id, a name, or CONNECTION/NAME.

With --wait the exit code is 0 when every backup succeeded, 3 when one has warnings, 1 when one failed.`,
		Example: `  cairn backup start web01 --wait
  cairn backup start lab/web01 db02 --repository main --exclude-disk vdb`,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			repo, err := findRepository(ctx, s, repository)
			if err != nil {
				return err
			}
			var found []client.VM
			for _, arg := range args {
				vm, err := findVM(ctx, s, arg)
				if err != nil {
					return err
				}
				found = append(found, vm)
			}
			req := client.BackupRequest{Repository: repo.ID, Quiesce: client.Quiesce(quiesce), ExcludeDisks: exclude, Full: full, Mover: by.mover, Transport: by.transport, Fallback: by.fallback}
			if w.idempotency != "" && len(found) > 1 {
				return failure.UsageError("Start them one by one.", "--idempotency-key is for one VM")
			}
			var runs []client.Run
			for _, vm := range found {
				resp, err := s.StartBackup(ctx, vm.ID, &client.StartBackupParams{IdempotencyKey: w.key()}, req)
				run, err := remote.Decode[client.Run](s, resp, err)
				if err != nil {
					for _, r := range runs {
						a.Say("Run %s was started.", r.ID)
					}
					return err
				}
				runs = append(runs, run)
			}
			return a.started(ctx, s, w, runs)
		}),
	}
	w.flags(cmd)
	f := cmd.Flags()
	f.StringVarP(&repository, "repository", "r", "", "`REPOSITORY` to store in; may be left out where there is only one")
	f.StringVar(&quiesce, "quiesce", "", "`MODE` of asking the guest agent: "+strings.Join(quiesceModes, ", "))
	f.StringArrayVar(&exclude, "exclude-disk", nil, "leave this `DISK` out; may be repeated")
	by.flags(a, cmd, "read")
	f.BoolVar(&full, "full", false, "read every disk as a whole")
	_ = cmd.RegisterFlagCompletionFunc("repository", a.completeRepositories)
	_ = cmd.RegisterFlagCompletionFunc("quiesce", cobra.FixedCompletions(quiesceModes, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
