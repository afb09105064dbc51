package server

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// migrate is `cairnd migrate`: it moves the catalog from SQLite to PostgreSQL.
func migrate(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("cairnd migrate", flag.ContinueOnError)
	f.SetOutput(stderr)
	from := f.String("from", "sqlite:/var/lib/cairn/catalog.db", "`sqlite:PATH` of the catalog in its data directory")
	to := f.String("to", "", "where it goes, an empty PostgreSQL database: `file:PATH`, credential:NAME or env:NAME, which hold its address, or the address itself")
	if err := f.Parse(args); err != nil {
		return err
	}
	path, ok := strings.CutPrefix(*from, "sqlite:")
	if !ok || *to == "" || f.NArg() > 0 {
		return fault.New(fault.Invalid, "migrate", *from, "it goes from sqlite:PATH to a PostgreSQL database").Explain(
			"The command moves a catalog one way.", "cairnd migrate --from sqlite:/var/lib/cairn/catalog.db --to file:/etc/cairn/database")
	}
	address, err := readSecret(*to, getenv)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fault.Context("migrate", path, err)
	}
	dir := filepath.Dir(path)
	lock, err := lockDir(filepath.Join(dir, "lock"))
	if err != nil {
		return err
	}
	key := filepath.Join(dir, "keys", "catalog.key")
	report, err := catalog.Move(ctx, catalog.Options{Path: path, KeyFile: key}, catalog.Options{Address: address, KeyFile: key})
	if err := errors.Join(err, lock.Close()); err != nil {
		return err
	}
	for _, t := range report {
		if t.Rows > 0 {
			fmt.Fprintf(stdout, "%-16s %9d\n", t.Table, t.Rows)
		}
	}
	fmt.Fprintf(stdout, "All rows were counted in the database. Start cairnd with --database %s and the same data directory; %s is not used any more.\n",
		redactAddress(*to), path)
	return nil
}

// readSecret reads a secret from where a setting says it is. A setting may be the secret itself.
func readSecret(source string, getenv func(string) string) (catalog.Secret, error) {
	kind, name, _ := strings.Cut(source, ":")
	switch kind {
	case "env":
		return catalog.Secret(getenv(name)), nil
	case "credential":
		dir := getenv("CREDENTIALS_DIRECTORY")
		if dir == "" || name == "" || strings.Contains(name, "/") {
			return "", fault.New(fault.NotFound, "read credential", name, "systemd has passed none").Explain(
				"A systemd credential is there only for the service that it was loaded for.", "Put LoadCredential= into the unit (systemctl edit cairnd).")
		}
		return readSecretFile(filepath.Join(dir, name))
	case "file":
		return readSecretFile(name)
	}
	return catalog.Secret(source), nil
}

func readSecretFile(path string) (catalog.Secret, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fault.Context("read secret", path, err)
	}
	return catalog.Secret(strings.TrimSpace(string(b))), nil
}

// redactAddress shows where a secret is, and not the secret.
func redactAddress(source string) string {
	for _, kind := range []string{"env:", "credential:", "file:"} {
		if source == "" || strings.HasPrefix(source, kind) {
			return source
		}
	}
	return "[redacted]"
}
