// Command worker lives the life of a small repository for the campaigns, which kill it or cut off its disk.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/cairn-backup/cairn/store/campaign/workload"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var c workload.Config
	fs := &workload.FS{}
	flags := flag.NewFlagSet("worker", flag.ContinueOnError)
	flags.StringVar(&c.Dir, "dir", "", "directory of the repository, to be made")
	flags.StringVar(&c.IndexDir, "index", "", "directory of the index")
	flags.StringVar(&c.KeyFile, "key", "", "key file, made if it is not there")
	flags.Uint64Var(&c.Seed, "seed", 1, "what is done depends on it alone")
	flags.IntVar(&c.Lives, "lives", 0, "how often the repository is opened")
	flags.BoolVar(&c.Set, "set", false, "on an erasure set")
	flags.BoolVar(&c.Heal, "heal", false, "damage is healed from a copy")
	flags.BoolVar(&c.Big, "big", false, "with a disk that fills a pack")
	flags.BoolVar(&fs.LieDirs, "lie-dirs", false, "do not fsync directories")
	flags.BoolVar(&fs.LieFiles, "lie-files", false, "do not fsync files")
	flags.Int64Var(&fs.KillAt, "kill-at", 0, "file operation at which to die by SIGKILL")
	acks := flags.String("acks", "", "file that gets the acknowledgements")
	if err := flags.Parse(args); err != nil {
		return err
	}
	out, err := os.OpenFile(*acks, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	c.Acks, c.FS = out, fs
	if err := workload.Run(context.Background(), c); err != nil {
		return err
	}
	fmt.Println(fs.Ops.Load()) // for choosing where to die
	return out.Close()
}
