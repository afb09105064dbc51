// Package rescue reads a repository with no appliance running: it lists, shows, verifies and exports restore points,
// and looks after keys and shards.
//
// It writes nothing into the repository, takes no lock and needs no catalog, so it also works beside a running
// appliance and from a read-only medium. Its one invariant: a file that it leaves behind is complete and every byte
// of it was proven against the signed restore point, save for ranges that --damaged-as-zeros names as damaged.
package rescue

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/console"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// tool is one run of a rescue command.
type tool struct {
	*console.Console
	repos                []string
	key, identity, paper string
}

// Command is "cairn rescue".
func Command(c *console.Console) *cobra.Command {
	t := &tool{Console: c}
	group := &cobra.Command{
		Use: "rescue", Short: "Read a repository with no appliance running", Args: cobra.ArbitraryArgs,
		Long: `Read a repository with no appliance running: all it takes is its directory, or the directories of its set, and one of
its keys. Nothing is written into the repository.

--repo is given once for each directory of a set; as many as its data members are enough, in any order. The key is
a key file (--key FILE, env:NAME or credential:NAME), an age identity (--identity) or a typed paper key (--paper).
"scrub" and "keys" need none.

POINT is the id of a restore point, or "latest", which with --vm is the newest one of that VM. Where several VMs have
one name, --vm takes the series instead; "ls -o wide" shows it.
The environment can name the repository and the key: CAIRN_RESCUE_REPO (directories of a set with ":" between them),
CAIRN_RESCUE_KEY.`,
		Example: `  cairn rescue ls --repo /srv/backup --key backup.key
  cairn rescue ls --repo /mnt/disk1 --repo /mnt/disk2 --repo /mnt/disk3 --paper typed.txt
  cairn rescue verify --repo /srv/backup --identity escrow.txt
  cairn rescue scrub --repo /srv/backup
  cairn rescue export latest --vm web01 --disk vda --to qcow2 --out web01.qcow2 --repo /srv/backup --key backup.key
  cairn rescue export latest --vm web01 --all --to raw --out ./web01 --repo /srv/backup --key backup.key`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return failure.UsageError("See \"cairn rescue --help\".", "there is no command \"cairn rescue %s\"", args[0])
			}
			return cmd.Help()
		},
	}
	f := group.PersistentFlags()
	f.StringArrayVar(&t.repos, "repo", nil, "`DIR` of the repository; given several times, those of its set")
	f.StringVar(&t.key, "key", "", "`KEY` of the repository: a key file, env:NAME or credential:NAME")
	f.StringVar(&t.identity, "identity", "", "age identity `FILE` whose recipient opens the repository")
	f.StringVar(&t.paper, "paper", "", "`FILE` with the typed or scanned paper key, \"-\" for standard input")
	_ = group.MarkPersistentFlagDirname("repo")
	for _, name := range []string{"key", "identity", "paper"} {
		_ = group.MarkPersistentFlagFilename(name)
	}
	group.AddCommand(t.list(), t.show(), t.verify(), t.check(), t.scrub(), t.keys(), t.drill(), t.export())
	return group
}

// points returns all restore points, the newest first.
func points(ctx context.Context, r *store.Repository) ([]store.RestorePoint, error) {
	all, err := r.RestorePoints(ctx)
	slices.SortStableFunc(all, func(a, b store.RestorePoint) int {
		if c := b.Time.Compare(a.Time); c != 0 {
			return c
		}
		return strings.Compare(b.ID, a.ID)
	})
	return all, err
}

// find returns the restore point that arg names: an id, the beginning of one that only one has, or "latest".
func find(ctx context.Context, r *store.Repository, arg, vm string) (store.RestorePoint, error) {
	if arg != "latest" && vm == "" {
		if p, err := r.RestorePoint(ctx, arg); err == nil || fault.KindOf(err) != fault.NotFound && fault.KindOf(err) != fault.Invalid {
			return p, err
		}
	}
	all, listErr := points(ctx, r)
	hits := slices.DeleteFunc(all, func(p store.RestorePoint) bool {
		return !of(p, vm) || arg != "latest" && !strings.HasPrefix(p.ID, arg)
	})
	if len(hits) == 0 && listErr != nil {
		return store.RestorePoint{}, listErr
	}
	switch {
	case len(hits) == 0:
		return store.RestorePoint{}, fault.New(fault.NotFound, "", "", "there is no restore point %q%s", arg, ofVM(vm)).
			Explain("", "List them with \"cairn rescue ls\".")
	case arg == "latest":
		for _, p := range hits {
			if p.Series != hits[0].Series && vm != "" {
				return store.RestorePoint{}, ambiguous(hits, vm)
			}
			if p.Series != hits[0].Series {
				return store.RestorePoint{}, failure.UsageError("Say whose with --vm NAME, or give the id.", "the repository holds restore points of several VMs")
			}
		}
		return hits[0], nil
	case len(hits) > 1:
		lines := []string{"several restore points begin with " + arg + ":"}
		for _, p := range hits {
			lines = append(lines, p.ID)
		}
		return store.RestorePoint{}, failure.UsageError("Give more of the id.", "%s", strings.Join(lines, "\n"))
	}
	return hits[0], nil
}

// of reports whether a restore point is of the VM that was named by its name or series; "" is any.
func of(p store.RestorePoint, vm string) bool {
	return vm == "" || p.Series == vm || describe(p).VM == vm
}

// ambiguous names the series that have restore points of a VM's name, each with its newest.
func ambiguous(newestFirst []store.RestorePoint, vm string) error {
	lines := []string{"several VMs are named " + vm + "; their series, each with its newest restore point:"}
	seen := map[string]bool{}
	for _, p := range newestFirst {
		if !seen[p.Series] {
			seen[p.Series] = true
			lines = append(lines, p.Series+"  "+p.ID+"  "+p.Time.UTC().Format(time.RFC3339))
		}
	}
	return failure.UsageError("Give one of the series with --vm, or the id of a restore point.", "%s", strings.Join(lines, "\n"))
}

func ofVM(vm string) string {
	if vm == "" {
		return ""
	}
	return " of the VM " + vm
}

// count checks the number of arguments.
func count(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return failure.UsageError("Usage: "+cmd.UseLine(), "%d arguments were given", len(args))
		}
		return nil
	}
}
