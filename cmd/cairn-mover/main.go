//go:build linux

// Command cairn-mover is the DataMover: a static program that runs in a virtual machine near the disks, as its only
// process or as a service.
//
// It only picks what to do; the machine's duties are in datamover/guest.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/cairn-backup/cairn/datamover/control"
	"github.com/cairn-backup/cairn/datamover/guest"
	"github.com/cairn-backup/cairn/datamover/program"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/version"
)

const usage = `usage: cairn-mover version | run [FLAGS] | config [--to DIR] [--wait TIME] [--keep DIR]
  version  which build this is
  run      enrol with the manager if need be, and work until it is told to end. With flags, or with flags alone and
           without the word: "cairn mover token" prints the whole line, --help shows all. Without: with the
           configuration that this machine was given
  config   print the configuration that this machine was given, the join token included, or write it to a directory
It ends with status 77 when the manager wants nothing of it: revoked, replaced, or with a join token that is no good.
As process 1 of a machine of its own it takes no words: it makes the machine ready and works until it is switched off.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if os.Getpid() == 1 {
		stop() // the machine's own business
		guest.Run(context.Background(), work)
	}
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cairn-mover:", err)
		if meaning, advice := fault.Explanation(err); meaning != "" || advice != "" {
			fmt.Fprintln(os.Stderr, meaning, advice)
		}
		os.Exit(status(err))
	}
}

// dismissed is the exit status for what no restart mends; the systemd unit has it in RestartPreventExitStatus.
const dismissed = 77

func status(err error) int {
	if errors.Is(err, control.ErrDismissed) {
		return dismissed
	}
	return 1
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	verb := append(args, "")[0]
	if strings.HasPrefix(verb, "-") {
		return program.Main(ctx, args, os.Getenv, os.Stderr)
	}
	switch verb {
	case "version":
		_, err := fmt.Fprintln(stdout, version.Version)
		return err
	case "run":
		if len(args) > 1 {
			return program.Main(ctx, args[1:], os.Getenv, os.Stderr)
		}
		cfg, err := guest.ReadConfig(ctx, "")
		if err != nil {
			return err
		}
		return work(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)), cfg)
	case "config":
		return guest.ConfigCommand(ctx, args[1:], stdout)
	case "poweroff":
		return guest.AskPowerOff() // the kernel's own call, on Hyper-V
	default:
		return fault.New(fault.Invalid, "cairn-mover", verb, "no such command\n%s", usage)
	}
}

// work is what the machine is for.
func work(ctx context.Context, log *slog.Logger, cfg guest.Config) error {
	if _, err := os.Stat(guest.StorageDir); err != nil && len(cfg.Storage) > 0 {
		log.Warn("the storage is not mounted, and packs go to the manager: only the images of whole Debian systems mount what their configuration names",
			"storage", cfg.Storage)
	}
	if len(cfg.Sessions) > 0 {
		log.Warn("no session with a target on the storage network is begun: only the image of the Debian mover does that", "sessions", guest.WithoutSecrets(cfg.Sessions))
	}
	return program.Run(ctx, log, program.Settings{
		Manager: cfg.Manager, Fingerprint: cfg.Fingerprint, Token: cfg.Token, Name: cfg.Name, StateDir: guest.StateDir,
		Repositories: cfg.Directories(),
	})
}
