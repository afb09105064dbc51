package command

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
	"github.com/cairn-backup/cairn/internal/fault"
)

var protections = []string{"protected", "late", "never_ran", "unprotected", "excluded", "unprotectable"}

func (a *App) coverage() *cobra.Command {
	var state, policy, filter string
	cmd := &cobra.Command{
		Use: "coverage", Short: "How well virtual machines are protected", Args: args(),
		Long: "List virtual machines with how well they are protected:\n" +
			"  protected      the newest good restore point is as young as the policy promises\n" +
			"  late           it is older\n" +
			"  never_ran      a policy covers the VM, and it has no good restore point\n" +
			"  unprotected    no policy covers it\n" +
			"  excluded       an exclusion does, with a reason\n" +
			"  unprotectable  no policy covers it, and none could: the platform cannot freeze it",
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			var params client.ListCoverageParams
			if state != "" {
				params.State = ref(client.Protection(state))
			}
			if filter != "" {
				params.Filter = &filter
			}
			if policy != "" {
				p, err := findPolicy(ctx, s, policy)
				if err != nil {
					return err
				}
				params.Policy = &p.ID
			}
			var counts client.CoverageCounts
			all, err := remote.All(func(token *string) ([]client.Coverage, string, error) {
				params.Limit, params.PageToken = ref(page), token
				resp, err := s.ListCoverage(ctx, &params)
				l, err := remote.Decode[client.CoverageList](s, resp, err)
				counts = l.Counts
				return l.Items, l.Next, err
			})
			if err != nil {
				return err
			}
			if a.Format().Human() {
				a.Say("%d protected, %d late, %d never ran, %d unprotected, %d excluded, %d unprotectable",
					counts.Protected, counts.Late, counts.NeverRan, counts.Unprotected, counts.Excluded, counts.Unprotectable)
			}
			return output.List(a.Printer(), all, func(c client.Coverage) string { return c.Name }, "No virtual machines.", a.coverageColumns())
		}),
	}
	f := cmd.Flags()
	f.StringVar(&state, "state", "", "only VMs in this `STATE`: "+strings.Join(protections, ", "))
	f.StringVar(&policy, "policy", "", "only VMs that this `POLICY` covers")
	f.StringVar(&filter, "filter", "", "only VMs that this filter selects, for example `'cluster = prod'`")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(protections, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("policy", a.completePolicies)
	cmd.AddCommand(a.coverageHistory())
	return cmd
}

func (a *App) coverageColumns() []output.Column[client.Coverage] {
	return []output.Column[client.Coverage]{
		{Header: "VM", Value: func(c client.Coverage) string { return c.Name }},
		{Header: "STATE", State: true, Value: func(c client.Coverage) string { return string(c.State) }},
		{Header: "POLICY", Value: func(c client.Coverage) string { return c.Policy }},
		{Header: "RPO", Right: true, Value: func(c client.Coverage) string { return span(c.RPOAchievedSeconds) }},
		{Header: "PROMISED", Right: true, Value: func(c client.Coverage) string { return span(c.RPOTargetSeconds) }},
		{Header: "RESTORE POINT", Wide: true, Value: func(c client.Coverage) string { return c.RestorePointID }},
		{Header: "ID", Wide: true, Value: func(c client.Coverage) string { return c.VMID }},
		{Header: "WHY", Value: coverageNote},
	}
}

// coverageNote says what a person must know: why a turn waits, or why no policy covers the VM.
func coverageNote(c client.Coverage) string {
	switch {
	case c.Waits != "":
		return "its turn waits: " + c.Waits
	case c.Policy == "":
		return c.Why
	}
	return ""
}

// coverageFields are what "vm show" says.
func coverageFields(c client.Coverage) []output.Field {
	if c.State == "" {
		return nil
	}
	rpo := ""
	if c.RPOTargetSeconds > 0 {
		rpo = span(c.RPOTargetSeconds) + " promised"
		if c.RestorePointID != "" {
			rpo = span(max(1, c.RPOAchievedSeconds)) + " achieved, " + rpo
		}
	}
	return []output.Field{
		{Name: "Protection", Value: string(c.State), State: true},
		{Name: "RPO", Value: rpo},
		{Name: "Why", Value: c.Why},
		{Name: "Waits", Value: c.Waits},
	}
}

func (a *App) exclusions() *cobra.Command {
	group := a.group("exclusion", "VMs that no policy covers, and why", "")
	group.AddCommand(a.exclusionList(), a.exclusionAdd(), a.exclusionRemove())
	return group
}

func (a *App) exclusionList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List exclusions", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			resp, err := s.ListExclusions(ctx)
			l, err := remote.Decode[client.ExclusionList](s, resp, err)
			if err != nil {
				return err
			}
			names, err := a.excludedByID(ctx, s, l.Items)
			if err != nil {
				return err
			}
			return output.List(a.Printer(), l.Items, func(e client.Exclusion) string { return e.ID }, "No exclusions.", a.exclusionColumns(names))
		}),
	}
}

// excludedByID returns the names of VMs that exclusions name by their ids, by filter.
func (a *App) excludedByID(ctx context.Context, s *remote.Session, list []client.Exclusion) (map[string]string, error) {
	names := map[string]string{}
	if !a.Format().Human() {
		return names, nil
	}
	var ids []string
	for _, e := range list {
		if id, ok := strings.CutPrefix(e.Filter, byID); ok && vmID.MatchString(id) {
			ids = append(ids, id)
		}
	}
	for some := range slices.Chunk(ids, idsAtOnce) {
		vms, err := listVMs(ctx, s, client.ListVMsParams{Filter: ref("id in (" + strings.Join(some, ", ") + ")")})
		if err != nil && fault.KindOf(err) != fault.Denied {
			return nil, err
		}
		for _, v := range vms {
			names[byID+v.ID] = v.Name
		}
	}
	return names, nil
}

// idsAtOnce keeps a filter of ids shorter than filters may be.
const idsAtOnce = 100

var vmID = regexp.MustCompile(`^vm_[0-9a-z]{1,30}$`)

// byID begins the filter of an exclusion of one VM.
const byID = "id = "

// exclusionColumns takes the names of VMs by filters that name them by their ids.
func (a *App) exclusionColumns(names map[string]string) []output.Column[client.Exclusion] {
	return []output.Column[client.Exclusion]{
		{Header: "ID", Value: func(e client.Exclusion) string { return e.ID }},
		{Header: "FILTER", Value: func(e client.Exclusion) string { return e.Filter }},
		{Header: "VM", Value: func(e client.Exclusion) string { return names[e.Filter] }},
		{Header: "VMS", Right: true, Value: func(e client.Exclusion) string { return countOf(e.VMs) }},
		{Header: "UNTIL", Value: func(e client.Exclusion) string {
			if e.EndsAt.IsZero() {
				return ""
			}
			if !e.Holds {
				return "ended " + output.Time(e.EndsAt, a.Location)
			}
			return output.Time(e.EndsAt, a.Location)
		}},
		{Header: "BY", Value: func(e client.Exclusion) string { return e.CreatedBy }},
		{Header: "REASON", Value: func(e client.Exclusion) string { return e.Reason }},
	}
}

func (a *App) exclusionAdd() *cobra.Command {
	var vm, filter, reason, until string
	var dryRun bool
	cmd := &cobra.Command{
		Use: "add --vm VM | --filter FILTER --reason TEXT", Short: "Exclude VMs from every policy", Args: args(),
		Example: `  cairn exclusion add --vm build01 --reason "made anew each night"
  cairn exclusion add --filter 'tag = scratch' --reason "nobody needs them" --until 2027-01-31`,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			if (vm == "") == (filter == "") {
				return failure.UsageError("Name one VM, or a filter.", "an exclusion needs --vm or --filter")
			}
			if reason == "" {
				return failure.UsageError("Say why; it is shown wherever the VM is.", "an exclusion needs --reason")
			}
			req := client.ExclusionRequest{Filter: filter, Reason: reason}
			if vm != "" {
				found, err := findVM(ctx, s, vm)
				if err != nil {
					return err
				}
				req.Filter = byID + found.ID
			}
			var err error
			if req.EndsAt, err = a.parseDate(until); err != nil {
				return err
			}
			if dryRun {
				vms, err := listVMs(ctx, s, client.ListVMsParams{Filter: &req.Filter})
				if err != nil {
					return err
				}
				a.Say("Would exclude %s. Nothing was kept.", plural(len(vms), "VM"))
				return output.List(a.Printer(), vms, func(v client.VM) string { return v.Name }, "The filter selects no VM now.", []output.Column[client.VM]{
					{Header: "VM", Value: func(v client.VM) string { return v.Name }},
					{Header: "ID", Value: func(v client.VM) string { return v.ID }},
				})
			}
			resp, err := s.AddExclusion(ctx, nil, req)
			e, err := remote.Decode[client.Exclusion](s, resp, err)
			if err != nil {
				return err
			}
			return a.one(e, e.ID, func(_ output.Printer, w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s: %s excluded now.\n", e.ID, plural(e.VMs, "VM"))
				return err
			})
		}),
	}
	f := cmd.Flags()
	f.StringVar(&vm, "vm", "", "exclude this `VM`")
	f.StringVar(&filter, "filter", "", "exclude the VMs that this filter selects, for example `'tag = scratch'`")
	f.StringVar(&reason, "reason", "", "why, `TEXT`")
	f.StringVar(&until, "until", "", "it ends on this `DATE`, 2027-01-31 or 2027-01-31T18:00; never when not given")
	f.BoolVar(&dryRun, "dry-run", false, "only say which VMs it would exclude now")
	_ = cmd.RegisterFlagCompletionFunc("vm", a.completeVMs)
	return cmd
}

// parseDate reads a date, or a date and time, on the clocks of this machine; "" is none.
func (a *App) parseDate(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.DateOnly, "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(layout, s, a.Location); err == nil {
			return t.UTC(), nil
		}
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t.UTC(), nil
	}
	return time.Time{}, failure.UsageError("Write it as 2027-01-31 or 2027-01-31T18:00.", "%q is no date", s)
}

func (a *App) exclusionRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove ID", Aliases: []string{"rm"}, Short: "Take an exclusion back", Args: args("ID"),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			resp, err := s.RemoveExclusion(ctx, args[0], nil)
			return remote.Done(s, resp, err)
		}),
	}
}
