// Command build makes Cairn's images: the small mover, the Debian mover and the appliance, in the formats of the
// platforms, and the appliance as a container, with checksums and bills of materials. docs/images.md describes them.
//
// It needs Debian 12 with the packages of scripts/install-deps.sh; the Debian images also root, for mmdebstrap. It uses
// no loop device and mounts no image.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/images/disk"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	var b builder
	f := flag.NewFlagSet("build", flag.ContinueOnError)
	f.StringVar(&b.out, "out", "dist/images", "directory of the images")
	f.StringVar(&b.kernel, "kernel", "linux-image-amd64", "meta package of the kernel of the small image")
	f.StringVar(&b.cacheDir, "cache", "", "directory of downloads (CAIRN_IMAGES_CACHE, or cairn-images in the user's cache)")
	f.StringVar(&b.version, "version", "", "version; by default what git says")
	only := f.String("only", "mover", "images to make, with commas: mover, mover-debian, appliance, container")
	formats := f.String("formats", "qcow2,vmdk,vhdx", "formats to make, with commas; an OVA comes with vmdk")
	if err := f.Parse(args); err != nil {
		return err
	}
	for _, name := range strings.Split(*formats, ",") {
		b.formats = append(b.formats, disk.Format(name))
	}
	b.say = func(format string, args ...any) { fmt.Fprintf(stdout, format+"\n", args...) }
	var err error
	if b.time, err = epoch(ctx, getenv("SOURCE_DATE_EPOCH")); err != nil {
		return err
	}
	if b.version == "" {
		b.version = git(ctx, "describe", "--tags", "--always", "--dirty")
	}
	return b.build(ctx, strings.Split(*only, ","))
}

// epoch is the time of everything in the images: SOURCE_DATE_EPOCH, or that of the commit.
func epoch(ctx context.Context, given string) (time.Time, error) {
	if given == "" {
		given = git(ctx, "log", "-1", "--format=%ct")
	}
	sec, err := strconv.ParseInt(given, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is not set, and git does not tell the commit's time: %w", err)
	}
	return time.Unix(sec, 0).UTC(), nil
}

func git(ctx context.Context, args ...string) string {
	out, err := exec.CommandContext(ctx, "git", args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
