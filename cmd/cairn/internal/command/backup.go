package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
	"github.com/cairn-backup/cairn/internal/fault"
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

A VM that cannot be backed up now does not keep the others from it; it is said at the end, and the exit code says why.

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
			var refusals []error
			for _, vm := range found {
				resp, err := s.StartBackup(ctx, vm.ID, &client.StartBackupParams{IdempotencyKey: w.key()}, req)
				run, err := remote.Decode[client.Run](s, resp, err)
				switch {
				case err == nil:
					runs = append(runs, run)
				case isRefusal(err):
					refusals = append(refusals, err)
				default: // it would be the same with the VMs that follow
					for _, r := range runs {
						a.Say("Run %s was started.", r.ID)
					}
					return err
				}
			}
			return a.startedAll(ctx, s, w, runs, refusals)
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

// isRefusal says whether an error is about the one VM that was asked for.
func isRefusal(err error) bool {
	switch fault.KindOf(err) {
	case fault.Invalid, fault.NotFound, fault.Exists, fault.Conflict, fault.Unsupported:
		return true
	}
	return false
}

// startedAll goes on with what was started and says what was not. A run that failed counts more than a refusal, that more than a warning.
func (a *App) startedAll(ctx context.Context, s *remote.Session, w waiting, runs []client.Run, refusals []error) error {
	var err error
	if len(runs) > 0 {
		err = a.started(ctx, s, w, runs)
	}
	if len(refusals) == 0 || failure.CodeOf(err) == failure.Interrupted {
		return err
	}
	last := len(refusals) - 1
	for _, r := range refusals[:last] {
		failure.Print(a.Err, r, a.ColourErr())
	}
	if code := failure.CodeOf(err); code == failure.OK || code == failure.Warning {
		return refusals[last]
	}
	failure.Print(a.Err, refusals[last], a.ColourErr())
	return err
}
