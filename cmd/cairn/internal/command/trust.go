package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) repositoryTrust() *cobra.Command {
	cmd := a.onRepositoryWith("trust NAME MEMBER...", "Use a set without members that are lost and knew more", []string{"NAME", "MEMBER..."}, a.completeRepositories,
		func(ctx context.Context, s *remote.Session, r client.Repository, members []string) error {
			if err := a.confirmTrust(ctx, r.Name, members); err != nil {
				return err
			}
			resp, err := s.TrustMembers(ctx, r.ID, client.TrustRequest{Members: members, AcceptLoss: true})
			r, err = remote.Decode[client.Repository](s, resp, err)
			if err != nil {
				return err
			}
			a.Say("It can be used. Verify it now, to learn which backups are not whole:\n  cairn repository verify %s --wait", r.Name)
			return a.showRepository(r)
		})
	cmd.Long = `Use a set although members are lost that have what the others may lack, or although the halves of a mirror were used
apart from each other. What MEMBER has, an id or a path, counts as all there is from then on; of several groups that
cannot be used, name one of each. It is the last resort, for when the other members do not come back: what only
they have is lost. Cairn says when it is needed, and refuses it where it is not. A set that is not attached yet takes
the word with "cairn repository create ... --attach --trust MEMBER".`
	cmd.Example = `  cairn repository trust mirror 3f9a01c2`
	return cmd
}

func (a *App) confirmTrust(ctx context.Context, repository string, members []string) error {
	return a.Confirm(ctx, "From now on what %s has counts as all there is in %q. Backups that only the other members have in full\n"+
		"are lost, and what was deleted without it may be back. This cannot be undone. Is what is missing lost for good?",
		strings.Join(members, " and "), repository)
}
