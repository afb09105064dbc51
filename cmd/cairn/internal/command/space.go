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

func (a *App) repositorySpace() *cobra.Command {
	var without []string
	var points bool
	cmd := a.onRepository("space [NAME]", "Show who takes the space of a repository", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		var params client.GetRepositorySpaceParams
		if len(without) > 0 {
			params.Without = &without
		}
		resp, err := s.GetRepositorySpace(ctx, r.ID, &params)
		x, err := remote.Decode[client.RepositorySpace](s, resp, err)
		if err != nil {
			return err
		}
		return a.one(x, r.Name, func(p output.Printer, w io.Writer) error { return a.spacePage(p, w, r, x, without, points) })
	})
	cmd.Long = `Show who takes the space of a repository. UNIQUE is needed by nothing else, so it is what removing would free; SHARED is
needed by others too. FAIR SHARE counts shared bytes in equal parts: these, and what nothing needs, add up to all that
is stored.`
	cmd.Example = `  cairn repository space main
  cairn repository space main --points
  cairn repository space main --without rp_01j...,rp_01k...`
	cmd.Flags().StringSliceVar(&without, "without", nil, "say what pruning these restore points, `RP,RP,...`, would free")
	cmd.Flags().BoolVar(&points, "points", false, "list restore points too")
	_ = cmd.RegisterFlagCompletionFunc("without", a.completePoints)
	return cmd
}

func (a *App) spacePage(p output.Printer, w io.Writer, r client.Repository, x client.RepositorySpace, without []string, points bool) error {
	fields := []output.Field{
		{Name: "Repository", Value: r.Name},
		{Name: "Stored", Value: output.SizeExact(x.StoredBytes)},
		{Name: "Not needed", Value: output.SizeExact(x.UnreferencedBytes)},
	}
	if x.UnreferencedBytes > 0 {
		fields[2].Value += "; \"cairn repository collect\" frees most of it"
	}
	if x.WouldFreeBytes != nil {
		fields = append(fields, output.Field{Name: "Would be freed", Value: output.SizeExact(*x.WouldFreeBytes) + ", by pruning " + plural(len(without), "restore point") + " and collecting"})
	}
	if x.UnknownObjects > 0 {
		fields = append(fields, output.Field{Name: "Not counted", Value: "what " + plural(x.UnknownObjects, "damaged object") + " need"})
	}
	if err := p.Fields(w, fields...); err != nil {
		return err
	}
	err := output.Section(p, w, "By VM", x.VMs, append([]output.Column[client.VMSpace]{
		{Header: "VM", Value: func(v client.VMSpace) string { return vmOr(v.VMName, v.Series) }},
		{Header: "POINTS", Right: true, Value: func(v client.VMSpace) string { return strconv.Itoa(v.RestorePoints) }},
	}, append(spaceColumns(func(v client.VMSpace) client.Space { return v.Space }),
		output.Column[client.VMSpace]{Header: "SERIES", Wide: true, Value: func(v client.VMSpace) string { return v.Series }})...))
	if err != nil || !points {
		return err
	}
	return output.Section(p, w, "By restore point", x.RestorePoints, append([]output.Column[client.PointSpace]{
		{Header: "RESTORE POINT", Value: func(v client.PointSpace) string { return v.RestorePointID }},
		{Header: "VM", Value: func(v client.PointSpace) string { return vmOr(v.VMName, v.Series) }},
		{Header: "TIME", Value: func(v client.PointSpace) string { return output.Time(v.Time, a.Location) }},
	}, spaceColumns(func(v client.PointSpace) client.Space { return v.Space })...))
}

func spaceColumns[T any](space func(T) client.Space) []output.Column[T] {
	column := func(header string, of func(client.Space) int64) output.Column[T] {
		return output.Column[T]{Header: header, Right: true, Value: func(v T) string { return output.Size(of(space(v))) }}
	}
	return []output.Column[T]{
		column("LOGICAL", func(s client.Space) int64 { return s.LogicalBytes }),
		column("UNIQUE", func(s client.Space) int64 { return s.UniqueBytes }),
		column("SHARED", func(s client.Space) int64 { return s.SharedBytes }),
		column("FAIR SHARE", func(s client.Space) int64 { return s.FairShareBytes }),
	}
}

func vmOr(name, series string) string {
	if name == "" {
		return series
	}
	return name
}

func (a *App) repositoryDamage() *cobra.Command {
	cmd := a.onRepository("damage [NAME]", "Show the damage that is known, and what it touches", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		resp, err := s.GetRepositoryDamage(ctx, r.ID)
		d, err := remote.Decode[client.RepositoryDamage](s, resp, err)
		if err != nil {
			return err
		}
		if err := a.one(d, strings.Join(touchedIDs(d), "\n"), func(p output.Printer, w io.Writer) error { return a.damagePage(p, w, r, d) }); err != nil {
			return err
		}
		if len(d.Packs) > 0 || len(d.Touched) > 0 {
			return failure.Ended{Code: failure.Failed}
		}
		return nil
	})
	cmd.Long = `Show the damaged files that verifications and restores have found, and the VMs, restore points and disks that need them.
What is damaged is read again. Exit code 1 when there is damage.`
	cmd.Example = `  cairn repository damage main`
	return cmd
}

func touchedIDs(d client.RepositoryDamage) []string {
	var ids []string
	for _, t := range d.Touched {
		ids = append(ids, t.RestorePointID)
	}
	return ids
}

func (a *App) damagePage(p output.Printer, w io.Writer, r client.Repository, d client.RepositoryDamage) error {
	state := "damaged"
	if len(d.Packs) == 0 && len(d.Touched) == 0 {
		state = "no damage is known"
	}
	fields := []output.Field{
		{Name: "Repository", Value: r.Name},
		{Name: "State", Value: state, State: true},
	}
	if state == "damaged" {
		fields = append(fields,
			output.Field{Name: "What it means", Value: touchedMeaning(d)},
			output.Field{Name: "What to do", Value: "Heal it: \"cairn repository heal " + r.Name + " --from COPY\". Without a copy, back up the VMs in full, and look at the storage."})
	}
	if err := p.Fields(w, fields...); err != nil {
		return err
	}
	err := output.Section(p, w, "Restore points that are not whole", d.Touched, []output.Column[client.TouchedPoint]{
		{Header: "VM", Value: func(t client.TouchedPoint) string { return vmOr(t.VMName, t.Series) }},
		{Header: "RESTORE POINT", Value: func(t client.TouchedPoint) string { return t.RestorePointID }},
		{Header: "TIME", Value: func(t client.TouchedPoint) string { return output.Time(t.Time, a.Location) }},
		{Header: "LOST", Value: lost},
	})
	if err != nil {
		return err
	}
	return output.Section(p, w, "Damaged packs", d.Packs, []output.Column[client.DamagedPack]{
		{Header: "PACK", Value: func(x client.DamagedPack) string { return x.Pack }},
		{Header: "STATE", State: true, Value: func(x client.DamagedPack) string {
			if x.Missing {
				return "missing"
			}
			return "damaged"
		}},
		{Header: "LOST", Right: true, Value: func(x client.DamagedPack) string {
			if x.Objects == 0 {
				return "all"
			}
			return fmt.Sprintf("%d of %s", x.Lost, plural(x.Objects, "object"))
		}},
		{Header: "CAUSE", Value: func(x client.DamagedPack) string { return x.Cause }},
	})
}

func touchedMeaning(d client.RepositoryDamage) string {
	if len(d.Touched) == 0 {
		return "No restore point is known to need what is damaged."
	}
	vms := map[string]bool{}
	for _, t := range d.Touched {
		vms[t.Series] = true
	}
	return fmt.Sprintf("%s of %s cannot be restored whole.", plural(len(d.Touched), "restore point"), plural(len(vms), "VM"))
}

// lost says what of a restore point cannot be read: "vda 128 KiB in 2 pieces, domain.xml".
func lost(t client.TouchedPoint) string {
	var parts []string
	for _, d := range t.Disks {
		part := d.Disk + " " + output.Size(d.LostBytes)
		if d.Ranges > 1 {
			part += " in " + plural(d.Ranges, "piece")
		}
		parts = append(parts, part)
	}
	return strings.Join(append(parts, t.Documents...), ", ")
}
