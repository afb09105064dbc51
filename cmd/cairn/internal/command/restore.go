package command

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) restore() *cobra.Command {
	group := a.group("restore", "Restore virtual machines", "")
	group.AddCommand(a.restoreStart(), a.restoreMany())
	return group
}

// restoreFlags are the flags of restore start as they are typed.
type restoreFlags struct {
	waiting
	name       string
	inPlace    bool
	alone      bool
	into       string
	connection string
	pool       string
	disks      []string
	only       []string
	networks   []string
	keepMACs   bool
	start      bool
	dryRun     bool
	by         ways
}

func (a *App) restoreStart() *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use: "start POINT", Short: "Restore a virtual machine from a restore point", Args: args("POINT"), ValidArgsFunction: a.completePoints,
		Long: `Restore a virtual machine, as a new one with --name, or in place of the original, which must be off, with
--in-place. Or restore its disks without it: with --disks-alone as disks that no VM has, where the platform has such (oVirt), and
with --into for a VM that is there, which gets them beside its own and, if it runs, plugged in.

With --only-disk only these disks are restored: the new VM has no others, and in place everything else of the VM stays as it
is. Otherwise all are, those that --disk does not name as they were. --disk DISK=POOL:FORMAT takes POOL or FORMAT alone, too:
vda=fast, vda=:qcow2. --network FROM=TO with nothing after the = leaves the NIC unconnected.`,
		Example: `  cairn restore start rp_01j... --name web01-copy --pool default --start --wait
  cairn restore start rp_01j... --in-place --wait
  cairn restore start rp_01j... --in-place --only-disk vdb --wait
  cairn restore start rp_01j... --into helper01 --only-disk vdb --wait
  cairn restore start rp_01j... --disks-alone --name web01-data --only-disk 3f2a... --wait
  cairn restore start rp_01j... --name t1 --disk vda=fast:qcow2 --network network:default=network:lab --dry-run`,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			req, err := f.request(args[0])
			if err != nil {
				return err
			}
			where, err := f.places(ctx, s, &req)
			if err != nil {
				return err
			}
			if f.inPlace && !f.dryRun {
				if err := a.confirmInPlace(ctx, s, args[0], f.only); err != nil {
					return err
				}
			}
			resp, err := s.StartRestore(ctx, &client.StartRestoreParams{IdempotencyKey: f.key()}, req)
			if f.dryRun {
				outcome, err := remote.Decode[client.RestoreOutcome](s, resp, err)
				if err != nil {
					return err
				}
				if where == "" && a.Format().Human() {
					c, err := findConnection(ctx, s, outcome.Plan.ConnectionID)
					if err != nil {
						return err
					}
					where = c.Name
				}
				return a.showPlan(outcome.Plan, where)
			}
			run, err := restoreRun(s, resp, err)
			if err != nil {
				return err
			}
			return a.started(ctx, s, f.waiting, []client.Run{run})
		}),
	}
	f.flags(a, cmd)
	return cmd
}

func (f *restoreFlags) flags(a *App, cmd *cobra.Command) {
	f.waiting.flags(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "make a new VM of this `NAME`")
	fl.BoolVar(&f.inPlace, "in-place", false, "give the original VM its disks back")
	fl.BoolVar(&f.alone, "disks-alone", false, "make disks that no VM has; --name names them")
	fl.StringVar(&f.into, "into", "", "give the disks to this `VM`, beside its own")
	fl.StringVar(&f.connection, "connection", "", "`CONNECTION` to restore to; the original connection by default")
	fl.StringVar(&f.pool, "pool", "", "`DATASTORE` for the disks that name none")
	fl.StringArrayVar(&f.disks, "disk", nil, "`DISK=POOL:FORMAT`; may be repeated")
	fl.StringSliceVar(&f.only, "only-disk", nil, "restore only this `DISK`; may be repeated, or several with commas")
	fl.StringArrayVar(&f.networks, "network", nil, "`FROM=TO`; may be repeated")
	fl.BoolVar(&f.keepMACs, "keep-macs", false, "with --name: keep the MAC addresses")
	fl.BoolVar(&f.start, "start", false, "start the VM when it is restored")
	f.by.flags(a, cmd, "write")
	fl.BoolVar(&f.dryRun, "dry-run", false, "only say what would be made")
	_ = cmd.RegisterFlagCompletionFunc("connection", a.completeConnections)
	_ = cmd.RegisterFlagCompletionFunc("into", a.completeVMs)
	for _, name := range []string{"name", "pool", "disk", "only-disk", "network"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// places turns the names of where to restore to into ids, and returns the connection's, "" if none was given.
func (f *restoreFlags) places(ctx context.Context, s *remote.Session, req *client.RestoreRequest) (connection string, err error) {
	if f.connection != "" {
		c, err := findConnection(ctx, s, f.connection)
		if err != nil {
			return "", err
		}
		req.Connection, connection = c.ID, c.Name
	}
	if f.into != "" {
		vm, err := findVM(ctx, s, f.into)
		if err != nil {
			return "", err
		}
		req.VM = vm.ID
	}
	return connection, nil
}

// confirmInPlace asks by name and time: an id is easily mistaken for another.
func (a *App) confirmInPlace(ctx context.Context, s *remote.Session, point string, only []string) error {
	resp, err := s.GetRestorePoint(ctx, point)
	r, err := remote.Decode[client.RestorePoint](s, resp, err)
	if err != nil {
		return err
	}
	what := "the disks"
	if len(only) > 0 {
		what = "only disk " + strings.Join(only, ", ")
	}
	return a.Confirm(ctx, "Replace %s of VM %q by those of %s, %s old? What was written to them since then is lost.",
		what, r.VMName, output.Time(r.Time, a.Location), a.age(r.Time))
}

// request turns the flags into what the API wants, and refuses what makes no sense before anybody is asked.
func (f *restoreFlags) request(point string) (client.RestoreRequest, error) {
	req := client.RestoreRequest{
		RestorePoint: point, Mode: client.RestoreNew, Name: f.name, Datastore: f.pool, KeepMACs: f.keepMACs, Start: f.start, DryRun: f.dryRun,
		OnlyDisks: f.only, Mover: f.by.mover, Transport: f.by.transport, Fallback: f.by.fallback,
	}
	switch {
	case f.into != "" && (f.inPlace || f.alone || f.name != ""), f.alone && f.inPlace:
		return req, failure.UsageError("Give one of them.", "--into, --in-place, --disks-alone and the --name of a new VM exclude each other")
	case f.inPlace && f.name != "":
		return req, failure.UsageError("Give one of the two.", "--name makes a new VM and --in-place replaces the original")
	case f.into != "":
		req.Mode = client.RestoreInto
	case f.alone:
		req.Mode = client.RestoreDisks
	case f.inPlace:
		req.Mode = client.RestoreInPlace
	case f.name == "":
		return req, failure.UsageError("Give --name NEW for a new VM, or --in-place to replace the original.", "it is not said what to restore to")
	}
	for _, d := range f.disks {
		disk, err := parseDisk(d)
		if err != nil {
			return req, err
		}
		req.Disks = append(req.Disks, disk)
	}
	var err error
	req.Networks, err = parseNetworks(f.networks)
	return req, err
}

// parseNetworks reads what was said with --network.
func parseNetworks(pairs []string) (map[string]string, error) {
	var out map[string]string
	for _, n := range pairs {
		from, to, ok := strings.Cut(n, "=")
		if !ok || from == "" {
			return nil, failure.UsageError("Write FROM=TO.", "--network %q is not a pair of networks", n)
		}
		if _, twice := out[from]; twice {
			return nil, failure.UsageError("Map each network once.", "--network %s is there twice", from)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[from] = to
	}
	return out, nil
}

// parseDisk reads DISK=POOL:FORMAT, DISK=POOL and DISK=:FORMAT.
func parseDisk(s string) (client.RestoreDisk, error) {
	id, target, ok := strings.Cut(s, "=")
	pool, format := target, ""
	if i := strings.LastIndexByte(target, ':'); i >= 0 {
		pool, format = target[:i], target[i+1:]
	}
	d := client.RestoreDisk{ID: id, Datastore: pool, Format: client.DiskFormat(format)}
	bad := d.Format != "" && d.Format != client.DiskRaw && d.Format != client.DiskQCOW2
	if !ok || id == "" || target == "" || target == ":" || bad || strings.HasSuffix(target, ":") {
		return d, failure.UsageError("Write DISK=POOL:FORMAT, as vda=default:qcow2; FORMAT is raw or qcow2.", "--disk %q cannot be understood", s)
	}
	return d, nil
}

// showPlan shows what a restore to a connection, here by its name, would make.
func (a *App) showPlan(plan client.RestorePlan, where string) error {
	err := a.one(plan, plan.VMName, func(p output.Printer, w io.Writer) error {
		fields := []output.Field{
			{Name: "VM", Value: plan.VMName},
			{Name: "Mode", Value: plan.Mode},
			{Name: "Connection", Value: where},
		}
		for from, to := range sorted(plan.Networks) {
			if to == "" {
				to = "not connected"
			}
			fields = append(fields, output.Field{Name: "Network " + from, Value: to})
		}
		if err := p.Fields(w, append(fields, output.Lines("Warnings", plan.Warnings)...)...); err != nil {
			return err
		}
		columns := []output.Column[client.PlannedDisk]{
			{Header: "DISK", Value: func(d client.PlannedDisk) string { return d.ID }},
			{Header: "SIZE", Right: true, Value: func(d client.PlannedDisk) string { return output.Size(d.SizeBytes) }},
			{Header: "DATASTORE", Value: func(d client.PlannedDisk) string { return d.Datastore }},
			{Header: "FORMAT", Value: func(d client.PlannedDisk) string { return d.Format }},
		}
		if slices.ContainsFunc(plan.Disks, func(d client.PlannedDisk) bool { return d.Name != "" }) {
			columns = append(columns, output.Column[client.PlannedDisk]{Header: "NAME", Value: func(d client.PlannedDisk) string { return d.Name }})
		}
		err := output.Section(p, w, "Disks", plan.Disks, columns)
		if err != nil || len(plan.LeftOut) == 0 {
			return err
		}
		return output.Section(p, w, "Not restored", plan.LeftOut, []output.Column[client.LeftOutDisk]{
			{Header: "DISK", Value: func(d client.LeftOutDisk) string { return d.ID }},
			{Header: "REASON", Value: func(d client.LeftOutDisk) string { return d.Reason }},
		})
	})
	if err != nil {
		return err
	}
	a.Say("Nothing was made.")
	if len(plan.Warnings) > 0 {
		return failure.Ended{Code: failure.Warning}
	}
	return nil
}
