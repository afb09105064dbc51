package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/lab/bench/repo"
	"github.com/cairn-backup/cairn/store"
)

// repoFlags are those of the commands on repositories.
type repoFlags struct {
	place  repo.Place
	backup repo.Backup
	point  string
	number uint64
	keep   int
	chunk  int

	compression string
	profile     string
}

func repoCommand() *cobra.Command {
	f := &repoFlags{}
	c := &cobra.Command{Use: "repo", Short: "A repository of raw images, without an appliance: to measure and to look into"}
	p := c.PersistentFlags()
	p.StringVar(&f.place.Dir, "repo", "", "directory of the repository")
	p.StringVar(&f.place.Key, "key", "", "key file; beside the repository by default")
	p.StringVar(&f.place.Index, "index", "", "where the index is kept; beside the repository by default")
	p.StringVar(&f.profile, "cpuprofile", "", "write a CPU profile to this file")
	p.StringVar(&f.compression, "compression", "", "how what is written is compressed; the repository's default by default")
	p.IntVar(&f.backup.Workers, "workers", 0, "segments under way at once; the mover's default by default")
	_ = c.MarkPersistentFlagRequired("repo")
	create := &cobra.Command{Use: "create", Short: "Make a repository and its key", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return repo.Create(cmd.Context(), f.place, store.CreateOptions{Name: "bench", ChunkBytes: f.chunk << 10})
	}}
	create.Flags().IntVar(&f.chunk, "chunk-kib", 0, "size of chunks; the repository's default by default")
	backup := f.on("backup IMAGE", "Back up a raw image", cobra.ExactArgs(1), func(ctx context.Context, r *store.Repository, args []string) (out repo.Result, err error) {
		f.backup.Image = args[0]
		report, err := f.backup.Run(ctx, r)
		return repo.Result{Backup: &report}, err
	})
	backup.Flags().StringVar(&f.backup.Series, "series", "", "what the restore points are a history of")
	backup.Flags().StringVar(&f.backup.Changes, "changes", "", "record of what changed since the series' last restore point; without it all is read")
	backup.Flags().BoolVar(&f.backup.Alone, "no-parent", false, "do not build on the series' last restore point")
	_ = backup.MarkFlagRequired("series")
	restore := f.on("restore TARGET", "Restore to a new sparse file", cobra.ExactArgs(1), func(ctx context.Context, r *store.Repository, args []string) (out repo.Result, err error) {
		id := f.point
		if id == "" {
			if id, err = repo.Find(ctx, r, f.backup.Series, f.number); err != nil {
				return out, err
			}
		}
		res, err := repo.Restore(ctx, r, id, args[0], f.backup.Workers)
		return repo.Result{Restore: &res}, err
	})
	restore.Flags().StringVar(&f.point, "point", "", "restore point")
	restore.Flags().StringVar(&f.backup.Series, "series", "", "or: series")
	restore.Flags().Uint64Var(&f.number, "sequence", 0, "and number in it; 0 is the newest")
	prune := f.on("prune", "Remove all but the last restore points of each series, and what only they needed", cobra.NoArgs,
		func(ctx context.Context, r *store.Repository, _ []string) (repo.Result, error) {
			report, err := repo.KeepLast(ctx, r, f.keep)
			return repo.Result{Collect: &report}, err
		})
	prune.Flags().IntVar(&f.keep, "keep-last", 1, "how many restore points of each series stay")
	anatomy := &cobra.Command{Use: "anatomy", Short: "Say what the bytes of a repository are; needs no key", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		a, err := repo.Dissect(cmd.Context(), f.place.Dir)
		if err != nil {
			return err
		}
		return json.NewEncoder(cmd.OutOrStdout()).Encode(a)
	}}
	c.AddCommand(create, backup, restore, prune, anatomy,
		f.on("points", "List restore points", cobra.NoArgs, func(ctx context.Context, r *store.Repository, _ []string) (repo.Result, error) {
			points, err := repo.Points(ctx, r)
			return repo.Result{Points: points}, err
		}),
		f.on("verify", "Read everything back", cobra.NoArgs, func(ctx context.Context, r *store.Repository, _ []string) (repo.Result, error) {
			report, err := repo.VerifyAll(ctx, r)
			return repo.Result{Verify: &report}, err
		}),
		f.on("usage", "Say how full it is", cobra.NoArgs, func(ctx context.Context, r *store.Repository, _ []string) (repo.Result, error) {
			u, err := r.Usage(ctx)
			return repo.Result{Usage: &u}, err
		}))
	return c
}

// on makes a command that works on an open repository and prints a result.
func (f *repoFlags) on(use, short string, args cobra.PositionalArgs, run func(context.Context, *store.Repository, []string) (repo.Result, error)) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) (err error) {
		stop, err := profileTo(f.profile)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
		var out repo.Result
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		err = repo.With(cmd.Context(), f.place, store.Options{Log: log, Compression: f.compression}, func(r *store.Repository) (err error) {
			out, err = run(cmd.Context(), r, args)
			return err
		})
		if err != nil {
			return err
		}
		line, err := json.Marshal(out)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), string(line))
		return err
	}}
}

// profileTo writes a CPU profile until stop, if there is a path.
func profileTo(path string) (stop func() error, err error) {
	if path == "" {
		return func() error { return nil }, nil
	}
	out, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return out.Close()
	}, nil
}
