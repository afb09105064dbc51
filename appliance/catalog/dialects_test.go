package catalog

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/internal/postgrestest"
)

// onEach runs a test on each kind of database. dir is for open, which finds there which one it is; the same directory opens
// the same catalog again.
func onEach(t *testing.T, test func(t *testing.T, dir string)) {
	t.Run("sqlite", func(t *testing.T) { test(t, t.TempDir()) })
	t.Run("postgres", func(t *testing.T) { test(t, onPostgres(t)) })
}

const addressFile = "address"

// onPostgres makes a directory for open whose catalog is on PostgreSQL.
func onPostgres(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, addressFile), []byte(postgrestest.Database(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func options(dir string) Options {
	o := Options{Path: filepath.Join(dir, "catalog.db"), KeyFile: filepath.Join(dir, "keys", "catalog.key")}
	if address, err := os.ReadFile(filepath.Join(dir, addressFile)); err == nil {
		o.Path, o.Address = "", Secret(address)
	}
	return o
}
