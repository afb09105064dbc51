package command

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) repositories() *cobra.Command {
	group := a.group("repository", "Where backups are kept", "")
	group.Aliases = []string{"repo"}
	group.AddCommand(a.repositoryCreate(), a.repositoryList(), a.repositoryShow(), a.repositorySet(), a.repositoryVerify(), a.repositoryDamage(),
		a.repositoryHeal(), a.repositorySpace(), a.repositoryCollect(), a.repositoryScrub(), a.repositoryRebuild(), a.repositoryGrow(), a.repositoryTrust(), a.repositoryDetach())
	return group
}

// newRepository are the flags of create.
type newRepository struct {
	attach       bool
	data, parity int
	domains      []string
	force        bool
	domainOf     string // repository
	trust        []string
}

func (a *App) repositoryCreate() *cobra.Command {
	var n newRepository
	var req client.CreateRepositoryRequest
	var compression string
	cmd := &cobra.Command{
		Use: "create NAME PATH...", Short: "Create a repository in directories of the appliance, or attach one", Args: args("NAME", "PATH..."),
		Long: `Create a repository in a directory of the appliance, or in several, each on a disk of its own, of which some may be
lost: a set. Of two directories the second mirrors the first. With more, --parity says how many may be lost; the
others hold data. With --data and --parity the directories may be a multiple of both together: groups.

Directories with the same --domain fail together, as the disks of one enclosure do: they are dealt out so that the
loss of one domain loses nothing, or refused unless --force is given.`,
		Example: `  cairn repository create main /srv/backup
  cairn repository create mirror /mnt/disk1/cairn /mnt/disk2/cairn
  cairn repository create large /mnt/d{1..6}/cairn --parity 2 --domain a,a,b,b,c,c
  cairn repository create copy /mnt/other/cairn --domain-of main
  cairn repository create old /mnt/old --attach --key-file /mnt/old.key
  cairn repository create old /mnt/disk2/cairn /mnt/disk1/cairn --attach --key-source credential:cairn-old
  cairn repository create old /mnt/disk2/cairn --attach --trust /mnt/disk2/cairn`,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			if err := n.fill(&req, args[0], args[1:]); err != nil {
				return err
			}
			req.Compression = client.Compression(compression)
			if n.domainOf != "" {
				other, err := findRepository(ctx, s, n.domainOf)
				if err != nil {
					return err
				}
				req.DomainOf = other.ID
			}
			if len(n.trust) > 0 {
				if err := a.confirmTrust(ctx, req.Name, n.trust); err != nil {
					return err
				}
			}
			resp, err := s.CreateRepository(ctx, nil, req)
			r, err := remote.Decode[client.Repository](s, resp, err)
			if err != nil {
				return err
			}
			if err := a.showRepository(r); err != nil {
				return err
			}
			a.sayKeep(r.KeyFile)
			return nil
		}),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.BoolVar(&n.attach, "attach", false, "use the repository that is there already")
	f.StringVar(&req.KeyFile, "key-file", "", "with --attach: its key, a `FILE` on the appliance, which is copied")
	f.StringVar(&req.KeySource, "key-source", "", "a `KEY` that is there and is not copied: a file on the appliance, env:NAME or credential:NAME")
	f.IntVar(&n.data, "data", 0, "of several directories: `N` that are enough to read everything")
	f.IntVar(&n.parity, "parity", 0, "of several directories: `M` that may be lost")
	f.StringSliceVar(&n.domains, "domain", nil, "what fails as a whole with each directory, `A,B,...` in their order")
	f.BoolVar(&n.force, "force", false, "create the set although the loss of one domain would lose data")
	f.StringVar(&n.domainOf, "domain-of", "", "tell content as this `REPOSITORY` does, so that either can heal the other")
	f.StringArrayVar(&n.trust, "trust", nil, "with --attach: what `MEMBER`, an id or a path, has counts as all there is, as in \"cairn repository trust\"")
	_ = cmd.RegisterFlagCompletionFunc("domain-of", a.completeRepositories)
	compressionFlag(cmd, &compression)
	return cmd
}

// fill makes the request of the arguments and flags.
func (n newRepository) fill(req *client.CreateRepositoryRequest, name string, paths []string) error {
	req.Name, req.Mode = name, client.RepositoryCreate
	if n.attach {
		req.Mode = client.RepositoryAttach
	}
	laidOut := n.data != 0 || n.parity != 0 || len(n.domains) > 0 || n.force
	switch {
	case !n.attach && req.KeyFile != "":
		return failure.UsageError("Give it with --attach. A new one uses a key that exists by --key-source.", "a new repository gets its own key; --key-file is for one that exists")
	case req.KeyFile != "" && req.KeySource != "":
		return failure.UsageError("Give one of them.", "--key-file and --key-source do not go together")
	case n.attach && n.domainOf != "":
		return failure.UsageError("Leave it out.", "--domain-of is for a new repository")
	case len(n.trust) > 0 && !n.attach:
		return failure.UsageError("Give it with --attach.", "--trust is for a set that is there")
	case len(n.trust) > 0:
		req.Set.Trust, req.Set.AcceptLoss = n.trust, true
	}
	switch {
	case n.attach && laidOut:
		return failure.UsageError("Leave them out.", "how a set is laid out is written in it; --data, --parity, --domain and --force are for a new one")
	case len(paths) == 1 && laidOut:
		return failure.UsageError("Name all directories, each on a disk of its own.", "one directory is no set; --data, --parity, --domain and --force are for several")
	case len(paths) == 1 && len(n.trust) == 0:
		req.Path = paths[0]
		return nil
	}
	var err error
	if req.Set.Members, err = setMembers(paths, n.domains); err != nil || n.attach {
		return err
	}
	req.Set.Force = n.force
	req.Set.Data, req.Set.Parity, err = n.layout(len(paths))
	return err
}

// layout works out what is not given of a set's layout.
func (n newRepository) layout(members int) (data, parity int, err error) {
	data, parity = n.data, n.parity
	switch {
	case data == 0 && parity == 0 && members == 2:
		return 1, 1, nil
	case data == 0 && parity == 0:
		return 0, 0, failure.UsageError("Say how many of them may be lost with --parity, as --parity 1.", "it is not said how %d directories are to be used", members)
	case data == 0:
		data = members - parity
	case parity == 0:
		parity = members - data
	}
	if data < 1 || parity < 1 || members%(data+parity) != 0 {
		return 0, 0, failure.UsageError("Give --data N and --parity M so that the directories are N+M, or a multiple.", "%d directories cannot be used as --data %d --parity %d", members, data, parity)
	}
	return data, parity, nil
}

// setMembers pairs paths with domains, where these are given.
func setMembers(paths, domains []string) ([]client.SetMember, error) {
	if len(domains) > 0 && len(domains) != len(paths) {
		return nil, failure.UsageError("Give one for each directory, in the same order.", "there are %s and %s", counted(len(paths), "directory", "directories"), plural(len(domains), "domain"))
	}
	var members []client.SetMember
	for i, path := range paths {
		m := client.SetMember{Path: path}
		if len(domains) > 0 {
			m.Domain = domains[i]
		}
		members = append(members, m)
	}
	return members, nil
}

// counted is plural for nouns that do not only take an s.
func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// sayKeep reminds of the key: key is where the appliance has it from.
func (a *App) sayKeep(key string) {
	if strings.HasPrefix(key, "/") {
		a.Say("\nIts key is %s on the appliance. Keep a copy apart from the appliance:\nwithout the key nobody can read these backups.", key)
	} else if key != "" {
		a.Say("\nIts key is %s of the appliance. Keep a copy apart from the appliance:\nwithout the key nobody can read these backups.", key)
	}
}

func (a *App) repositoryList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List repositories", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			all, err := listRepositories(ctx, s)
			if err != nil {
				return err
			}
			return output.List(a.Printer(), all, func(r client.Repository) string { return r.Name },
				"No repositories. Make one with \"cairn repository create NAME PATH\".", []output.Column[client.Repository]{
					{Header: "NAME", Value: func(r client.Repository) string { return r.Name }},
					{Header: "STATE", State: true, Value: func(r client.Repository) string { return string(r.Status) }},
					{Header: "POINTS", Right: true, Value: func(r client.Repository) string { return ifKnown(r, strconv.Itoa(r.Usage.RestorePoints)) }},
					{Header: "LOGICAL", Right: true, Value: func(r client.Repository) string { return ifKnown(r, output.Size(r.Usage.LogicalBytes)) }},
					{Header: "STORED", Right: true, Value: func(r client.Repository) string { return ifKnown(r, output.Size(r.Usage.StoredBytes)) }},
					{Header: "FREE", Right: true, Value: func(r client.Repository) string { return sizeOrNone(r.Usage.FreeBytes) }},
					{Header: "PATH", Value: repositoryPlace},
					{Header: "ID", Wide: true, Value: func(r client.Repository) string { return r.ID }},
					{Header: "KEY", Wide: true, Value: func(r client.Repository) string { return r.KeyFile }},
				})
		}),
	}
}

// ifKnown leaves out what a repository that cannot be read does not tell: it is not empty, and not to be taken for it.
func ifKnown(r client.Repository, text string) string {
	if r.Status == client.StatusProblem && r.Usage == (client.Usage{}) {
		return ""
	}
	return text
}

func (a *App) repositoryShow() *cobra.Command {
	return a.onRepository("show [NAME]", "Show a repository", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		resp, err := s.GetRepository(ctx, r.ID)
		r, err = remote.Decode[client.Repository](s, resp, err)
		if err != nil {
			return err
		}
		return a.showRepository(r)
	})
}

func (a *App) repositoryDetach() *cobra.Command {
	return a.onRepository("detach NAME", "Forget a repository; its files and its key stay", func(ctx context.Context, s *remote.Session, r client.Repository) error {
		if err := a.Confirm(ctx, "Forget the repository %q in %s?", r.Name, repositoryPlace(r)); err != nil {
			return err
		}
		resp, err := s.DetachRepository(ctx, r.ID, nil)
		if err := remote.Done(s, resp, err); err != nil {
			return err
		}
		a.Say("Forgot %q. Its files are still in %s.", r.Name, repositoryPlace(r))
		return nil
	})
}

// onRepository is a command about one repository, named by id or name, or the only one there is.
func (a *App) onRepository(use, short string, do func(context.Context, *remote.Session, client.Repository) error) *cobra.Command {
	want := use[strings.LastIndexByte(use, ' ')+1:]
	return a.onRepositoryWith(use, short, []string{want}, a.completeRepositories, func(ctx context.Context, s *remote.Session, r client.Repository, _ []string) error {
		return do(ctx, s, r)
	})
}

// onRepositoryWith is a command about a repository, its first argument, and more arguments.
func (a *App) onRepositoryWith(use, short string, want []string, complete cobra.CompletionFunc, do func(context.Context, *remote.Session, client.Repository, []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args(want...), ValidArgsFunction: complete,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			var arg string
			var rest []string
			if len(args) > 0 {
				arg, rest = args[0], args[1:]
			}
			r, err := findRepository(ctx, s, arg)
			if err != nil {
				return err
			}
			return do(ctx, s, r, rest)
		}),
	}
}
