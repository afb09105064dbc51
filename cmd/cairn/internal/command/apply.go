package command

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/desired"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

const filesHelp = "The files say what connections, repositories, policies and exclusions there shall be; docs/declared.md describes them.\n" +
	"What is there and in no file stays as it is, unless --remove is given."

// planned is what `cairn plan` answers.
type planned struct {
	Changes []change `json:"changes"`
	client.CoveragePlan
}

// wanted are the flags of plan and apply.
type wanted struct {
	files  []string
	remove bool
}

func (w *wanted) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVarP(&w.files, "file", "f", nil, "`FILE` or directory with what there shall be, - for standard input; may be repeated")
	f.BoolVar(&w.remove, "remove", false, "remove what is there and in no file; repositories are detached, their data stays")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
}

func (w *wanted) difference(ctx context.Context, a *App, s *remote.Session) (*difference, error) {
	if len(w.files) == 0 {
		return nil, failure.UsageError("Name it with -f.", "it is not said which files to read")
	}
	state, err := desired.Read(w.files, a.In)
	if err != nil {
		return nil, err
	}
	c := &difference{a: a, s: s, want: state, remove: w.remove}
	return c, c.compare(ctx)
}

func (a *App) plan() *cobra.Command {
	var w wanted
	var exitCode bool
	cmd := &cobra.Command{
		Use: "plan -f FILE", Short: "Say what \"cairn apply\" would change", Args: args(),
		Long: "Say what \"cairn apply\" would change: what is made, changed and removed, which VMs gain, lose or change their protection, and\n" +
			"which restore points retention would let go at the end of their next backup. Nothing is changed.\n\n" + filesHelp,
		Example: "  cairn plan -f site.yaml\n  cairn plan -f site.d --remove --exit-code",
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			c, err := w.difference(ctx, a, s)
			if err != nil {
				return err
			}
			if err := a.showChanges(c); err != nil {
				return err
			}
			if exitCode && len(c.steps) > 0 {
				return failure.Ended{Code: failure.Warning}
			}
			return nil
		}),
	}
	w.add(cmd)
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "end with 3 if something would change")
	return cmd
}

func (a *App) apply() *cobra.Command {
	var w wanted
	var dryRun bool
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Make connections, repositories, policies and exclusions what files say", Args: args(),
		Long: "Make connections, repositories, policies and exclusions what files say. What is so already is left alone, so that it may be repeated.\n" +
			"It is asked for a yes when VMs would lose their protection, restore points would go, or something is removed.\n\n" + filesHelp +
			"\nOne thing is changed after the other; when one fails, what comes after it is left out and the exit code is 3 if anything was changed.",
		Example: "  cairn export >site.yaml\n  cairn apply -f site.yaml --dry-run\n  cairn apply -f site.d --remove --yes",
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			c, err := w.difference(ctx, a, s)
			if err != nil {
				return err
			}
			if err := a.showChanges(c); err != nil || dryRun || len(c.steps) == 0 {
				return err
			}
			if loss := c.loss(); loss != "" {
				if err := a.Confirm(ctx, "Apply this? %s.", loss); err != nil {
					return err
				}
			}
			return c.apply(ctx)
		}),
	}
	w.add(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would change, as \"cairn plan\" does")
	return cmd
}

// loss says what is lost by the changes; "" is nothing.
func (d *difference) loss() string {
	var parts []string
	removed, unprotected := 0, 0
	for _, s := range d.steps {
		if s.Action == actionRemove {
			removed++
		}
	}
	for _, v := range d.plan.Changed {
		if v.After == "" {
			unprotected++
		}
	}
	if removed > 0 {
		parts = append(parts, fmt.Sprintf("%d removed", removed))
	}
	if unprotected > 0 {
		parts = append(parts, plural(unprotected, "VM")+" unprotected")
	}
	if n := len(d.plan.Pruned); n > 0 {
		parts = append(parts, plural(n, "restore point")+" pruned")
	}
	return strings.Join(parts, ", ")
}

// apply does the steps.
func (d *difference) apply(ctx context.Context) error {
	for i, step := range d.steps {
		if err := step.do(ctx); err != nil {
			failure.Print(d.a.Err, fmt.Errorf("%s %s %q: %w", step.Action, step.Kind, step.Name, err), d.a.ColourErr())
			if i == 0 {
				return failure.Ended{Code: failure.CodeOf(err)}
			}
			d.a.Say("%d of %d changes were made; those after the one that failed were not. Correct it, and apply again.", i, len(d.steps))
			return failure.Ended{Code: failure.Warning}
		}
		d.a.Say("%s %s %q.", map[string]string{actionCreate: "Made", actionChange: "Changed", actionRemove: "Removed"}[step.Action], step.Kind, step.Name)
	}
	return nil
}

func (a *App) showChanges(d *difference) error {
	v := planned{Changes: d.steps, CoveragePlan: d.plan}
	if v.Changes == nil {
		v.Changes = []change{}
	}
	return a.one(v, "plan", func(p output.Printer, w io.Writer) error {
		count := map[string]int{}
		for _, s := range d.steps {
			count[s.Action]++
			line := fmt.Sprintf("%s %s %s", actionSigns[s.Action], s.Kind, output.Printable(s.Name))
			if len(s.Fields) > 0 {
				line += ": " + strings.Join(s.Fields, ", ")
			}
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
		if err := a.showCoverage(p, w, d.plan); err != nil {
			return err
		}
		for _, note := range d.notes {
			if _, err := fmt.Fprintln(w, note); err != nil {
				return err
			}
		}
		if len(d.steps) == 0 {
			_, err := fmt.Fprintln(w, "Everything is as the files say.")
			return err
		}
		_, err := fmt.Fprintf(w, "%d to create, %d to change, %d to remove.\n", count[actionCreate], count[actionChange], count[actionRemove])
		return err
	})
}

// showCoverage says which VMs are protected otherwise, and which restore points go.
func (a *App) showCoverage(p output.Printer, w io.Writer, plan client.CoveragePlan) error {
	if err := showChangedVMs(p, w, plan.Changed); err != nil || len(plan.Pruned) == 0 {
		return err
	}
	title := "Would be pruned: " + plural(len(plan.Pruned), "restore point")
	if plan.More {
		title += ", and more"
	}
	return output.Section(p, w, title, plan.Pruned, a.verdictColumns())
}

// showChangedVMs says which VMs gain, lose or change what protects them.
func showChangedVMs(p output.Printer, w io.Writer, changed []client.PlannedVM) error {
	for _, part := range []struct {
		title string
		of    func(client.PlannedVM) bool
	}{
		{"Gain protection", func(v client.PlannedVM) bool { return v.Before == "" }},
		{"Lose protection", func(v client.PlannedVM) bool { return v.After == "" }},
		{"Protected by another policy", func(v client.PlannedVM) bool { return v.Before != "" && v.After != "" }},
	} {
		var vms []client.PlannedVM
		for _, v := range changed {
			if part.of(v) {
				vms = append(vms, v)
			}
		}
		if len(vms) == 0 {
			continue
		}
		if err := output.Section(p, w, part.title+": "+plural(len(vms), "VM"), vms, plannedVMColumns()); err != nil {
			return err
		}
	}
	return nil
}

func plannedVMColumns() []output.Column[client.PlannedVM] {
	none := func(s string) string {
		if s == "" {
			return "none"
		}
		return s
	}
	return []output.Column[client.PlannedVM]{
		{Header: "VM", Value: func(v client.PlannedVM) string { return v.Name }},
		{Header: "BEFORE", Value: func(v client.PlannedVM) string { return none(v.Before) }},
		{Header: "AFTER", Value: func(v client.PlannedVM) string { return none(v.After) }},
		{Header: "ID", Wide: true, Value: func(v client.PlannedVM) string { return v.VMID }},
	}
}

func (a *App) export() *cobra.Command {
	return &cobra.Command{
		Use: "export", Short: "Write what there is as a file for \"cairn apply\"", Args: args(),
		Long: "Write connections, repositories, policies and exclusions to standard output as a file for \"cairn apply\", which then changes nothing.\n" +
			"Passwords are left out: applied to the same appliance, those that are stored stay.",
		Example: "  cairn export >site.yaml",
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			c := &difference{a: a, s: s}
			if err := c.read(ctx); err != nil {
				return err
			}
			return desired.Write(a.Out, c.state())
		}),
	}
}

// state is what there is.
func (d *difference) state() desired.State {
	var out desired.State
	for _, h := range d.connections {
		out.Connections = append(out.Connections, desired.Connection{Name: h.Name, Platform: h.Platform, Address: h.Address, User: h.User, Options: h.Options})
	}
	names := map[string]string{}
	for _, h := range d.repositories {
		names[h.ID] = h.Name
		r := desired.Repository{
			CreateRepositoryRequest: client.CreateRepositoryRequest{Name: h.Name, Path: h.Path, Mode: client.RepositoryAttach, KeySource: h.KeyFile, Compression: h.Compression},
			Verification:            &client.VerificationSettings{EveryDays: h.Verification.EveryDays, BytesPerSecond: h.Verification.BytesPerSecond},
		}
		if len(h.Members) > 0 {
			r.Path = ""
			for _, m := range h.Members {
				r.Set.Members = append(r.Set.Members, client.SetMember{Path: m.Path})
			}
		}
		out.Repositories = append(out.Repositories, r)
	}
	for _, h := range d.policies {
		req := requestOf(h)
		req.Repository = names[h.RepositoryID]
		out.Policies = append(out.Policies, req)
	}
	seen := map[string]bool{}
	for _, h := range d.exclusions {
		if !seen[h.Filter] {
			seen[h.Filter] = true
			out.Exclusions = append(out.Exclusions, client.ExclusionRequest{Filter: h.Filter, Reason: h.Reason, EndsAt: h.EndsAt})
		}
	}
	return out
}
