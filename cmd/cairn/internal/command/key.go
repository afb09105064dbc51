package command

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/imagefile"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
	"github.com/cairn-backup/cairn/internal/fault"
)

func (a *App) keys() *cobra.Command {
	group := a.group("key", "The keys that open a repository", `The keys that open a repository. Any one of them is enough, and when all are lost, so are the backups: have at least two,
in different places. KEY is the fingerprint, the recipient, the label or the id of a key, as "cairn key list" prints them.`)
	group.Example = `  cairn key list main
  cairn key paper main --label safe --out page.txt
  cairn key drill main --paper typed.txt`
	group.AddCommand(a.keyList(), a.keyAdd(), a.keyPaper(), a.keyRemove(), a.keyRotate(), a.keyDrill())
	return group
}

func listKeys(ctx context.Context, s *remote.Session, r client.Repository) ([]client.Key, error) {
	resp, err := s.ListKeys(ctx, r.ID)
	l, err := remote.Decode[client.KeyList](s, resp, err)
	return l.Items, err
}

func (a *App) keyList() *cobra.Command {
	cmd := a.onRepository("list [REPOSITORY]", "List the keys that open a repository", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		all, err := listKeys(ctx, s, r)
		if err != nil {
			return err
		}
		if err := a.printKeys(all); err != nil {
			return err
		}
		good := 0
		for _, k := range all {
			if k.Problem == "" {
				good++
			} else {
				a.Say("Warning: do not trust key %s: %s", k.ID, output.Printable(k.Problem))
			}
		}
		if good < 2 && a.Format().Human() {
			a.Say("Only one key opens it. Put a second one away: \"cairn key paper %s\".", r.Name)
		}
		return nil
	})
	cmd.Aliases = []string{"ls"}
	cmd.Example = `  cairn key list main`
	return cmd
}

func (a *App) printKeys(all []client.Key) error {
	return output.List(a.Printer(), all, func(k client.Key) string { return k.ID }, "No keys: nothing opens this repository.", []output.Column[client.Key]{
		{Header: "KIND", Value: func(k client.Key) string { return string(k.Kind) }},
		{Header: "KEY", Value: func(k client.Key) string { return output.Short(k.Key) }},
		{Header: "LABEL", Value: func(k client.Key) string { return k.Label }},
		{Header: "CREATED", Value: func(k client.Key) string { return output.Time(k.CreatedAt, a.Location) }},
		{Header: "USED BY", Value: func(k client.Key) string {
			if k.InUse {
				return "appliance"
			}
			return ""
		}},
		{Header: "STATE", State: true, Value: func(k client.Key) string { return output.KeyState(k.Problem) }},
		{Header: "ID", Wide: true, Value: func(k client.Key) string { return k.ID }},
	})
}

func (a *App) showKey(k client.Key) error {
	return a.one(k, k.ID, func(p output.Printer, w io.Writer) error {
		return p.Fields(w,
			output.Field{Name: "Kind", Value: string(k.Kind)},
			output.Field{Name: "Key", Value: k.Key},
			output.Field{Name: "Label", Value: k.Label},
			output.Field{Name: "Created", Value: a.when(k.CreatedAt)},
			output.Field{Name: "ID", Value: k.ID})
	})
}

// opening are the flags that say which key opens a repository; at most one is given.
type opening struct{ paper, identity, key, source string }

// flags registers the flags, whose names begin with prefix; use is the beginning of what is said about them.
func (o *opening) flags(cmd *cobra.Command, prefix, use string) {
	f := cmd.Flags()
	f.StringVar(&o.paper, prefix+"paper", "", use+"`FILE` with the typed or scanned paper key, \"-\" for standard input")
	f.StringVar(&o.identity, prefix+"identity", "", use+"age identity `FILE`, \"-\" for standard input")
	f.StringVar(&o.key, prefix+"key", "", use+"key `FILE`, \"-\" for standard input")
	f.StringVar(&o.source, prefix+"key-source", "", use+"`KEY` on the appliance: a key file, env:NAME or credential:NAME")
}

// request reads the key that is given, and says how many are.
func (o opening) request(a *App) (req client.DrillRequest, given int, err error) {
	if o.source != "" {
		req.KeySource, given = o.source, 1
	}
	for _, f := range []struct {
		path string
		to   *string
	}{{o.paper, &req.PaperKey}, {o.identity, &req.Identity}, {o.key, &req.Key}} {
		if f.path == "" {
			continue
		}
		given++
		if *f.to, err = a.ReadSecret(f.path); err != nil {
			return req, given, err
		}
	}
	return req, given, nil
}

// by is request for the key that stands in for the appliance's own.
func (o opening) by(a *App) (client.DrillRequest, error) {
	req, given, err := o.request(a)
	if given > 1 {
		return req, failure.UsageError("Give one of --by-paper, --by-identity, --by-key and --by-key-source.", "only one key can open the repository")
	}
	return req, err
}

func (a *App) keyAdd() *cobra.Command {
	var recipient, file, label string
	var o opening
	cmd := a.onRepository("add REPOSITORY", "Make a further key file or age identity open a repository", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		req := client.AddKeyRequest{Kind: client.KeyAge, Recipient: recipient, KeyFile: file, Label: label}
		var err error
		if req.By, err = o.by(a); err != nil {
			return err
		}
		lost := req.By != (client.DrillRequest{})
		switch {
		case recipient != "" && file != "" || recipient == "" && file == "" && !lost:
			return failure.UsageError("Give --age RECIPIENT or --key-file FILE; a key on paper is made by \"cairn key paper\".", "one key is to be added")
		case recipient == "":
			req.Kind = client.KeyFile
		}
		resp, err := s.AddKey(ctx, r.ID, nil, req)
		added, err := remote.Decode[client.AddedKey](s, resp, err)
		if err != nil {
			return err
		}
		if err := a.showKey(added.Key); err != nil {
			return err
		}
		switch {
		case recipient == "" && file == "":
			a.sayKeep(r.KeyFile)
		case file != "":
			a.Say("\nIt is in %s on the appliance. Bring it to where you keep it, apart from the appliance.", file)
		default:
			a.Say("\nProve that you have its identity: \"cairn key drill %s --identity FILE\".", r.Name)
		}
		return nil
	})
	cmd.Long = `Make a further key open a repository. Of an age identity only the recipient is needed: the identity need never come near
the appliance.

When the appliance has lost its own key, another one opens the repository with --by-...; then, without --age and
--key-file, a new key file is made where the appliance looks for it.`
	cmd.Example = `  cairn key add main --age age1... --label escrow
  cairn key add main --key-file /root/second.key --label "for the other site"
  cairn key add main --by-paper typed.txt`
	f := cmd.Flags()
	f.StringVar(&recipient, "age", "", "`RECIPIENT` of the age identity, age1... or age1pq1...")
	f.StringVar(&file, "key-file", "", "key `FILE` on the appliance, which is made if it is not there")
	f.StringVar(&label, "label", "", "`TEXT` that tells a person which key it is")
	o.flags(cmd, "by-", "the appliance has lost its key: ")
	return cmd
}

func (a *App) keyPaper() *cobra.Command {
	var out, label string
	var o opening
	cmd := a.onRepository("paper REPOSITORY", "Make a key to be printed", func(ctx context.Context, s *remote.Session, r client.Repository) (err error) {
		by, err := o.by(a)
		if err != nil {
			return err
		}
		var file *imagefile.File
		if out != "" { // before the key is made: it is shown only once
			if file, err = imagefile.Create(out, false); err != nil {
				return err
			}
			defer file.Close()
		}
		resp, err := s.AddKey(ctx, r.ID, nil, client.AddKeyRequest{Kind: client.KeyPaper, Label: label, By: by})
		added, err := remote.Decode[client.AddedKey](s, resp, err)
		if err != nil {
			return err
		}
		if err := a.givePage(file, added); err != nil {
			return fault.Context("give out the page of key", added.Key.ID, err).Explain("The key was made, but its page is lost.",
				"Remove the key with \"cairn key remove "+r.Name+" "+added.Key.ID+"\" and make another.")
		}
		a.Say("Print it now, and keep it in a safe apart from the repository: it is shown only this once.")
		if file != nil {
			a.Say("Then remove %s. It is worth as much as the key.", out)
		}
		a.Say("Prove that it works: type its four lines into a file, then \"cairn key drill %s --paper FILE\".", r.Name)
		return nil
	})
	cmd.Long = `Make a key that opens a repository, to be printed and put away: a page of plain text with four lines and a QR code. It
goes to standard output, or into a file that only you can read, and nowhere else.`
	cmd.Example = `  cairn key paper main --label "safe, first floor" | lp
  cairn key paper main --out page.txt`
	cmd.Flags().StringVar(&out, "out", "", "write the page into this new `FILE`, mode 0400")
	cmd.Flags().StringVar(&label, "label", "", "`TEXT` that tells a person which key it is; it is on the page")
	o.flags(cmd, "by-", "the appliance has lost its key: ")
	return cmd
}

// givePage writes the page into the file, or to standard output.
func (a *App) givePage(file *imagefile.File, added client.AddedKey) error {
	if file == nil {
		return a.one(added, added.Key.ID, func(_ output.Printer, w io.Writer) error {
			_, err := io.WriteString(w, added.Paper)
			return err
		})
	}
	if _, err := io.WriteString(file, added.Paper); err != nil {
		return err
	}
	if err := file.Chmod(0o400); err != nil {
		return err
	}
	if err := file.Commit(); err != nil {
		return err
	}
	return a.showKey(added.Key)
}

// findKey accepts an id, a fingerprint, a recipient or a label.
func findKey(ctx context.Context, s *remote.Session, r client.Repository, arg string) (client.Key, error) {
	all, err := listKeys(ctx, s, r)
	if err != nil {
		return client.Key{}, err
	}
	return pick("key", arg, all, func(k client.Key) (string, string, string) {
		if k.Label == arg {
			return k.ID, k.Label, string(k.Kind) + " " + output.Short(k.Key)
		}
		return k.ID, k.Key, string(k.Kind) + " " + k.Label
	})
}

func (a *App) keyRemove() *cobra.Command {
	cmd := a.onRepositoryWith("remove REPOSITORY KEY", "Take a key out of a repository", []string{"REPOSITORY", "KEY"}, a.completeKeys,
		func(ctx context.Context, s *remote.Session, r client.Repository, rest []string) error {
			k, err := findKey(ctx, s, r, rest[0])
			if err != nil {
				return err
			}
			name := strings.TrimSpace(string(k.Kind) + " " + output.Short(k.Key) + " " + k.Label)
			if err := a.Confirm(ctx, "Take the key %s out of %q?", name, r.Name); err != nil {
				return err
			}
			resp, err := s.RemoveKey(ctx, r.ID, k.ID, nil)
			if err := remote.Done(s, resp, err); err != nil {
				return err
			}
			a.Say("The key %s does not open %q any more.", output.Printable(name), r.Name)
			return nil
		})
	cmd.Long = `Take a key out of a repository. Data is not encrypted anew: who has that key and an older copy of the repository can read
that copy.`
	cmd.Example = `  cairn key remove main escrow`
	return cmd
}

func (a *App) keyRotate() *cobra.Command {
	cmd := a.onRepository("rotate REPOSITORY", "Put a new key file in the place of the appliance's key", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		if err := a.Confirm(ctx, "Put a new key in the place of %s? Copies of the old one open %q no longer", r.KeyFile, r.Name); err != nil {
			return err
		}
		resp, err := s.RotateKey(ctx, r.ID, nil)
		k, err := remote.Decode[client.Key](s, resp, err)
		if err != nil {
			return err
		}
		if err := a.showKey(k); err != nil {
			return err
		}
		a.sayKeep(r.KeyFile)
		return nil
	})
	cmd.Long = `Put a new key file in the place of the one that the appliance uses. The old key opens the repository no longer; other keys
stay. Interrupted, it is completed when the repository is opened next.`
	cmd.Example = `  cairn key rotate main`
	return cmd
}

func (a *App) keyDrill() *cobra.Command {
	var o opening
	cmd := a.onRepository("drill REPOSITORY", "Prove that a key which was put away still opens a repository", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		req, given, err := o.request(a)
		if err != nil {
			return err
		}
		if given != 1 {
			return failure.UsageError("Give one of --paper, --identity, --key and --key-source.", "one key is to be tried")
		}
		resp, err := s.DrillKey(ctx, r.ID, req)
		d, err := remote.Decode[client.DrillReport](s, resp, err)
		if err != nil {
			return err
		}
		return a.one(d, r.Name, func(p output.Printer, w io.Writer) error { return p.Fields(w, a.drillFields(d)...) })
	})
	cmd.Long = `Prove that a key still opens a repository: it opens the repository's own keys, checks that they are the repository's,
proves the newest restore point and reads a piece of its data. Do this once a year with each key that was put away. The
appliance neither keeps nor logs the key; if it must not even see it, use "cairn rescue drill" elsewhere.`
	cmd.Example = `  cairn key drill main --paper typed.txt
  cairn key drill main --identity escrow.txt`
	o.flags(cmd, "", "")
	return cmd
}

func (a *App) drillFields(d client.DrillReport) []output.Field {
	return output.Drill{
		Key: strings.TrimSpace(string(d.Key.Kind) + " " + output.Short(d.Key.Key)), Label: d.Key.Label,
		Repository: d.Name, Identity: d.StoreID, PublicKey: d.PublicKey,
		RestorePoint: d.RestorePointID, Of: output.Field{Name: "VM", Value: d.VMName},
		Published: a.when(d.PublishedAt), Pack: d.Pack, Bytes: d.ReadBytes,
	}.Fields()
}
