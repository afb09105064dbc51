package server

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/support"
	"github.com/cairn-backup/cairn/internal/fault"
)

// maxCopied bounds the catalog that is copied for a bundle.
const maxCopied = 2 << 30

// supportCommand is `cairnd support`: a bundle of an appliance that does not run.
func supportCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) (err error) {
	var out string
	c, err := configure("cairnd support", args, getenv, stderr, func(f *flag.FlagSet) {
		f.StringVar(&out, "out", "", "write the bundle to this `file`, which must not be there")
	})
	if err != nil {
		return err
	}
	if out == "" {
		return fault.New(fault.Invalid, "read command line", "", "--out is missing").Explain("", "cairnd support --out cairn-support.zip")
	}
	if _, err := os.Stat(c.dir); err != nil {
		return fault.Context("open data directory", c.dir, err).Explain("There is no appliance.", "Name its data directory with --data.")
	}
	lock, err := lockDir(filepath.Join(c.dir, "lock"))
	if fault.KindOf(err) == fault.Conflict {
		return fault.Wrap(fault.Conflict, "gather support bundle", c.dir, err).Explain(
			"A cairnd runs on this data directory, and knows more than can be read from outside.", "Ask it: cairn support bundle --out "+out)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	printed, err := c.printed()
	if err != nil {
		return err
	}
	b := bundled{dir: c.dir, printed: printed, database: c.database, getenv: getenv}
	tmp, err := os.MkdirTemp("", "cairn-support-")
	if err != nil {
		return fault.Context("make directory", "", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if b.catalog, b.closed = copiedCatalog(ctx, c, tmp); b.catalog != nil {
		defer func() { err = errors.Join(err, b.catalog.Close()) }()
	}
	return b.write(ctx, out, stdout)
}

// write makes the file of a bundle.
func (b bundled) write(ctx context.Context, out string, stdout io.Writer) error {
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fault.Context("write support bundle", out, err).Explain("", "Choose another name; nothing is overwritten.")
	}
	ctx, cancel := context.WithTimeout(ctx, bundleTime)
	defer cancel()
	redactor, unknown := b.redactor(ctx)
	parts := append(b.parts(unknown), support.Part{Name: "disks.json", Gather: b.disks})
	if err := errors.Join(support.Write(ctx, f, bundleName(), time.Now(), redactor, parts), f.Close()); err != nil {
		return errors.Join(fault.Context("write support bundle", out, err), os.Remove(out))
	}
	_, err = fmt.Fprintf(stdout, "%s: secrets were taken out; look through it before you give it away. What could not be gathered stands in its missing.txt.\n", out)
	return err
}

// copiedCatalog opens a copy of the catalog in the data directory, so that looking at it changes nothing. One in PostgreSQL would have
// to be brought up to date first, so it is left alone.
func copiedCatalog(ctx context.Context, c configured, tmp string) (*catalog.Catalog, error) {
	if c.source != "" {
		return nil, errors.New("the catalog is in PostgreSQL, which is not looked at without a manager")
	}
	for _, name := range []string{"catalog.db", "catalog.db-wal"} {
		err := copyFile(filepath.Join(tmp, name), filepath.Join(c.dir, name))
		if err != nil && (name == "catalog.db" || !errors.Is(err, fs.ErrNotExist)) {
			return nil, fault.Context("copy catalog", name, err)
		}
	}
	return catalog.Open(ctx, catalog.Options{Path: filepath.Join(tmp, "catalog.db"), KeyFile: filepath.Join(c.dir, "keys", "catalog.key")})
}

func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxCopied {
		return fmt.Errorf("it is larger than %d bytes", maxCopied)
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
