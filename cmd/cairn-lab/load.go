package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/lab/load"
)

// loadCommand measures the API. The appliance that it asks is this program again, in a process of its own.
func loadCommand() *cobra.Command {
	o := load.Options{}
	c := &cobra.Command{
		Use: "load DIR", Short: "Measure the API over a full catalog, which is made in the directory and removed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			o.Dir, o.Out = args[0], cmd.OutOrStdout()
			o.Serve = func(data string) []string { return []string{self, "load", "serve", data} }
			if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s is there already", o.Dir)
			}
			return load.Run(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.IntVar(&o.Points, "points", 1_000_000, "restore points in the large catalog, at least 20000")
	f.IntVar(&o.VMs, "vms", 10_000, "VMs in both")
	f.IntVar(&o.Rounds, "rounds", 500, "requests for each figure")
	f.DurationVar(&o.Follow, "follow", 2*time.Minute, "how long events are followed and requests come")
	f.Uint64Var(&o.Seed, "seed", 1, "of everything that is made up")
	c.AddCommand(&cobra.Command{
		Use: "serve DIR", Short: "The appliance that is asked, over a platform in memory", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return load.Serve(cmd.Context(), args[0], cmd.OutOrStdout(), os.Stderr)
		},
	})
	return c
}
