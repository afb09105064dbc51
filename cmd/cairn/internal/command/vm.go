package command

import (
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) vms() *cobra.Command {
	group := a.group("vm", "Virtual machines", "")
	group.AddCommand(a.vmList(), a.vmShow())
	return group
}

func (a *App) vmList() *cobra.Command {
	var connection, expression, power, sort string
	var watch, gone bool
	cmd := &cobra.Command{
		Use: "list [NAME]", Aliases: []string{"ls"}, Short: "List virtual machines; * in NAME stands for anything", Args: args("[NAME]"),
		ValidArgsFunction: a.completeVMs,
	}
	cmd.RunE = a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
		var filter client.ListVMsParams
		if len(args) == 1 {
			filter.Name = &args[0]
		}
		if gone {
			filter.Gone = &gone
		}
		if sort != "" {
			filter.Sort = &sort
		}
		if expression != "" {
			filter.Filter = &expression
		}
		if power != "" {
			filter.Power = ref(client.Power(power))
		}
		if connection != "" {
			c, err := findConnection(ctx, s, connection)
			if err != nil {
				return err
			}
			filter.Connection = &c.ID
		}
		return a.watch(ctx, watch, func(w io.Writer) error {
			all, err := listVMs(ctx, s, filter)
			if err != nil {
				return err
			}
			names := map[string]string{}
			if a.Format().Human() && len(all) > 0 {
				if names, err = connectionNames(ctx, s); err != nil {
					return err
				}
			}
			p := a.Printer()
			p.Out = w
			return output.List(p, all, unambiguous(all), "No virtual machines.", a.vmColumns(names))
		})
	})
	f := cmd.Flags()
	f.StringVar(&connection, "connection", "", "only VMs of this `CONNECTION`")
	f.StringVar(&expression, "filter", "", "only VMs that this filter selects, for example `'cluster = prod and not tag = scratch'`")
	f.StringVar(&power, "power", "", "only VMs in this power `STATE`: on, off, paused, other")
	f.BoolVar(&gone, "gone", false, "also VMs that the last inventory did not have any more")
	a.sortFlag(cmd, &sort, "name", "power")
	f.BoolVarP(&watch, "watch", "w", false, "list again whenever something may have changed")
	_ = cmd.RegisterFlagCompletionFunc("connection", a.completeConnections)
	_ = cmd.RegisterFlagCompletionFunc("power", cobra.FixedCompletions([]string{"on", "off", "paused", "other"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *App) vmColumns(connections map[string]string) []output.Column[client.VM] {
	return []output.Column[client.VM]{
		{Header: "NAME", Value: func(v client.VM) string { return v.Name }},
		{Header: "POWER", Value: func(v client.VM) string { return string(v.Power) }},
		{Header: "DISKS", Right: true, Value: func(v client.VM) string { return strconv.Itoa(v.Disks) }},
		{Header: "SIZE", Right: true, Value: func(v client.VM) string { return output.Size(v.SizeBytes) }},
		{Header: "LAST BACKUP", Right: true, State: true, Value: func(v client.VM) string { return a.age(v.LastRestorePointAt) }},
		{Header: "CONNECTION", Value: func(v client.VM) string { return nameOr(connections, v.ConnectionID) }},
		{Header: "ID", Wide: true, Value: func(v client.VM) string { return v.ID }},
		{Header: "CLUSTER", Wide: true, Value: func(v client.VM) string { return v.Cluster }},
		{Header: "TAGS", Wide: true, Value: func(v client.VM) string { return strings.Join(v.Tags, ", ") }},
		{Header: "HOST", Wide: true, Value: func(v client.VM) string { return v.Host }},
		{Header: "PLATFORM ID", Wide: true, Value: func(v client.VM) string { return v.PlatformID }},
		{Header: "NOTE", Value: vmNote},
	}
}

// unambiguous names VMs so that other commands understand it: by name, or by id where several have the name.
func unambiguous(all []client.VM) func(client.VM) string {
	count := map[string]int{}
	for _, v := range all {
		count[v.Name]++
	}
	return func(v client.VM) string {
		if count[v.Name] > 1 {
			return v.ID
		}
		return v.Name
	}
}

func vmNote(v client.VM) string {
	var notes []string
	if v.Gone {
		notes = append(notes, "gone")
	}
	switch n := len(v.Unprotectable); {
	case v.UnprotectableReason != "":
		notes = append(notes, "cannot be backed up: "+v.UnprotectableReason)
	case n == 1:
		notes = append(notes, v.Unprotectable[0].Disk+" cannot be backed up")
	case n > 1:
		notes = append(notes, fmt.Sprintf("%d disks cannot be backed up", n))
	}
	return strings.Join(notes, ", ")
}

func connectionNames(ctx context.Context, s *remote.Session) (map[string]string, error) {
	all, err := listConnections(ctx, s)
	names := map[string]string{}
	for _, c := range all {
		names[c.ID] = c.Name
	}
	return names, err
}

func nameOr(names map[string]string, id string) string {
	if n := names[id]; n != "" {
		return n
	}
	return id
}

func (a *App) vmShow() *cobra.Command {
	return &cobra.Command{
		Use: "show VM", Short: "Show a virtual machine with its disks and networks", Args: args("VM"), ValidArgsFunction: a.completeVMs,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			found, err := findVM(ctx, s, args[0])
			if err != nil {
				return err
			}
			resp, err := s.GetVM(ctx, found.ID)
			vm, err := remote.Decode[client.VM](s, resp, err)
			if err != nil {
				return err
			}
			names := map[string]string{}
			if a.Format().Human() {
				if names, err = connectionNames(ctx, s); err != nil {
					return err
				}
			}
			return a.one(vm, vm.Name, func(p output.Printer, w io.Writer) error { return a.vmPage(p, w, vm, names) })
		}),
	}
}

func (a *App) vmPage(p output.Printer, w io.Writer, vm client.VM, connections map[string]string) error {
	gone := ""
	if vm.Gone {
		gone = "the last inventory did not have it any more"
	}
	d := vm.Description
	fields := []output.Field{
		{Name: "Name", Value: vm.Name},
		{Name: "ID", Value: vm.ID},
		{Name: "Connection", Value: nameOr(connections, vm.ConnectionID)},
		{Name: "Platform ID", Value: vm.PlatformID},
		{Name: "Host", Value: vm.Host},
		{Name: "Power", Value: string(vm.Power)},
		{Name: "Gone", Value: gone},
		{Name: "Title", Value: d.Title},
	}
	fields = append(fields, hardware(d)...)
	last := "never backed up"
	if vm.LastRestorePointID != "" {
		last = vm.LastRestorePointID + ", " + a.when(vm.LastRestorePointAt)
	}
	fields = append(fields, coverageFields(vm.Coverage)...)
	fields = append(fields, output.Field{Name: "Seen", Value: a.when(vm.SeenAt)}, output.Field{Name: "Last restore point", Value: last})
	fields = append(fields, output.Field{Name: "Cannot be backed up", Value: vm.UnprotectableReason})
	fields = append(fields, output.Lines("Left out of backups", reasons(vm.Unprotectable))...)
	if err := p.Fields(w, append(fields, output.Lines("Notes", d.Notes)...)...); err != nil {
		return err
	}
	return describeDevices(p, w, d, "")
}

// hardware are the fields that a VM and a restore point share.
func hardware(d client.VMDescription) []output.Field {
	if d.CPUs == 0 {
		return nil
	}
	firmware := d.Firmware
	if d.SecureBoot {
		firmware += ", secure boot"
	}
	if d.TPM != "" {
		firmware += ", TPM " + d.TPM
	}
	return []output.Field{
		{Name: "Machine", Value: strings.TrimSpace(d.Arch + " " + d.Machine)},
		{Name: "Firmware", Value: firmware},
		{Name: "CPUs", Value: strconv.Itoa(d.CPUs)},
		{Name: "Memory", Value: output.Size(d.MemoryBytes)},
		{Name: "Guest agent", Value: yesNo(d.Agent)},
		{Name: "Tags", Value: strings.Join(d.Tags, ", ")},
	}
}

// describeDevices writes tables of disks and networks; then says of when they are, where that is not now.
func describeDevices(p output.Printer, w io.Writer, d client.VMDescription, then string) error {
	err := output.Section(p, w, "Disks"+then, d.Disks, []output.Column[client.Disk]{
		{Header: "DISK", Value: func(d client.Disk) string { return d.ID }},
		{Header: "KIND", Value: func(d client.Disk) string { return d.Kind }},
		{Header: "BUS", Value: func(d client.Disk) string { return d.Bus }},
		{Header: "FORMAT", Value: func(d client.Disk) string { return d.Format }},
		{Header: "SIZE", Right: true, Value: func(d client.Disk) string { return output.Size(d.SizeBytes) }},
		{Header: "USED", Right: true, Value: func(d client.Disk) string { return sizeOrNone(d.UsedBytes) }},
		{Header: "DATASTORE", Value: func(d client.Disk) string { return d.Datastore }},
		{Header: "PATH", Value: func(d client.Disk) string { return d.Path }},
		{Header: "SERIAL", Wide: true, Value: func(d client.Disk) string { return d.Serial }},
	})
	if err != nil {
		return err
	}
	return output.Section(p, w, "Networks"+then, d.NICs, []output.Column[client.NIC]{
		{Header: "NIC", Value: func(n client.NIC) string { return n.ID }},
		{Header: "MAC", Value: func(n client.NIC) string { return n.MAC }},
		{Header: "MODEL", Value: func(n client.NIC) string { return n.Model }},
		{Header: "NETWORK", Value: func(n client.NIC) string { return n.Network }},
	})
}

func reasons(disks []client.Unprotectable) []string {
	var lines []string
	for _, d := range disks {
		lines = append(lines, d.Disk+": "+d.Reason)
	}
	return lines
}

func sizeOrNone(n int64) string {
	if n == 0 {
		return ""
	}
	return output.Size(n)
}

// sorted yields a map in the order of its keys.
func sorted(m map[string]string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
