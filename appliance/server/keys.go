package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/durable"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
)

// onBackend calls f with what a repository lies on, also when the repository itself cannot be opened because its key
// is lost: that is when its keys are of interest.
func (a *Appliance) onBackend(ctx context.Context, id string, f func(catalog.Repository, blob.Store) error) error {
	row, err := a.catalog.Repository(ctx, id)
	if err != nil {
		return err
	}
	row.KeyFile = a.keyFile(row)
	o, err := a.opened(ctx, id)
	if err == nil {
		return f(row, o.backend)
	}
	if errors.Is(err, catalog.ErrElsewhere) {
		return err
	}
	backend, _, err := a.openBackend(ctx, row)
	if err != nil {
		return fault.Wrap(absentKind(err), "open repository", row.Name, err)
	}
	return errors.Join(f(row, backend), backend.Close())
}

// withKey is onBackend with the key the appliance uses.
func (a *Appliance) withKey(ctx context.Context, id string, f func(catalog.Repository, blob.Store, store.Key) error) error {
	a.repositories.keys.Lock()
	defer a.repositories.keys.Unlock()
	return a.onBackend(ctx, id, func(row catalog.Repository, b blob.Store) error {
		key, err := store.LoadKey(ctx, row.KeyFile)
		if err != nil {
			return fault.Wrap(absentKind(err), "read key of repository", row.Name, err)
		}
		return f(row, b, key)
	})
}

// ListKeys implements httpapi.Core.
func (a *Appliance) ListKeys(ctx context.Context, id string) ([]httpapi.KeyInfo, error) {
	var out []httpapi.KeyInfo
	err := a.onBackend(ctx, id, func(row catalog.Repository, b blob.Store) error {
		list, err := store.Wrappings(ctx, b)
		for _, w := range list {
			out = append(out, a.keyInfo(ctx, row, w))
		}
		return err
	})
	return out, err
}

func (a *Appliance) keyInfo(ctx context.Context, row catalog.Repository, w store.Wrapping) httpapi.KeyInfo {
	key, err := store.LoadKey(ctx, row.KeyFile)
	return httpapi.KeyInfo{Wrapping: w, InUse: err == nil && w.Key == key.Fingerprint()}
}

// AddKey implements httpapi.Core.
func (a *Appliance) AddKey(ctx context.Context, id string, k httpapi.NewKey) (info httpapi.KeyInfo, page catalog.Secret, err error) {
	a.repositories.keys.Lock()
	defer a.repositories.keys.Unlock()
	err = a.onBackend(ctx, id, func(row catalog.Repository, b blob.Store) error {
		by, err := a.opener(ctx, row, k.By)
		if err != nil {
			return err
		}
		var w store.Wrapping
		switch k.Kind {
		case "age":
			w, err = store.AddRecipient(ctx, b, by, k.Recipient, k.Label)
		case "paper":
			w, page, err = addPaper(ctx, b, by, k.Label)
		default:
			if k.KeyFile == "" {
				k.KeyFile = row.KeyFile
			}
			w, err = addKeyFile(ctx, b, by, k)
		}
		info = a.keyInfo(ctx, row, w)
		return err
	})
	return info, page, err
}

// opener is the key that was given, or else the one the appliance uses.
func (a *Appliance) opener(ctx context.Context, row catalog.Repository, k httpapi.GivenKey) (store.Opener, error) {
	if k != (httpapi.GivenKey{}) {
		return openerOf(ctx, k)
	}
	key, err := store.LoadKey(ctx, row.KeyFile)
	if err != nil {
		return nil, fault.Wrap(absentKind(err), "read key of repository", row.Name, err)
	}
	return key, nil
}

func addPaper(ctx context.Context, b blob.Store, by store.Opener, label string) (store.Wrapping, catalog.Secret, error) {
	paper, w, err := store.AddPaperKey(ctx, b, by, label)
	if err != nil {
		return w, "", err
	}
	text, err := paper.Text()
	if err != nil { // a key that nobody has is of no use
		err = errors.Join(err, store.RemoveWrapping(context.WithoutCancel(ctx), b, by, w.ID))
	}
	return w, catalog.Secret(text), err
}

// addKeyFile adds the key in a file, which is made if it is not there.
func addKeyFile(ctx context.Context, b blob.Store, by store.Opener, k httpapi.NewKey) (store.Wrapping, error) {
	key, err := store.LoadKeyFile(k.KeyFile)
	made := err != nil && fault.KindOf(err) == fault.NotFound
	if made {
		key, err = store.NewKeyFile(k.KeyFile)
	}
	if err != nil {
		return store.Wrapping{}, unusable("use key file", k.KeyFile, err)
	}
	w, err := store.AddKey(ctx, b, by, key, k.Label)
	if err != nil && made {
		err = errors.Join(err, os.Remove(k.KeyFile))
	}
	return w, err
}

// RemoveKey implements httpapi.Core.
func (a *Appliance) RemoveKey(ctx context.Context, id, key string) error {
	return a.withKey(ctx, id, func(_ catalog.Repository, b blob.Store, by store.Key) error {
		return store.RemoveWrapping(ctx, b, by, key)
	})
}

// RotateKey implements httpapi.Core.
func (a *Appliance) RotateKey(ctx context.Context, id string) (info httpapi.KeyInfo, err error) {
	err = a.withKey(ctx, id, func(row catalog.Repository, b blob.Store, _ store.Key) error {
		if !filepath.IsAbs(row.KeyFile) {
			return fault.New(fault.Conflict, "rotate key of repository", row.Name, "its key comes from %s", row.KeyFile).Explain(
				"The appliance is given this key from outside and cannot change it there.",
				"Add a key file, attach the repository with it instead, then remove the old key.")
		}
		if _, err := store.NewKeyFile(rotated(row.KeyFile)); err != nil && fault.KindOf(err) != fault.Exists {
			return err
		}
		if err := a.pushRotated(ctx, row); err != nil {
			return errors.Join(err, os.Remove(rotated(row.KeyFile)))
		}
		// From here on it is completed, now or when the repository is opened next.
		if err := settleRotation(context.WithoutCancel(ctx), b, row.KeyFile); err != nil {
			return err
		}
		if err := a.rotationDone(context.WithoutCancel(ctx), row); err != nil {
			return err
		}
		list, err := store.Wrappings(ctx, b)
		for _, w := range list {
			if k := a.keyInfo(ctx, row, w); k.InUse {
				info = k
			}
		}
		return err
	})
	return info, err
}

// rotated is where a new key lies until it has taken the place of the old one.
func rotated(keyFile string) string { return keyFile + ".new" }

// settleRotation completes a rotation that was begun, if there is one: the new key opens the repository, then the old
// one does so no more, then the new file takes the place of the old one. Each step can be repeated.
func settleRotation(ctx context.Context, b blob.Store, keyFile string) error {
	fresh := rotated(keyFile)
	raw, err := os.ReadFile(fresh)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	defer clear(raw)
	if err != nil {
		return fault.Context("read new key file", fresh, err)
	}
	key, err := store.LoadKeyFile(fresh)
	if err != nil {
		return err
	}
	old, err := store.LoadKeyFile(keyFile)
	if err != nil {
		return err
	}
	if old != key {
		if err := store.RotateKey(ctx, b, old, key); err != nil {
			return err
		}
		if err := durable.Replace(keyFile, raw, 0o400); err != nil {
			return fault.Context("replace key file", keyFile, err)
		}
	}
	if err := os.Remove(fresh); err != nil {
		return fault.Context("remove", fresh, err)
	}
	return nil
}

// DrillKey implements httpapi.Core.
func (a *Appliance) DrillKey(ctx context.Context, id string, k httpapi.GivenKey) (info httpapi.DrillInfo, err error) {
	err = a.onBackend(ctx, id, func(row catalog.Repository, b blob.Store) error {
		by, err := openerOf(ctx, k)
		if err != nil {
			return err
		}
		report, err := store.Drill(ctx, b, by)
		if err != nil {
			return err
		}
		info = httpapi.DrillInfo{DrillReport: report, RepositoryID: row.ID, InUse: a.keyInfo(ctx, row, report.Wrapping).InUse}
		if point, err := a.catalog.RestorePoint(ctx, report.RestorePoint); err == nil {
			info.VMName = point.VMName
		}
		return nil
	})
	return info, err
}

func openerOf(ctx context.Context, k httpapi.GivenKey) (store.Opener, error) {
	switch {
	case k.Paper != "":
		return store.ParsePaperKey(string(k.Paper))
	case k.Identity != "":
		return store.ParseIdentity(string(k.Identity))
	case k.Key != "":
		return store.ParseKey(string(k.Key))
	}
	key, err := store.LoadKey(ctx, k.Source)
	if err != nil {
		return nil, unusableKey(err)
	}
	return key, nil
}
