package rescue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/imagefile"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// order are the flags of export.
type order struct {
	point, vm      string
	disk, document string
	all            bool
	to, out        string
	force          bool
	salvage        bool
}

// exported is one file that was written, for -o json.
type exported struct {
	RestorePoint string `json:"restore_point"`
	Disk         string `json:"disk,omitempty"`
	Document     string `json:"document,omitempty"`
	File         string `json:"file"`
	Format       string `json:"format,omitempty"`
	SizeBytes    int64  `json:"size_bytes"` // of the disk or document
	DataBytes    int64  `json:"data_bytes"` // of it, what is not a hole
	// Damage are ranges that are zeros in the file because they could not be read.
	Damage []store.Damage `json:"damage,omitempty"`
}

func (t *tool) export() *cobra.Command {
	var o order
	cmd := &cobra.Command{
		Use: "export POINT", Short: "Write disks and documents of a restore point into files", Args: count(0, 1),
		Long: `Write a disk (--disk), a document (--document) or all of a restore point (--all) into files. Files appear under their
names only when they are complete; every byte is verified while it is read. Holes stay holes. A disk of which a part is
damaged is not written, unless --damaged-as-zeros is given.

With --disk and --document, --out is a file, "-" for a document on standard output; with --all it is a directory.`,
		Example: `  cairn rescue export rp_01j... --disk vda --to qcow2 --out vda.qcow2
  cairn rescue export rp_01j... --document domain.xml --out -
  cairn rescue export latest --vm web01 --all --out ./web01`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.complete(args); err != nil {
				return err
			}
			format, err := imagefile.ParseFormat(o.to)
			if err != nil {
				return err
			}
			return t.use(cmd.Context(), func(r *store.Repository) error {
				p, err := find(cmd.Context(), r, o.point, o.vm)
				if err != nil {
					return err
				}
				return t.exportFrom(cmd.Context(), r, p, o, format)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.point, "point", "", "restore `POINT`; the same as the argument")
	f.StringVar(&o.vm, "vm", "", "with \"latest\": of this `VM`")
	f.StringVar(&o.disk, "disk", "", "write this `DISK`; may be left out where there is only one")
	f.StringVar(&o.document, "document", "", "write this document, `NAME` as domain.xml")
	f.BoolVar(&o.all, "all", false, "write all disks and documents into the directory --out")
	f.StringVar(&o.to, "to", "raw", "`FORMAT` of disks: raw, qcow2")
	f.StringVar(&o.out, "out", "", "`FILE`, or directory with --all")
	f.BoolVar(&o.salvage, "damaged-as-zeros", false, "write zeros where the repository is damaged, say where, and end with exit code 3")
	f.BoolVar(&o.force, "force", false, "replace files that exist")
	_ = cmd.RegisterFlagCompletionFunc("to", cobra.FixedCompletions([]string{"raw", "qcow2"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (o *order) complete(args []string) error {
	switch {
	case len(args) == 1 && o.point != "" && o.point != args[0]:
		return failure.UsageError("Give one of them.", "the argument %q and --point %q are not the same", args[0], o.point)
	case len(args) == 1:
		o.point = args[0]
	case o.point == "":
		return failure.UsageError("Give its id, or \"latest\".", "it is not said which restore point to export")
	}
	what := 0
	for _, given := range []bool{o.disk != "", o.document != "", o.all} {
		if given {
			what++
		}
	}
	switch {
	case what > 1:
		return failure.UsageError("Give one of them.", "--disk, --document and --all do not go together")
	case o.out == "":
		return failure.UsageError("Name the file or directory to write with --out.", "it is not said where to write")
	case o.out == "-" && o.document == "":
		return failure.UsageError("Name a file.", "only a document can be written to standard output")
	}
	return nil
}

func (t *tool) exportFrom(ctx context.Context, r *store.Repository, p store.RestorePoint, o order, format imagefile.Format) error {
	var done []exported
	var err error
	switch {
	case o.document != "" && o.out == "-":
		data, err := r.Document(ctx, p.ID, o.document)
		if err != nil {
			return noDocument(p, o.document, err)
		}
		_, err = t.Out.Write(data)
		return err
	case o.document != "":
		done, err = t.exportDocument(ctx, r, p, o.document, o.out, o.force)
	case o.all:
		done, err = t.exportAll(ctx, r, p, o, format)
	default:
		var image store.NamedImage
		if image, err = pickDisk(p, o.disk); err == nil {
			done, err = t.exportDisk(ctx, r, p, image, o.out, o, format)
		}
	}
	if err != nil {
		return err
	}
	err = output.List(t.Printer(), done, func(e exported) string { return e.File }, "Nothing to export.", []output.Column[exported]{
		{Header: "FILE", Value: func(e exported) string { return e.File }},
		{Header: "FROM", Value: func(e exported) string { return e.Disk + e.Document }},
		{Header: "FORMAT", Value: func(e exported) string { return e.Format }},
		{Header: "SIZE", Right: true, Value: func(e exported) string { return output.Size(e.SizeBytes) }},
		{Header: "DATA", Right: true, Value: func(e exported) string { return output.Size(e.DataBytes) }},
	})
	for _, e := range done {
		err = errors.Join(err, t.explainSalvaged(e))
	}
	return err
}

func pickDisk(p store.RestorePoint, name string) (store.NamedImage, error) {
	if name == "" && len(p.Images) == 1 {
		return p.Images[0], nil
	}
	i := slices.IndexFunc(p.Images, func(n store.NamedImage) bool { return n.Name == name })
	if i >= 0 {
		return p.Images[i], nil
	}
	var names []string
	for _, n := range p.Images {
		names = append(names, n.Name)
	}
	have := "It has: " + strings.Join(names, ", ") + "."
	if name == "" {
		return store.NamedImage{}, failure.UsageError("Choose with --disk, or take everything with --all. "+have, "the restore point has %d disks", len(names))
	}
	return store.NamedImage{}, fault.New(fault.NotFound, "", "", "restore point %s has no disk %q", p.ID, name).Explain("", have)
}

func noDocument(p store.RestorePoint, name string, err error) error {
	if fault.KindOf(err) != fault.NotFound {
		return err
	}
	var names []string
	for _, d := range p.Documents {
		names = append(names, d.Name)
	}
	return fault.New(fault.NotFound, "", "", "restore point %s has no document %q", p.ID, name).Explain("", "It has: "+strings.Join(names, ", ")+".")
}

func (t *tool) exportDocument(ctx context.Context, r *store.Repository, p store.RestorePoint, name, out string, force bool) ([]exported, error) {
	data, err := r.Document(ctx, p.ID, name)
	if err != nil {
		return nil, noDocument(p, name, err)
	}
	if err := imagefile.WriteBytes(out, data, force); err != nil {
		return nil, err
	}
	n := int64(len(data))
	return []exported{{RestorePoint: p.ID, Document: name, File: out, SizeBytes: n, DataBytes: n}}, nil
}

func (t *tool) exportDisk(ctx context.Context, r *store.Repository, p store.RestorePoint, image store.NamedImage, out string, o order, format imagefile.Format) (done []exported, err error) {
	src, err := r.OpenImage(ctx, image.Ref)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	show, stop := t.meter(fmt.Sprintf("%s to %s", image.Name, filepath.Base(out)))
	defer stop()
	var source imagefile.Source = src
	saved := &salvage{ImageReader: src, disk: image.Name}
	if o.salvage {
		source = saved
	}
	res, err := imagefile.Write(ctx, out, source, imagefile.Options{Format: format, Force: o.force, Progress: show})
	if err != nil {
		return nil, err
	}
	return []exported{{
		RestorePoint: p.ID, Disk: image.Name, File: out, Format: string(format), SizeBytes: res.SizeBytes, DataBytes: res.DataBytes, Damage: tidy(saved.damage),
	}}, nil
}

// exportAll makes the directory and writes disks as NAME.FORMAT, documents under their names and the description as
// description.json.
func (t *tool) exportAll(ctx context.Context, r *store.Repository, p store.RestorePoint, o order, format imagefile.Format) ([]exported, error) {
	if err := os.MkdirAll(o.out, 0o700); err != nil {
		return nil, fault.Wrap(fault.KindOf(err), "make directory", o.out, err)
	}
	var all []exported
	for _, d := range p.Documents {
		out, err := inside(o.out, d.Name)
		if err != nil {
			return nil, err
		}
		done, err := t.exportDocument(ctx, r, p, d.Name, out, o.force)
		if err != nil {
			return nil, err
		}
		all = append(all, done...)
	}
	if len(p.Description) > 0 {
		out := filepath.Join(o.out, "description.json")
		if err := imagefile.WriteBytes(out, p.Description, o.force); err != nil {
			return nil, err
		}
		n := int64(len(p.Description))
		all = append(all, exported{RestorePoint: p.ID, Document: "description", File: out, SizeBytes: n, DataBytes: n})
	}
	for _, image := range p.Images {
		out, err := inside(o.out, image.Name+"."+string(format))
		if err != nil {
			return nil, err
		}
		done, err := t.exportDisk(ctx, r, p, image, out, o, format)
		if err != nil {
			return nil, err
		}
		all = append(all, done...)
	}
	return all, nil
}

// inside joins a name from a restore point to a directory and refuses names that would leave it.
func inside(dir, name string) (string, error) {
	if name == "" || name != filepath.Base(name) || !filepath.IsLocal(name) {
		return "", fault.New(fault.Invalid, "export", name, "this name cannot be a file name").
			Explain("", "Export it alone, with --disk or --document and a file name of your own in --out.")
	}
	return filepath.Join(dir, name), nil
}
