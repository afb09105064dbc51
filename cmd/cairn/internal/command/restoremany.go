package command

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

// manyFlags are the flags of restore many as they are typed.
type manyFlags struct {
	waiting
	filter, before, repository string
	prefix, suffix             string
	sameNames, inPlace         bool
	connection, pool           string
	networks                   []string
	keepMACs, start            bool
	leaveOut, dryRun           bool
	by                         ways
}

func (a *App) restoreMany() *cobra.Command {
	var f manyFlags
	cmd := &cobra.Command{
		Use: "many --filter FILTER", Short: "Restore all virtual machines that a filter selects", Args: args(),
		Long: `Restore all virtual machines that a filter selects, each from its newest good restore point, in one run: a cluster, a
folder, everything with a tag. VMs that are gone from their platform are selected as they were when they were last seen.

They become new VMs, whose names are the old ones between --name-prefix and --name-suffix, or just the old ones with --same-names,
or are given their disks back with --in-place, for which they must be off. --dry-run shows what each would be restored from, and
which cannot be restored and why. As long as there are such, nothing is started without --leave-out.`,
		Example: `  cairn restore many --filter 'cluster = prod' --name-suffix -restored --dry-run
  cairn restore many --filter 'cluster = prod' --before 2026-11-20T18:00 --name-suffix -restored --wait
  cairn restore many --filter 'tag = shop' --same-names --connection new-site --pool fast --network old=new --start`,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			req, err := a.manyRequest(ctx, s, &f)
			if err != nil {
				return err
			}
			if f.inPlace && !f.dryRun {
				if err := a.confirmMany(ctx, s, req); err != nil {
					return err
				}
			}
			resp, err := s.StartRestores(ctx, &client.StartRestoresParams{IdempotencyKey: f.key()}, req)
			if f.dryRun {
				outcome, err := remote.Decode[client.RestoresOutcome](s, resp, err)
				if err != nil {
					return err
				}
				return a.showManyPlan(outcome.Plan)
			}
			run, err := manyRun(s, resp, err)
			if err != nil {
				return err
			}
			return a.started(ctx, s, f.waiting, []client.Run{run})
		}),
	}
	f.flags(a, cmd)
	return cmd
}

func (f *manyFlags) flags(a *App, cmd *cobra.Command) {
	f.waiting.flags(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.filter, "filter", "", "the VMs that this `FILTER` selects, as of policies")
	fl.StringVar(&f.before, "before", "", "no restore point after this `DATE`, 2027-01-31 or 2027-01-31T18:00")
	fl.StringVarP(&f.repository, "repository", "r", "", "only restore points in this `REPOSITORY`")
	fl.StringVar(&f.prefix, "name-prefix", "", "make new VMs: `TEXT` and the old name")
	fl.StringVar(&f.suffix, "name-suffix", "", "make new VMs: the old name and `TEXT`")
	fl.BoolVar(&f.sameNames, "same-names", false, "make new VMs of the old names")
	fl.BoolVar(&f.inPlace, "in-place", false, "give the original VMs their disks back")
	fl.StringVar(&f.connection, "connection", "", "`CONNECTION` to restore to; each VM's own by default")
	fl.StringVar(&f.pool, "pool", "", "`DATASTORE` for all disks; as they were by default")
	fl.StringArrayVar(&f.networks, "network", nil, "`FROM=TO`, for the VMs that are connected to FROM; may be repeated")
	fl.BoolVar(&f.keepMACs, "keep-macs", false, "new VMs keep the MAC addresses")
	fl.BoolVar(&f.start, "start", false, "start the VMs when they are restored")
	f.by.flags(a, cmd, "write")
	fl.BoolVar(&f.leaveOut, "leave-out", false, "leave out the VMs that cannot be restored")
	fl.BoolVar(&f.dryRun, "dry-run", false, "only say what would be made")
	_ = cmd.RegisterFlagCompletionFunc("connection", a.completeConnections)
	_ = cmd.RegisterFlagCompletionFunc("repository", a.completeRepositories)
	for _, name := range []string{"filter", "before", "name-prefix", "name-suffix", "pool", "network"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// manyRequest turns the flags into what the API wants.
func (a *App) manyRequest(ctx context.Context, s *remote.Session, f *manyFlags) (client.RestoresRequest, error) {
	req := client.RestoresRequest{
		Filter: f.filter, Mode: client.RestoresNew, NamePrefix: f.prefix, NameSuffix: f.suffix, Datastore: f.pool, KeepMACs: f.keepMACs, Start: f.start,
		Mover: f.by.mover, Transport: f.by.transport, Fallback: f.by.fallback, LeaveOut: f.leaveOut, DryRun: f.dryRun,
	}
	named := f.prefix != "" || f.suffix != ""
	switch {
	case f.filter == "":
		return req, failure.UsageError("Say which VMs: --filter 'cluster = prod', or --filter all.", "restore many needs --filter")
	case f.inPlace && (named || f.sameNames), named && f.sameNames:
		return req, failure.UsageError("Give one of them.", "--name-prefix and --name-suffix, --same-names and --in-place exclude each other")
	case f.inPlace:
		req.Mode = client.RestoresInPlace
	case !named && !f.sameNames:
		return req, failure.UsageError("Give --name-prefix, --name-suffix or --same-names for new VMs, or --in-place to replace the originals.", "it is not said what to restore to")
	}
	var err error
	if req.Before, err = a.parseDate(f.before); err != nil {
		return req, err
	}
	if req.Networks, err = parseNetworks(f.networks); err != nil {
		return req, err
	}
	if f.repository != "" {
		r, err := findRepository(ctx, s, f.repository)
		if err != nil {
			return req, err
		}
		req.Repository = r.ID
	}
	if f.connection != "" {
		c, err := findConnection(ctx, s, f.connection)
		if err != nil {
			return req, err
		}
		req.Connection = c.ID
	}
	return req, nil
}

// confirmMany asks whether the disks of so many VMs shall be replaced.
func (a *App) confirmMany(ctx context.Context, s *remote.Session, req client.RestoresRequest) error {
	req.DryRun = true
	resp, err := s.StartRestores(ctx, &client.StartRestoresParams{}, req)
	outcome, err := remote.Decode[client.RestoresOutcome](s, resp, err)
	if err != nil {
		return err
	}
	return a.Confirm(ctx, "Replace the disks of %d VMs by those of their restore points?", len(outcome.Plan.VMs)-cannot(outcome.Plan))
}

// manyRun is the run that was started, which has ended already or has not.
func manyRun(s *remote.Session, resp *http.Response, err error) (client.Run, error) {
	if err == nil && resp.StatusCode == http.StatusOK {
		outcome, err := remote.Decode[client.RestoresOutcome](s, resp, err)
		return outcome.Run, err
	}
	return remote.Decode[client.Run](s, resp, err)
}

// cannot counts the VMs that cannot be restored.
func cannot(plan client.RestoresPlan) (n int) {
	for _, vm := range plan.VMs {
		if vm.Error.Type != "" {
			n++
		}
	}
	return n
}

func (a *App) showManyPlan(plan client.RestoresPlan) error {
	columns := []output.Column[client.RestoresPlanVM]{
		{Header: "VM", Value: func(v client.RestoresPlanVM) string { return v.VMName }},
		{Header: "AS", Value: func(v client.RestoresPlanVM) string { return v.Name }},
		{Header: "POINT", Value: func(v client.RestoresPlanVM) string { return v.RestorePointID }},
		{Header: "TIME", Value: func(v client.RestoresPlanVM) string {
			if v.RestorePointID == "" {
				return ""
			}
			return output.Time(v.RestorePointAt, a.Location)
		}},
		{Header: "DISKS", Right: true, Value: func(v client.RestoresPlanVM) string {
			if v.Error.Type != "" {
				return ""
			}
			return strconv.Itoa(v.Disks)
		}},
		{Header: "SIZE", Right: true, Value: func(v client.RestoresPlanVM) string {
			if v.Error.Type != "" {
				return ""
			}
			return output.Size(v.SizeBytes)
		}},
		{Header: "PROBLEM", Value: func(v client.RestoresPlanVM) string { return v.Error.Detail }},
	}
	p := a.Printer()
	show := func(io.Writer) error {
		return output.List(p, plan.VMs, func(v client.RestoresPlanVM) string { return v.VMID }, "No VMs.", columns)
	}
	if p.Format == output.Name {
		return show(nil)
	}
	if err := p.Value(plan, show); err != nil {
		return err
	}
	warned := len(plan.Warnings)
	for _, warning := range plan.Warnings {
		a.Say("Warning: %s", output.Printable(warning))
	}
	for _, vm := range plan.VMs {
		warned += len(vm.Warnings)
		for _, warning := range vm.Warnings {
			a.Say("Warning: %s: %s", output.Printable(vm.VMName), output.Printable(warning))
		}
	}
	n := cannot(plan)
	a.Say("%d of %d VMs can be restored. Nothing was made.", len(plan.VMs)-n, len(plan.VMs))
	if cmp.Or(n, warned) > 0 {
		return failure.Ended{Code: failure.Warning}
	}
	return nil
}
