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

func (a *App) pointHold() *cobra.Command {
	var reason, until string
	cmd := &cobra.Command{
		Use: "hold POINT... --reason TEXT", Short: "Keep restore points from being pruned", Args: args("POINT..."), ValidArgsFunction: a.completePoints,
		Long: "Keep restore points from being pruned, by retention and by people, until they are released or a date has come. A restore\n" +
			"point has one hold: an earlier one is replaced, after a question when it would have lasted longer.",
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			if reason == "" {
				return failure.UsageError("Say why; whoever wants to prune it will read it.", "a hold needs --reason")
			}
			end, err := a.parseDate(until)
			if err != nil {
				return err
			}
			if err := a.mayReplaceHolds(ctx, s, args, end); err != nil {
				return err
			}
			for _, id := range args {
				resp, err := s.HoldRestorePoint(ctx, id, client.HoldRequest{Reason: reason, EndsAt: end})
				r, err := remote.Decode[client.RestorePoint](s, resp, err)
				if err != nil {
					return err
				}
				a.Say("Held %s of %s.", r.ID, output.Printable(r.VMName))
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, `TEXT`")
	cmd.Flags().StringVar(&until, "until", "", "it ends on this `DATE`, 2027-01-31 or 2027-01-31T18:00; never when not given")
	return cmd
}

// mayReplaceHolds asks before somebody's hold is replaced by one that ends sooner: a restore point has one hold.
func (a *App) mayReplaceHolds(ctx context.Context, s *remote.Session, points []string, end time.Time) error {
	if a.Yes || end.IsZero() {
		return nil
	}
	for _, id := range points {
		resp, err := s.GetRestorePoint(ctx, id)
		r, err := remote.Decode[client.RestorePoint](s, resp, err)
		if err != nil {
			return err
		}
		if why := a.held(r); why != "" && (r.Hold.EndsAt.IsZero() || r.Hold.EndsAt.After(end)) {
			if err := a.Confirm(ctx, "%s is held already: %s. Replace that by a hold that ends sooner?", id, why); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *App) pointRelease() *cobra.Command {
	return &cobra.Command{
		Use: "release POINT...", Short: "Let held restore points be pruned again", Args: args("POINT..."), ValidArgsFunction: a.completePoints,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			for _, id := range args {
				resp, err := s.ReleaseRestorePoint(ctx, id)
				if _, err := remote.Decode[client.RestorePoint](s, resp, err); err != nil {
					return err
				}
				a.Say("Released %s.", id)
			}
			return nil
		}),
	}
}

// held says why a restore point is held, and until when.
func (a *App) held(r client.RestorePoint) string {
	if r.Hold.CreatedAt.IsZero() {
		return ""
	}
	if r.Hold.EndsAt.IsZero() {
		return r.Hold.Reason
	}
	return r.Hold.Reason + ", until " + output.Time(r.Hold.EndsAt, a.Location)
}
