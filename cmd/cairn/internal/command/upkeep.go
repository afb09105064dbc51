package command

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/console"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) repositorySet() *cobra.Command {
	var every, compression string
	var rate int64
	var cmd *cobra.Command
	cmd = a.onRepository("set [NAME]", "Change how a repository is verified and compressed", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		days, speed := cmd.Flags().Changed("verify-every"), cmd.Flags().Changed("verify-rate")
		req := client.UpdateRepositoryRequest{Compression: client.Compression(compression)}
		if !days && !speed && compression == "" {
			return failure.UsageError("Give --verify-every, --verify-rate or --compression.", "it is not said what to change")
		}
		if days || speed {
			v, err := verificationOf(ctx, s, r.ID)
			if err != nil {
				return err
			}
			if speed {
				v.BytesPerSecond = rate
			}
			if days {
				if v.EveryDays, err = parseDays(every); err != nil {
					return err
				}
			}
			req.Verification = &v
		}
		resp, err := s.UpdateRepository(ctx, r.ID, nil, req)
		r, err = remote.Decode[client.Repository](s, resp, err)
		if err != nil {
			return err
		}
		return a.showRepository(r)
	})
	cmd.Long = `Change how often the appliance reads a repository back by itself, and how fast, and how it compresses what it
writes from now on. A verification goes on where it stopped, also when the appliance was started anew. What is stored
stays as it is, and is found and shared as before.`
	cmd.Example = `  cairn repository set main --verify-every 30d --verify-rate 50M
  cairn repository set main --verify-every never
  cairn repository set archive --compression high`
	cmd.Flags().StringVar(&every, "verify-every", "", "read everything back once in `DAYS`, as 30d or 4w, or never")
	console.SizeFlag(cmd, &rate, "verify-rate", "read at most so much a second when it does so, `SIZE` as 50M; 0 is as fast as it goes")
	compressionFlag(cmd, &compression)
	return cmd
}

func verificationOf(ctx context.Context, s *remote.Session, repository string) (client.VerificationSettings, error) {
	resp, err := s.GetRepository(ctx, repository)
	r, err := remote.Decode[client.Repository](s, resp, err)
	return client.VerificationSettings{EveryDays: r.Verification.EveryDays, BytesPerSecond: r.Verification.BytesPerSecond}, err
}

func compressionFlag(cmd *cobra.Command, value *string) {
	cmd.Flags().StringVar(value, "compression", "", "`HOW` what is written is compressed: standard, high (smaller, for more CPU time), fast, auto (fast while the processors are the bottleneck) or none")
	_ = cmd.RegisterFlagCompletionFunc("compression", cobra.FixedCompletions([]string{"standard", "high", "fast", "auto", "none"}, cobra.ShellCompDirectiveNoFileComp))
}

// parseDays reads "30d", "4w", "30" and "never".
func parseDays(text string) (int, error) {
	number, weeks := strings.CutSuffix(strings.ToLower(text), "w")
	n, err := strconv.Atoi(strings.TrimSuffix(number, "d"))
	if weeks {
		n *= 7
	}
	if text == "never" {
		n, err = 0, nil
	}
	if err != nil || n < 0 || n > 365 {
		return 0, failure.UsageError("Write days as 30d, weeks as 4w, at most 365 days, or never.", "--verify-every %q is no number of days", text)
	}
	return n, nil
}

// startedOn reports a run about a repository, and after damage how to see what it touches.
func (a *App) startedOn(ctx context.Context, s *remote.Session, w waiting, r client.Repository, resp *http.Response, err error) error {
	run, err := remote.Decode[client.Run](s, resp, err)
	if err != nil {
		return err
	}
	runs := []client.Run{run}
	err = a.started(ctx, s, w, runs)
	if w.wait && err != nil && ctx.Err() == nil {
		for _, t := range runs[0].Tasks {
			if t.Result.PacksDamaged > 0 || t.Result.PointsDamaged > 0 {
				a.Say("What it touches: \"cairn repository damage %s\".", r.Name)
			}
		}
	}
	return err
}

func (a *App) repositoryVerify() *cobra.Command {
	var w waiting
	var req client.RepositoryVerifyRequest
	cmd := a.onRepository("verify [NAME]", "Read a repository back and prove everything in it", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		resp, err := s.StartRepositoryVerify(ctx, r.ID, &client.StartRepositoryVerifyParams{IdempotencyKey: w.key()}, req)
		return a.startedOn(ctx, s, w, r, resp, err)
	})
	cmd.Long = `Read a repository back and prove everything in it, each pack once however many restore points share it. A cycle that
was interrupted, or ended with --budget, is gone on with. The run fails when something is damaged and names the VMs
and restore points that need it. The appliance does this by itself too: see "cairn repository set".`
	cmd.Example = `  cairn repository verify main --wait
  cairn repository verify main --budget 500G --rate 100M`
	console.SizeFlag(cmd, &req.BudgetBytes, "budget", "stop after so much, `SIZE` as 500G; the next verification goes on there")
	console.SizeFlag(cmd, &req.BytesPerSecond, "rate", "read at most so much a second, `SIZE` as 50M")
	w.flags(cmd)
	return cmd
}

func (a *App) repositoryHeal() *cobra.Command {
	var w waiting
	var from []string
	var dryRun bool
	cmd := a.onRepository("heal [NAME]", "Bring back what a repository has lost", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		req := client.HealRequest{DryRun: dryRun}
		for _, name := range from {
			other, err := findRepository(ctx, s, name)
			if err != nil {
				return err
			}
			if other.ID == r.ID {
				return failure.UsageError("Name another repository; what is good in this one is used anyhow.", "%q cannot heal itself", r.Name)
			}
			req.From = append(req.From, other.ID)
		}
		resp, err := s.StartHeal(ctx, r.ID, &client.StartHealParams{IdempotencyKey: w.key()}, req)
		return a.startedOn(ctx, s, w, r, resp, err)
	})
	cmd.Long = `Bring back what a repository has lost: from good copies in the repository itself and, proven by its identity, from
other repositories that are copies of it or share its domain. Damaged files from which nothing is needed any more are
put aside, never deleted. The run fails when something was found nowhere.`
	cmd.Example = `  cairn repository heal main --from copy --wait
  cairn repository heal main --from copy --dry-run --wait`
	f := cmd.Flags()
	f.StringSliceVar(&from, "from", nil, "ask this `REPOSITORY` for what is missing; may be repeated, the first is asked first")
	f.BoolVar(&dryRun, "dry-run", false, "only say what could be done")
	w.flags(cmd)
	_ = cmd.RegisterFlagCompletionFunc("from", a.completeRepositories)
	return cmd
}

func (a *App) repositoryCollect() *cobra.Command {
	var w waiting
	var req client.CollectRequest
	var below float64
	var cmd *cobra.Command
	cmd = a.onRepository("collect [NAME]", "Free the space no restore point needs", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		if cmd.Flags().Changed("compact-below") {
			if !(below >= 0 && below <= 1) {
				return failure.UsageError("Give a share from 0 to 1, as 0.8.", "--compact-below %v is no share", below)
			}
			req.CompactBelow = &below
		}
		resp, err := s.StartCollect(ctx, r.ID, &client.StartCollectParams{IdempotencyKey: w.key()}, req)
		return a.startedOn(ctx, s, w, r, resp, err)
	})
	cmd.Example = `  cairn repository collect main --dry-run --wait
  cairn repository collect main --compact-below 0.8 --wait`
	w.flags(cmd)
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say what would be freed")
	cmd.Flags().Float64Var(&below, "compact-below", 0, "rewrite packs of which a smaller `SHARE` is needed; 0 for none. Without it 0.5, and 0.8 while over a twentieth of all is dead")
	return cmd
}

func (a *App) repositoryScrub() *cobra.Command {
	var w waiting
	var req client.ScrubRequest
	cmd := a.onRepository("scrub [NAME]", "Read every shard of a set and repair what has rotted", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		resp, err := s.StartScrub(ctx, r.ID, &client.StartScrubParams{IdempotencyKey: w.key()}, req)
		return a.startedOn(ctx, s, w, r, resp, err)
	})
	cmd.Long = `Read every shard on every member of a set, and make those that have rotted or are missing again from the others.
Members that have come back catch up first. A repository in one directory has no shards: verify it.`
	cmd.Example = `  cairn repository scrub large --rate 200M --wait`
	console.SizeFlag(cmd, &req.BytesPerSecond, "rate", "read at most so much a second on all members together, `SIZE` as 50M")
	w.flags(cmd)
	return cmd
}

func (a *App) repositoryRebuild() *cobra.Command {
	var w waiting
	var path string
	cmd := a.onRepositoryWith("rebuild NAME MEMBER", "Fill a member of a set, or put a new disk in its place", []string{"NAME", "MEMBER"}, a.completeMembers,
		func(ctx context.Context, s *remote.Session, r client.Repository, rest []string) error {
			m, err := findMember(ctx, s, r, rest[0])
			if err != nil {
				return err
			}
			if path != "" {
				if err := a.Confirm(ctx, "Put %s in the place of member %s for good?", path, memberName(m)); err != nil {
					return err
				}
			}
			resp, err := s.StartRebuild(ctx, r.ID, m.ID, &client.StartRebuildParams{IdempotencyKey: w.key()}, client.RebuildRequest{Path: path})
			return a.startedOn(ctx, s, w, r, resp, err)
		})
	cmd.Long = `Write the shards that a member of a set lacks. With --path an empty directory, on a new disk, takes the place of the
member first; the old one does not belong to the set any more then. MEMBER is its id or its path, as "cairn repository
show" prints them.`
	cmd.Example = `  cairn repository rebuild large 3f9a01c2 --wait
  cairn repository rebuild large /mnt/d2/cairn --path /mnt/d7/cairn --wait`
	cmd.Flags().StringVar(&path, "path", "", "empty directory `DIR` of the appliance that takes its place")
	w.flags(cmd)
	return cmd
}

// findMember accepts an id, the beginning of one, or a path.
func findMember(ctx context.Context, s *remote.Session, r client.Repository, arg string) (client.Member, error) {
	resp, err := s.GetRepository(ctx, r.ID)
	r, err = remote.Decode[client.Repository](s, resp, err)
	if err != nil {
		return client.Member{}, err
	}
	if len(r.Members) == 0 {
		return client.Member{}, failure.UsageError("Only a repository on several directories has members.", "%q is not on a set", r.Name)
	}
	return pick("member", arg, r.Members, func(m client.Member) (string, string, string) { return m.ID, m.Path, string(m.State) })
}

func memberName(m client.Member) string {
	if m.Path == "" {
		return m.ID
	}
	return fmt.Sprintf("%s (%s)", m.ID, m.Path)
}

func (a *App) repositoryGrow() *cobra.Command {
	var domains []string
	var force bool
	cmd := a.onRepositoryWith("grow NAME PATH...", "Add directories to a set", []string{"NAME", "PATH..."}, a.completeRepositories,
		func(ctx context.Context, s *remote.Session, r client.Repository, paths []string) error {
			members, err := setMembers(paths, domains)
			if err != nil {
				return err
			}
			if err := a.Confirm(ctx, "Add %s to %q? They cannot be taken out again", counted(len(paths), "directory", "directories"), r.Name); err != nil {
				return err
			}
			resp, err := s.GrowRepository(ctx, r.ID, nil, client.GrowRequest{Members: members, Force: force})
			r, err = remote.Decode[client.Repository](s, resp, err)
			if err != nil {
				return err
			}
			return a.showRepository(r)
		})
	cmd.Long = `Add empty directories, each on a disk of its own, to a set: as many as a group of it has, or a multiple. New data goes
where most is free; what is there stays where it is.`
	cmd.Example = `  cairn repository grow large /mnt/d{7..12}/cairn --domain a,a,b,b,c,c`
	cmd.Flags().StringSliceVar(&domains, "domain", nil, "what fails as a whole with each directory, `A,B,...` in their order")
	cmd.Flags().BoolVar(&force, "force", false, "do it although the loss of one domain would lose data")
	return cmd
}
