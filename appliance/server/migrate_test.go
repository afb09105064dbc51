package server

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/postgrestest"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// An appliance moves from SQLite to PostgreSQL with one command, and goes on there: incrementally, with all it knew.
func TestMigrateToPostgreSQL(t *testing.T) {
	b := newBench(t)
	first := b.backup()
	disk0, disk1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	db := filepath.Join(b.root, "data", "catalog.db")
	address := postgrestest.Database(t)
	command := func() (string, error) {
		var out bytes.Buffer
		err := Run(t.Context(), []string{"migrate", "--from", "sqlite:" + db, "--to", "env:DB"}, env("DB", address), &out, &bytes.Buffer{}, nil)
		return out.String(), err
	}
	if _, err := command(); kindOf(err) != "conflict" {
		t.Errorf("while cairnd runs: %v, want conflict", err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err := command()
	if err != nil || !strings.Contains(out, "restore_points           1\n") {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	b.watch = &watch{over: map[string]chan struct{}{}}
	a, err := Open(t.Context(), Options{
		Dir: filepath.Join(b.root, "data"), Database: catalog.Secret(address), Log: slog.New(slog.DiscardHandler), observe: b.watch.see,
		Beat: 200 * time.Millisecond,
		Drivers: map[hypervisors.Platform]OpenDriver{
			memplatform.PlatformName: func(context.Context, Target) (hypervisors.Driver, error) { return b.platform.Driver(), nil },
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(context.Background()) })
	b.Appliance = a
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !a.peers.Owns(b.repo) {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("the repository was not taken over")
		}
	}
	if second := b.backup(); second.Kind != catalog.Incremental {
		t.Errorf("the backup after the move is %s: %v, want incremental", second.Kind, second.Disks)
	}
	b.restoresTo(first.ID, "again", disk0, disk1)
	b.clean()
	if _, err := command(); kindOf(err) != "conflict" {
		t.Errorf("while cairnd runs: %v, want conflict", err)
	}
}
