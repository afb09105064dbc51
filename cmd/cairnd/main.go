// Command cairnd is the appliance: manager, REST API, repositories and the built-in mover in one process.
//
// It only puts the drivers' table and the appliance together; everything else is in package server.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // policies name time zones, and a small system has no database of them

	"github.com/cairn-backup/cairn/appliance/server"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/all"
	"github.com/cairn-backup/cairn/internal/fault"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := server.Run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr, drivers())
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "cairnd:", err)
	for _, words := range explanation(err) {
		fmt.Fprintln(os.Stderr, "       ", words)
	}
	os.Exit(1)
}

func explanation(err error) (words []string) {
	meaning, advice := fault.Explanation(err)
	for _, w := range []string{meaning, advice} {
		if w != "" {
			words = append(words, w)
		}
	}
	return words
}

// drivers is the table of platforms in the manager's words.
func drivers() map[hypervisors.Platform]server.OpenDriver {
	table := map[hypervisors.Platform]server.OpenDriver{}
	for platform, open := range all.Platforms() {
		table[platform] = func(ctx context.Context, t server.Target) (hypervisors.Driver, error) {
			return open(ctx, all.Config{
				Address: t.Address, User: t.User, Password: all.Secret(t.Secret), Options: t.Options, Confirm: t.Confirm, Log: t.Log,
			})
		}
	}
	return table
}
