// Command cairn is the command line of the Cairn backup appliance: a client of its REST API, and rescue verbs that
// read a repository with no appliance at all.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	code := command.Run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
