package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/internal/durable"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Where several managers share a catalog, each has a data directory, and the keys of repositories and the certificate
// authority are the same in all: they are shared through the catalog, sealed with its key.

// keyFile is where the key of a repository lies. One that the appliance keeps itself is in this data directory, wherever the
// manager that made it had its own.
func (a *Appliance) keyFile(row catalog.Repository) string {
	if a.keepsKey(row) {
		return a.path("keys", filepath.Base(row.KeyFile))
	}
	return row.KeyFile
}

func (a *Appliance) keepsKey(row catalog.Repository) bool {
	return filepath.Base(row.KeyFile) == row.ID+".key"
}

// pullKey puts the key of a repository in its place if it is not there, and one that is about to take its place.
func (a *Appliance) pullKey(ctx context.Context, row catalog.Repository) error {
	if !a.catalog.Shared() || !a.keepsKey(row) {
		return nil
	}
	path := a.keyFile(row)
	return errors.Join(a.pull(ctx, path), a.pull(ctx, rotated(path)))
}

func (a *Appliance) pull(ctx context.Context, path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	secret, err := a.catalog.FileShared(ctx, a.shareName(path))
	if fault.KindOf(err) == fault.NotFound && err != nil {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.Replace(path, []byte(secret), 0o400)
}

// takeSharedKey replaces a key that does not open its repository by the one that the other managers use. It reports whether
// there was another one.
func (a *Appliance) takeSharedKey(ctx context.Context, row catalog.Repository) (bool, error) {
	if !a.catalog.Shared() || !a.keepsKey(row) {
		return false, nil
	}
	path := a.keyFile(row)
	secret, err := a.catalog.FileShared(ctx, a.shareName(path))
	if err != nil {
		return false, err
	}
	have, err := os.ReadFile(path)
	if err != nil || string(have) == string(secret) {
		return false, err
	}
	return true, durable.Replace(path, []byte(secret), 0o400)
}

// pushKey gives the other managers the key that opens a repository.
func (a *Appliance) pushKey(ctx context.Context, row catalog.Repository) error {
	if !a.catalog.Shared() || !a.keepsKey(row) {
		return nil
	}
	path := a.keyFile(row)
	have, err := os.ReadFile(path)
	if err != nil {
		return fault.Context("read key file", path, err)
	}
	known, err := a.catalog.FileShared(ctx, a.shareName(path))
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	if err == nil && string(known) == string(have) {
		return nil
	}
	return a.catalog.ShareFile(ctx, a.shareName(path), catalog.Secret(have))
}

// pushRotated gives the other managers a key before it takes the place of the one in use, so that the repository can be
// opened whoever does the rest.
func (a *Appliance) pushRotated(ctx context.Context, row catalog.Repository) error {
	if !a.catalog.Shared() || !a.keepsKey(row) {
		return nil
	}
	fresh := rotated(a.keyFile(row))
	raw, err := os.ReadFile(fresh)
	if err != nil {
		return fault.Context("read new key file", fresh, err)
	}
	return a.catalog.ShareFile(ctx, a.shareName(fresh), catalog.Secret(raw))
}

// rotationDone shares the key that has taken its place.
func (a *Appliance) rotationDone(ctx context.Context, row catalog.Repository) error {
	if err := a.pushKey(ctx, row); err != nil || !a.catalog.Shared() {
		return err
	}
	return a.catalog.UnshareFile(ctx, a.shareName(rotated(a.keyFile(row))))
}

func (a *Appliance) shareName(path string) string { return "keys/" + filepath.Base(path) }

// sharedCA is the name of the certificate authority among the shared files.
const sharedCA = "tls/ca.pem"

// openAuthority opens the certificate authority: that of all managers, where there may be several.
func (a *Appliance) openAuthority(ctx context.Context, hosts []string) (*identity.Authority, error) {
	if !a.catalog.Shared() {
		return identity.OpenAuthority(a.path("tls"), hosts)
	}
	path := a.path("tls", "ca.pem")
	secret, err := a.catalog.FileShared(ctx, sharedCA)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return nil, err
	}
	if err != nil { // the first manager makes it; of two firsts, one
		if _, err := identity.OpenAuthority(a.path("tls"), hosts); err != nil {
			return nil, err
		}
		have, err := os.ReadFile(path)
		if err != nil {
			return nil, fault.Context("read certificate authority", path, err)
		}
		if secret, err = a.catalog.ShareFirst(ctx, sharedCA, catalog.Secret(have)); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fault.Context("create directory", filepath.Dir(path), err)
	}
	if err := durable.Replace(path, []byte(secret), 0o600); err != nil {
		return nil, fault.Context("write certificate authority", path, err)
	}
	return identity.OpenAuthority(a.path("tls"), hosts)
}
