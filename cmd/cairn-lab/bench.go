package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/lab/bench/bare"
	"github.com/cairn-backup/cairn/lab/bench/engines"
	"github.com/cairn-backup/cairn/lab/bench/images"
	"github.com/cairn-backup/cairn/lab/bench/measure"
)

// benchFlags are those of the bench commands.
type benchFlags struct {
	cache, images, set, scratch string
	seed                        uint64
	rounds, days                int
	engines, work, rows, codec  string
	noLong                      bool
}

// cacheDir is where root file systems, images and the peers' programs are kept between runs.
func cacheDir() string {
	if dir := os.Getenv("CAIRN_BENCH_CACHE"); dir != "" {
		return dir
	}
	base, err := os.UserCacheDir()
	if err != nil {
		base = "/var/tmp"
	}
	return filepath.Join(base, "cairn-bench")
}

// folder is where the images are.
func (f *benchFlags) folder() string {
	return cmp.Or(f.images, filepath.Join(f.cache, "images", fmt.Sprintf("%s-%d", f.set, f.seed)))
}

func benchCommand() *cobra.Command {
	f := &benchFlags{}
	bench := &cobra.Command{Use: "bench", Short: "Images of machines over some days, and engines measured on them"}
	p := bench.PersistentFlags()
	p.StringVar(&f.cache, "cache", cacheDir(), "what is kept between runs; $CAIRN_BENCH_CACHE")
	p.StringVar(&f.set, "set", "default", "default, or small for a run of minutes")
	p.Uint64Var(&f.seed, "seed", 1, "of everything that is made up")
	p.StringVar(&f.images, "images", "", "directory of the images; in the cache by default")
	p.StringVar(&f.scratch, "scratch", os.Getenv("CAIRN_BENCH_SCRATCH"), "where images are made; in memory it is much faster; $CAIRN_BENCH_SCRATCH")
	run := &cobra.Command{Use: "run", Short: "Measure engines on the images and print tables", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return f.run(cmd)
	}}
	run.Flags().IntVar(&f.rounds, "rounds", 3, "how many; the tables have medians")
	run.Flags().IntVar(&f.days, "days", 0, "of all machines; 0 is as many as there are")
	run.Flags().StringVar(&f.engines, "engines", strings.Join(engines.Names, ","), "which engines")
	run.Flags().StringVar(&f.work, "work", "", "where repositories and restored images go; beside the images by default")
	run.Flags().StringVar(&f.rows, "rows", "", "file that gets a line of JSON for each measurement; in the cache by default")
	run.Flags().BoolVar(&f.noLong, "no-long", false, "without the 30 days of one machine")
	image := &cobra.Command{Use: "image MACHINE DAY FILE", Short: "Make the image of a machine's day", Args: cobra.ExactArgs(3), RunE: func(cmd *cobra.Command, args []string) error {
		day, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return images.Build(cmd.Context(), f.folder(), args[0], day, args[2])
	}}
	novel := &cobra.Command{Use: "novel KIND DAY FILE", Short: "Write what is new on a day on machines of a kind: no engine can store less than that compresses to", Args: cobra.ExactArgs(3), RunE: func(cmd *cobra.Command, args []string) error {
		return f.novel(cmd, images.Kind(args[0]), args[1], args[2])
	}}
	pipe := &cobra.Command{Use: "bare write IMAGE [FILE] | restore FILE TARGET", Short: "The least that writing and restoring can cost", Args: cobra.RangeArgs(2, 3), RunE: func(cmd *cobra.Command, args []string) error {
		args = append(args, "")
		if args[0] == "restore" {
			return bare.Restore(cmd.Context(), args[1], args[2], f.codec)
		}
		return bare.Write(cmd.Context(), args[1], args[2], f.codec)
	}}
	pipe.Flags().StringVar(&f.codec, "codec", "", "zstd or s2; without it the image is only read and hashed")
	bench.AddCommand(run, image, novel, pipe, &cobra.Command{Use: "images", Short: "Make the images and print where they are", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if err := f.generate(cmd); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), f.folder())
		return err
	}}, &cobra.Command{Use: "table ROWS...", Short: "Print the tables of rows that were measured before", Args: cobra.MinimumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return tables(cmd, args)
	}})
	return bench
}

func (f *benchFlags) generate(cmd *cobra.Command) error {
	s, err := images.NewSet(f.set, f.seed)
	if err != nil {
		return err
	}
	g := images.Generator{Cache: f.cache, Dir: f.folder(), Scratch: f.scratch, Say: func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }}
	return g.Generate(cmd.Context(), s)
}

func (f *benchFlags) novel(cmd *cobra.Command, k images.Kind, text, path string) error {
	day, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	if day < 2 || !slices.Contains(images.Kinds, k) {
		return fmt.Errorf("day %d of %q machines: the first day has none before, and the kinds are %v", day, k, images.Kinds)
	}
	scratch, err := os.MkdirTemp(f.scratch, "novel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	n, err := images.Novel(cmd.Context(), f.folder(), k, day, scratch, path)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d bytes\n", n)
	return err
}

func (f *benchFlags) run(cmd *cobra.Command) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(cmp.Or(f.work, f.folder()), "work-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	path := cmp.Or(f.rows, filepath.Join(f.cache, fmt.Sprintf("rows-%s-%d.json", f.set, f.seed)))
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	bin := func(name string) string { return filepath.Join(f.cache, "bin", name) }
	r := measure.Run{
		Images: f.folder(), Work: work, Engines: strings.Split(f.engines, ","), Rounds: f.rounds, NoLong: f.noLong, Days: f.days, Out: out,
		Programs: engines.Programs{Cairn: self, Restic: bin("restic"), Kopia: bin("kopia"), Borg: "borg"},
		Say:      func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) },
	}
	if err := r.Do(cmd.Context()); err != nil {
		return err
	}
	return tables(cmd, []string{path})
}

func tables(cmd *cobra.Command, paths []string) error {
	var rows []measure.Row
	rounds := 0
	for _, path := range paths {
		more, err := measure.Load(path)
		if err != nil {
			return err
		}
		before := rounds // each file counts its rounds from 1
		for _, r := range more {
			r.Round += before
			rounds = max(rounds, r.Round)
			rows = append(rows, r)
		}
	}
	m := measure.Medians(rows)
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "Medians of %d rounds.\n\n%s\n%s", rounds, measure.Table(m), measure.TargetTable(measure.Targets(rows)))
	return err
}
