package command

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"path"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/imagefile"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
	"github.com/cairn-backup/cairn/internal/fault"
)

func (a *App) support() *cobra.Command {
	group := a.group("support", "What helps others to find out what is wrong", "")
	group.AddCommand(a.supportBundle())
	return group
}

func (a *App) supportBundle() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "bundle --out FILE", Short: "Write versions, settings, states, errors and the end of the log into a zip archive, without secrets", Args: args(),
		Long: "Write versions, settings, states, errors and the end of the log into a zip archive.\n" +
			"Passwords, keys and tokens are taken out of it; names and addresses of VMs, hosts, networks and people stay. Look through it before you\n" +
			"give it away. When the manager does not start, \"cairnd support --out FILE\" on its machine gathers what there is.",
		Example: "  cairn support bundle --out cairn-support.zip",
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) (err error) {
			if out == "" {
				return failure.UsageError("Name a new file.", "a bundle needs --out")
			}
			f, err := imagefile.Create(out, false)
			if err != nil {
				return fault.New(fault.KindOf(err), "", "", "%v", err).Explain("Nothing was asked for or written.", "Name a new file in a directory that can be written to.")
			}
			defer func() { err = errors.Join(err, f.Close()) }()
			resp, err := s.CreateSupportBundle(ctx)
			archive, err := remote.Bytes(s, resp, err)
			if err != nil {
				return err
			}
			files, err := bundled(archive)
			if err != nil {
				return err
			}
			if _, err := f.Write(archive); err != nil {
				return err
			}
			if err := f.Commit(); err != nil {
				return err
			}
			a.Say("%s: %s, %s. Secrets were taken out; names and addresses were not. Look through it before you give it away.",
				out, plural(len(files), "file"), output.Size(int64(len(archive))))
			return output.List(a.Printer(), files, func(f bundledFile) string { return f.Name }, "", []output.Column[bundledFile]{
				{Header: "FILE", Value: func(f bundledFile) string { return f.Name }},
				{Header: "SIZE", Right: true, Value: func(f bundledFile) string { return output.Size(f.Bytes) }},
			})
		}),
	}
	cmd.Flags().StringVar(&out, "out", "", "write to this `FILE`, which must not be there")
	return cmd
}

// bundledFile is a file in a support bundle.
type bundledFile struct {
	Name  string `json:"name"`
	Bytes int64  `json:"size_bytes"`
}

// bundled lists what is in a bundle, which must be whole.
func bundled(archive []byte) ([]bundledFile, error) {
	z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "read support bundle", "", err)
	}
	var out []bundledFile
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			return nil, fault.Wrap(fault.Internal, "read support bundle", f.Name, err)
		}
		n, err := io.Copy(io.Discard, r)
		if err := errors.Join(err, r.Close()); err != nil {
			return nil, fault.Wrap(fault.Internal, "read support bundle", f.Name, err)
		}
		out = append(out, bundledFile{Name: path.Base(f.Name), Bytes: n})
	}
	return out, nil
}
