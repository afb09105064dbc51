package command

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

const policyLanguages = "docs/policies.md explains filters, schedules, windows and retention."

func (a *App) policyCreate() *cobra.Command {
	var flags policyFlags
	var dryRun bool
	cmd := &cobra.Command{
		Use: "create NAME --filter FILTER --schedule WHEN", Short: "Make a policy", Args: args("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		Long: "Make a policy: the VMs that its filter selects are backed up whenever it is due. --dry-run says which VMs it would\n" +
			"cover and which restore points its retention would let go.\n\n" + policyLanguages,
		Example: `  cairn policy create all --filter all --schedule 22:00 --keep daily=14,weekly=8
  cairn policy create gold --filter 'tag = gold' --schedule '*:0/30' --zone Europe/Zurich --keep hourly=48,daily=30 --priority 10
  cairn policy create prod --filter 'cluster = prod and not tag = scratch' --schedule 'Mon..Fri 22:00' --window 20:00-06:00 --rpo 26h`,
	}
	cmd.RunE = a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
		req := client.PolicyRequest{Name: args[0]}
		if flags.filter == "" || flags.schedule == "" {
			return failure.UsageError("Give both, for example --filter all --schedule 22:00.", "a policy needs --filter and --schedule")
		}
		if err := flags.fill(cmd, &req); err != nil {
			return err
		}
		r, err := findRepository(ctx, s, flags.repository)
		if err != nil {
			return err
		}
		req.Repository = r.ID
		if dryRun {
			resp, err := s.CreatePolicy(ctx, &client.CreatePolicyParams{DryRun: ref(true)}, req)
			plan, err := remote.Decode[client.PolicyPlan](s, resp, err)
			if err != nil {
				return err
			}
			return a.showPolicyPlan(plan, args[0], "Nothing was made.")
		}
		resp, err := s.CreatePolicy(ctx, nil, req)
		p, err := remote.Decode[client.Policy](s, resp, err)
		if err != nil {
			return err
		}
		vms, err := coveredOf(ctx, s, p)
		if err != nil {
			vms = strconv.Itoa(p.VMs) // the policy is made all the same
		}
		repository, err := repositoryName(ctx, s, p.RepositoryID)
		if err != nil {
			repository = p.RepositoryID
		}
		return a.one(p, p.Name, func(pr output.Printer, w io.Writer) error { return a.policyPage(pr, w, p, vms, repository) })
	})
	flags.add(a, cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would change")
	return cmd
}

// requestOf asks for a policy as it is.
func requestOf(p client.Policy) client.PolicyRequest {
	req := client.PolicyRequest{
		Name: p.Name, Paused: p.Paused, Filter: p.Filter, Priority: p.Priority, Schedule: p.Schedule, TimeZone: p.TimeZone, Windows: p.Windows,
		Missed: p.Missed, WithinSeconds: p.WithinSeconds, Repository: p.RepositoryID, Retention: p.Retention, Quiesce: p.Quiesce,
		ExcludeDisks: p.ExcludeDisks, Mover: p.Mover, Transport: p.Transport, Fallback: p.Fallback, Retries: &p.Retries,
		BackoffSeconds: p.BackoffSeconds, Limits: p.Limits,
	}
	if !p.RPODerived {
		req.RPOSeconds = p.RPOSeconds
	}
	return req
}

func (a *App) policyEdit() *cobra.Command {
	var flags policyFlags
	var name string
	var dryRun bool
	cmd := &cobra.Command{
		Use: "edit POLICY", Short: "Change a policy", Args: args("POLICY"), ValidArgsFunction: a.completePolicies,
		Long: "Change what the flags name, and leave the rest. --dry-run says which VMs would be covered by another policy than before,\n" +
			"and which restore points retention would let go that it keeps now.\n\n" + policyLanguages,
		Example: `  cairn policy edit gold --keep daily=30,monthly=12 --dry-run
  cairn policy edit gold --schedule 21:30 --window ''`,
	}
	cmd.RunE = a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
		p, err := seePolicy(ctx, s, args[0])
		if err != nil {
			return err
		}
		req := requestOf(p)
		if err := flags.fill(cmd, &req); err != nil {
			return err
		}
		if name != "" {
			req.Name = name
		}
		if flags.repository != "" {
			r, err := findRepository(ctx, s, flags.repository)
			if err != nil {
				return err
			}
			req.Repository = r.ID
		}
		plan, err := a.replacePolicy(ctx, s, p.ID, req, dryRun)
		if err != nil {
			return err
		}
		if dryRun {
			return a.showPolicyPlan(plan, req.Name, "Nothing was changed.")
		}
		return a.showPolicyPlan(plan, req.Name, "Changed.")
	})
	flags.add(a, cmd)
	cmd.Flags().StringVar(&name, "name", "", "a new `NAME`")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would change")
	return cmd
}

// seePolicy reads the policy that a change is based on: the change is refused when it has become another one.
func seePolicy(ctx context.Context, s *remote.Session, arg string) (client.Policy, error) {
	p, err := findPolicy(ctx, s, arg)
	if err != nil {
		return p, err
	}
	resp, err := s.GetPolicy(ctx, p.ID)
	return remote.Decode[client.Policy](s, resp, err)
}

func (a *App) replacePolicy(ctx context.Context, s *remote.Session, id string, req client.PolicyRequest, dryRun bool) (client.PolicyPlan, error) {
	params := &client.ReplacePolicyParams{}
	if dryRun {
		params.DryRun = ref(true)
	}
	resp, err := s.ReplacePolicy(ctx, id, params, req)
	return remote.Decode[client.PolicyPlan](s, resp, err)
}

// showPolicyPlan says what changes when a policy does.
func (a *App) showPolicyPlan(plan client.PolicyPlan, name, then string) error {
	return a.one(plan, name, func(p output.Printer, w io.Writer) error {
		if err := showChangedVMs(p, w, plan.Changed); err != nil {
			return err
		}
		if err := output.Section(p, w, fmt.Sprintf("Kept no longer: %s", plural(len(plan.Pruned), "restore point")), plan.Pruned, a.verdictColumns()); err != nil {
			return err
		}
		if len(plan.Changed)+len(plan.Pruned) == 0 {
			then = "No VM is covered by another policy, and no restore point is let go. " + then
		}
		_, err := fmt.Fprintln(w, then)
		return err
	})
}

func (a *App) verdictColumns() []output.Column[client.PointVerdict] {
	return []output.Column[client.PointVerdict]{
		{Header: "VM", Value: func(v client.PointVerdict) string { return v.VMName }},
		{Header: "RESTORE POINT", Value: func(v client.PointVerdict) string { return v.RestorePointID }},
		{Header: "TIME", Value: func(v client.PointVerdict) string { return output.Time(v.Time, a.Location) }},
		{Header: "SIZE", Right: true, Value: func(v client.PointVerdict) string { return output.Size(v.SizeBytes) }},
		{Header: "KEPT BECAUSE", Value: func(v client.PointVerdict) string {
			if len(v.Reasons) == 0 {
				return "it is not: pruned"
			}
			return strings.Join(v.Reasons, "; ")
		}},
	}
}

func (a *App) policyPause() *cobra.Command {
	return a.policyPaused("pause POLICY", "Let a policy never be due; it still covers its VMs", true)
}

func (a *App) policyResume() *cobra.Command {
	return a.policyPaused("resume POLICY", "End a pause; what was due meanwhile is not caught up", false)
}

func (a *App) policyPaused(use, short string, paused bool) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args("POLICY"), ValidArgsFunction: a.completePolicies,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			p, err := seePolicy(ctx, s, args[0])
			if err != nil {
				return err
			}
			req := requestOf(p)
			req.Paused = paused
			plan, err := a.replacePolicy(ctx, s, p.ID, req, false)
			if err != nil {
				return err
			}
			a.Say("%s: next %s.", p.Name, a.nextDue(plan.Policy))
			return nil
		}),
	}
}

func (a *App) policyRun() *cobra.Command {
	return &cobra.Command{
		Use: "run POLICY", Short: "Let a policy be due now", Args: args("POLICY"), ValidArgsFunction: a.completePolicies,
		Long: "Let every VM that the policy covers have its turn now. Windows and limits hold; \"cairn policy turns\" says how it goes.",
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			p, err := findPolicy(ctx, s, args[0])
			if err != nil {
				return err
			}
			resp, err := s.RunPolicy(ctx, p.ID, nil)
			r, err := remote.Decode[client.PolicyRun](s, resp, err)
			if err != nil {
				return err
			}
			return a.one(r, p.Name, func(_ output.Printer, w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s have their turn. See \"cairn policy turns %s\".\n", plural(r.VMs, "VM"), p.Name)
				return err
			})
		}),
	}
}

func (a *App) policyPreview() *cobra.Command {
	var keep []string
	var vm string
	var all bool
	cmd := &cobra.Command{
		Use: "preview POLICY", Short: "See which restore points retention would prune now", Args: args("POLICY"), ValidArgsFunction: a.completePolicies,
		Long:    "See which restore points of the VMs that the policy covers its retention would prune now. Nothing is changed.",
		Example: "  cairn policy preview gold --all --vm web01\n  cairn policy preview gold --keep daily=7,monthly=6",
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			p, err := findPolicy(ctx, s, args[0])
			if err != nil {
				return err
			}
			req := client.PreviewRequest{All: all}
			if keep != nil {
				if req.Retention, err = parseKeep(keep); err != nil {
					return err
				}
			}
			if vm != "" {
				found, err := findVM(ctx, s, vm)
				if err != nil {
					return err
				}
				req.VM = found.ID
			}
			resp, err := s.PreviewPolicy(ctx, p.ID, req)
			v, err := remote.Decode[client.Preview](s, resp, err)
			if err != nil {
				return err
			}
			return a.one(v, p.Name, func(pr output.Printer, w io.Writer) error {
				if _, err := fmt.Fprintf(w, "%s: %d stay, %d would be pruned.\n", plural(v.VMs, "VM"), v.Kept, v.Pruned); err != nil {
					return err
				}
				return output.Section(pr, w, "Restore points", v.Items, a.verdictColumns())
			})
		}),
	}
	cmd.Flags().StringSliceVar(&keep, "keep", nil, "as if the policy kept these `RULES`, such as daily=14,weekly=8")
	cmd.Flags().StringVar(&vm, "vm", "", "only restore points of this `VM`")
	cmd.Flags().BoolVar(&all, "all", false, "also those that stay, and why")
	_ = cmd.RegisterFlagCompletionFunc("vm", a.completeVMs)
	return cmd
}

func (a *App) policyRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove POLICY", Aliases: []string{"rm"}, Short: "Remove a policy; restore points stay", Args: args("POLICY"), ValidArgsFunction: a.completePolicies,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			p, err := findPolicy(ctx, s, args[0])
			if err != nil {
				return err
			}
			if err := a.Confirm(ctx, "Remove policy %q? %s that it covers lose its protection.", p.Name, plural(p.VMs, "VM")); err != nil {
				return err
			}
			resp, err := s.RemovePolicy(ctx, p.ID, nil)
			if err := remote.Done(s, resp, err); err != nil {
				return err
			}
			a.Say("Removed %q. Its restore points stay.", p.Name)
			return nil
		}),
	}
}
