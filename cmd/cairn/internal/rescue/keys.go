package rescue

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/store"
)

func (t *tool) keys() *cobra.Command {
	return &cobra.Command{
		Use: "keys", Short: "List the keys that open the repository; needs none of them", Args: count(0, 0),
		Long: `List the keys that open the repository, so that you know which one to look for. Needs no key itself, and shows no
secret: key files and paper keys by their fingerprints, age keys by their recipients.`,
		Example: `  cairn rescue keys --repo /srv/backup`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dirs, err := t.dirs()
			if err != nil {
				return err
			}
			return t.onBackend(cmd.Context(), dirs, func(b backend) error {
				all, err := store.Wrappings(cmd.Context(), b)
				if err != nil {
					return err
				}
				err = output.List(t.Printer(), all, func(w store.Wrapping) string { return w.ID }, "No keys: nothing opens this repository.", []output.Column[store.Wrapping]{
					{Header: "KIND", Value: func(w store.Wrapping) string { return w.Kind }},
					{Header: "KEY", Value: func(w store.Wrapping) string { return output.Short(w.Key) }},
					{Header: "LABEL", Value: func(w store.Wrapping) string { return w.Label }},
					{Header: "CREATED", Value: func(w store.Wrapping) string { return output.Time(w.Created, t.Location) }},
					{Header: "STATE", State: true, Value: func(w store.Wrapping) string { return output.KeyState(w.Problem) }},
					{Header: "ID", Wide: true, Value: func(w store.Wrapping) string { return w.ID }},
				})
				for _, w := range all {
					if w.Problem != "" {
						t.Say("Warning: do not trust key %s: %s", w.ID, output.Printable(w.Problem))
					}
				}
				return err
			})
		},
	}
}

func (t *tool) drill() *cobra.Command {
	return &cobra.Command{
		Use: "drill", Short: "Prove that a key still opens the repository", Args: count(0, 0),
		Long: `Prove that the key that is given opens the repository: it opens the repository's own keys, checks that they are the
repository's, proves the newest restore point and reads a piece of its data. Do this once a year with each key that you
have put away.`,
		Example: `  cairn rescue drill --repo /srv/backup --paper typed.txt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.unlock(cmd.Context(), func(b backend, by store.Opener) error {
				d, err := store.Drill(cmd.Context(), readOnly{b.Store}, by)
				if err != nil {
					return err
				}
				p := t.Printer()
				return p.Value(d, func(w io.Writer) error { return p.Fields(w, t.drillPage(d)...) })
			})
		},
	}
}

func (t *tool) drillPage(d store.DrillReport) []output.Field {
	return output.Drill{
		Key: d.Wrapping.Kind + " " + output.Short(d.Wrapping.Key), Label: d.Wrapping.Label,
		Repository: d.Name, Identity: d.Repository, PublicKey: d.PublicKey,
		RestorePoint: d.RestorePoint, Of: output.Field{Name: "Series", Value: d.Series},
		Published: output.Time(d.Published, t.Location), Pack: d.Pack, Bytes: int64(d.FrameBytes),
	}.Fields()
}
