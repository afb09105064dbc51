package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/lab/bench/images"
)

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

func benchCommand() *cobra.Command {
	var cache, dir, set, scratch string
	var seed uint64
	bench := &cobra.Command{Use: "bench", Short: "Images of machines over some days, and engines measured on them"}
	p := bench.PersistentFlags()
	p.StringVar(&cache, "cache", cacheDir(), "what is kept between runs; $CAIRN_BENCH_CACHE")
	p.StringVar(&set, "set", "default", "default, or small for a run of minutes")
	p.Uint64Var(&seed, "seed", 1, "of everything that is made up")
	p.StringVar(&dir, "images", "", "directory of the images; in the cache by default")
	p.StringVar(&scratch, "scratch", os.Getenv("CAIRN_BENCH_SCRATCH"), "where images are made; in memory it is much faster; $CAIRN_BENCH_SCRATCH")
	folder := func() string {
		if dir != "" {
			return dir
		}
		return filepath.Join(cache, "images", fmt.Sprintf("%s-%d", set, seed))
	}
	bench.AddCommand(&cobra.Command{Use: "images", Short: "Make the images and print where they are", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		s, err := images.NewSet(set, seed)
		if err != nil {
			return err
		}
		g := images.Generator{Cache: cache, Dir: folder(), Scratch: scratch, Say: func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }}
		if err := g.Generate(cmd.Context(), s); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), folder())
		return err
	}})
	return bench
}
