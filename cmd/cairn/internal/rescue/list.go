package rescue

import (
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/store"
)

func (t *tool) list() *cobra.Command {
	var vm string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List restore points, the newest first", Args: count(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.use(cmd.Context(), func(r *store.Repository) error {
				// Restore points that can be read are shown even where others are damaged.
				all, listErr := points(cmd.Context(), r)
				var views []view
				for _, p := range all {
					if v := describe(p); of(p, vm) {
						v.Description = nil
						views = append(views, v)
					}
				}
				empty := "No restore points" + ofVM(vm) + "."
				err := output.List(t.Printer(), views, func(v view) string { return v.ID }, empty, t.columns())
				if listErr != nil {
					return listErr
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&vm, "vm", "", "only restore points of this `VM`")
	return cmd
}

func (t *tool) columns() []output.Column[view] {
	return []output.Column[view]{
		{Header: "RESTORE POINT", Value: func(v view) string { return v.ID }},
		{Header: "VM", Value: func(v view) string { return v.VM }},
		{Header: "TIME", Value: func(v view) string { return output.Time(v.Time, t.Location) }},
		{Header: "AGE", Right: true, Value: func(v view) string { return output.Age(v.Time, t.Now()) }},
		{Header: "DISKS", Value: diskNames},
		{Header: "SIZE", Right: true, Value: func(v view) string { return output.Size(v.SizeBytes) }},
		{Header: "CONSISTENCY", Value: func(v view) string { return v.Consistency }},
		{Header: "DOCUMENTS", Right: true, Wide: true, Value: func(v view) string { return strconv.Itoa(len(v.Documents)) }},
		{Header: "SERIES", Wide: true, Value: func(v view) string { return v.Series }},
	}
}

func diskNames(v view) string {
	var names []string
	for _, d := range v.Disks {
		names = append(names, d.Name)
	}
	return strings.Join(names, ",")
}

func (t *tool) show() *cobra.Command {
	var vm string
	cmd := &cobra.Command{
		Use: "show POINT", Short: "Show a restore point: disks, documents, the saved description", Args: count(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.use(cmd.Context(), func(r *store.Repository) error {
				p, err := find(cmd.Context(), r, args[0], vm)
				if err != nil {
					return err
				}
				v := describe(p)
				printer := t.Printer()
				if printer.Format == output.Name {
					_, err := io.WriteString(t.Out, v.ID+"\n")
					return err
				}
				return printer.Value(v, func(w io.Writer) error { return t.page(printer, w, v) })
			})
		},
	}
	cmd.Flags().StringVar(&vm, "vm", "", "with \"latest\": of this `VM`")
	return cmd
}

func (t *tool) page(p output.Printer, w io.Writer, v view) error {
	h := v.hardware
	fields := []output.Field{
		{Name: "Restore point", Value: v.ID},
		{Name: "VM", Value: v.VM},
		{Name: "Time", Value: output.Time(v.Time, t.Location) + ", " + output.Age(v.Time, t.Now()) + " ago"},
		{Name: "Published", Value: output.Time(v.Published, t.Location)},
		{Name: "Consistency", Value: v.Consistency},
		{Name: "Size", Value: output.SizeExact(v.SizeBytes)},
		{Name: "Series", Value: v.Series},
		{Name: "Previous", Value: v.Previous},
	}
	if h.CPUs > 0 {
		firmware := h.Firmware
		if h.SecureBoot {
			firmware += ", secure boot"
		}
		fields = append(fields,
			output.Field{Name: "Machine", Value: strings.TrimSpace(h.Arch + " " + h.Machine)},
			output.Field{Name: "Firmware", Value: firmware},
			output.Field{Name: "TPM", Value: h.TPM},
			output.Field{Name: "CPUs", Value: strconv.Itoa(h.CPUs)},
			output.Field{Name: "Memory", Value: output.Size(h.MemoryBytes)})
	}
	for i, n := range h.NICs {
		f := output.Field{Value: strings.TrimSpace(n.MAC + "  " + n.Model + "  " + n.Network)}
		if i == 0 {
			f.Name = "Networks"
		}
		fields = append(fields, f)
	}
	if err := p.Fields(w, fields...); err != nil {
		return err
	}
	if err := output.Section(p, w, "Disks", v.Disks, diskColumns(h)); err != nil {
		return err
	}
	return output.Section(p, w, "Documents", v.Documents, []output.Column[documentView]{
		{Header: "NAME", Value: func(d documentView) string { return d.Name }},
		{Header: "TYPE", Value: func(d documentView) string { return d.MediaType }},
		{Header: "SIZE", Right: true, Value: func(d documentView) string { return output.Size(d.SizeBytes) }},
	})
}

func diskColumns(h hardware) []output.Column[diskView] {
	was := func(d diskView) string {
		i := slices.IndexFunc(h.Disks, func(x disk) bool { return x.ID == d.Name })
		if i < 0 {
			return ""
		}
		return strings.TrimSpace(h.Disks[i].Bus + " " + h.Disks[i].Format)
	}
	return []output.Column[diskView]{
		{Header: "DISK", Value: func(d diskView) string { return d.Name }},
		{Header: "SIZE", Right: true, Value: func(d diskView) string { return output.Size(d.SizeBytes) }},
		{Header: "WAS", Value: was},
		{Header: "ROOT", Value: func(d diskView) string { return d.Root }},
	}
}

// failed says that what was looked at is not what it should be; the details are printed already.
func failed() error { return failure.Ended{Code: failure.Failed} }
