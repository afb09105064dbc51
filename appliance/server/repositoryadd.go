package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/durable"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// AddRepository implements httpapi.Core.
func (a *Appliance) AddRepository(ctx context.Context, n httpapi.NewRepository) (httpapi.RepositoryInfo, error) {
	row := catalog.Repository{ID: catalog.NewID(catalog.PrefixRepository), Name: n.Name, Compression: n.Compression}
	if err := placeRow(&row, n); err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	a.repositories.adding.Lock()
	defer a.repositories.adding.Unlock()
	if _, err := a.catalog.RepositoryByName(ctx, n.Name); err == nil {
		return httpapi.RepositoryInfo{}, fault.New(fault.Exists, "add repository", n.Name, "there is one of that name").Explain(
			"Another repository of this appliance has the name.", "Choose another name.")
	}
	row.KeyFile = a.path("keys", row.ID+".key")
	if n.KeySource != "" {
		row.KeyFile = strings.TrimPrefix(n.KeySource, "file:")
	}
	var err error
	switch {
	case n.Attach:
		err = a.attach(ctx, &row, n)
	default:
		err = a.create(ctx, &row, n)
	}
	if err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	if err := a.catalog.CreateRepository(ctx, &row); err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	if a.peers != nil {
		if err := a.peers.Made(ctx, row.ID); err != nil {
			a.log.WarnContext(ctx, "repository was not taken over; it will be tried again", "repository", row.Name, "err", err)
		}
	}
	if _, _, err := a.protector.Reconcile(ctx, row.ID); err != nil {
		a.log.WarnContext(ctx, "restore points were not read", "repository", row.Name, "err", err)
	}
	return a.GetRepository(ctx, row.ID)
}

// placeRow says in a row where a repository lies.
func placeRow(row *catalog.Repository, n httpapi.NewRepository) error {
	row.Kind, row.Path = catalog.KindDirectory, filepath.Clean(n.Path)
	paths := []*string{&row.Path}
	if n.Set != nil {
		row.Kind, row.Members, paths = catalog.KindSet, rowMembers(n.Set.Members), nil
		for i := range row.Members {
			paths = append(paths, &row.Members[i].Path)
		}
		row.Path = row.Members[0].Path
	}
	for _, path := range paths {
		if !filepath.IsAbs(*path) {
			return fault.New(fault.Invalid, "add repository", n.Name, "%q is not an absolute path", *path).Explain(
				"A repository lies in a directory of the machine the appliance runs on.", "Give its whole path, beginning with a slash.")
		}
	}
	return nil
}

// create makes a repository, with a key of its own unless one was named. On an error nothing of it is left.
func (a *Appliance) create(ctx context.Context, row *catalog.Repository, n httpapi.NewRepository) error {
	options := store.CreateOptions{Name: row.Name}
	if n.DomainOf != "" {
		domain, err := a.repository(ctx, n.DomainOf)
		if err != nil {
			return unusableKey(fault.Context("share identities with repository", n.DomainOf, err))
		}
		options.Domain = domain
	}
	undoPlace, err := notInUse(*row)
	if err != nil {
		return err
	}
	key, undoKey, err := a.keyForNew(ctx, row, n)
	if err != nil {
		return err
	}
	undo := func(err error) error { return errors.Join(err, undoKey(), undoPlace()) }
	backend, err := makeBackend(ctx, row, n)
	if err != nil {
		return undo(err)
	}
	err = store.Create(ctx, backend, key, options)
	if err = errors.Join(err, backend.Close()); err != nil {
		return undo(err)
	}
	if err := a.adopt(ctx, row, nil); err != nil {
		return undo(err)
	}
	return nil
}

func (a *Appliance) keyForNew(ctx context.Context, row *catalog.Repository, n httpapi.NewRepository) (store.Key, func() error, error) {
	if n.KeySource != "" {
		key, err := store.LoadKey(ctx, row.KeyFile)
		if err != nil {
			return key, nil, unusableKey(err)
		}
		return key, func() error { return nil }, nil
	}
	key, err := store.NewKeyFile(row.KeyFile)
	return key, func() error { return os.Remove(row.KeyFile) }, err
}

// unusableKey says that a request names a key, or what has one, that is not there.
func unusableKey(err error) error {
	kind := fault.KindOf(err)
	if kind == fault.NotFound || kind == fault.Denied || kind == fault.Internal && !errors.Is(err, syscall.EIO) {
		return fault.Wrap(fault.Invalid, "", "", err)
	}
	return err
}

// notInUse refuses places where something is, and returns how to make them again what they are now.
func notInUse(row catalog.Repository) (undo func() error, err error) {
	paths := []string{row.Path}
	if row.Kind == catalog.KindSet {
		paths = nil
		for _, m := range row.Members {
			paths = append(paths, m.Path)
		}
	}
	fresh := map[string]bool{}
	for _, path := range paths {
		entries, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, unusable("create repository in", path, err)
		}
		fresh[path] = err != nil
		if len(entries) > 0 {
			return nil, fault.New(fault.Exists, "create repository in", path, "the directory is not empty").Explain(
				"A new repository needs an empty directory.", "Choose another one, or attach the repository that is there.")
		}
	}
	return func() error {
		var errs []error
		for path, fresh := range fresh {
			if fresh {
				errs = append(errs, os.RemoveAll(path))
				continue
			}
			entries, err := os.ReadDir(path)
			errs = append(errs, err)
			for _, e := range entries {
				errs = append(errs, os.RemoveAll(filepath.Join(path, e.Name())))
			}
		}
		return errors.Join(errs...)
	}, nil
}

func makeBackend(ctx context.Context, row *catalog.Repository, n httpapi.NewRepository) (blob.Store, error) {
	if n.Set != nil {
		return makeSet(ctx, row, *n.Set)
	}
	backend, err := file.Create(row.Path)
	if err != nil {
		return nil, unusable("create repository in", row.Path, err)
	}
	return backend, nil
}

// unusable says that a request names a place that cannot be used. What may pass by itself and what the disk did keep
// their kinds.
func unusable(op, path string, err error) error {
	kind := fault.KindOf(err)
	if kind == fault.NotFound || kind == fault.Denied || (kind == fault.Internal && !errors.Is(err, syscall.EIO)) {
		kind = fault.Invalid
	}
	return fault.Wrap(kind, op, path, err).Explain(
		"This place on the machine the appliance runs on cannot be used.",
		"Look at the message for what is wrong with it, and name a place that the appliance may read and write.")
}

// adopt opens a repository that has its key in place and reads its identity, and of a set who its members are and how
// far it has come. What the members of trust have counts as all there is.
func (a *Appliance) adopt(ctx context.Context, row *catalog.Repository, trust []string) (err error) {
	o, err := a.openStore(ctx, *row, trust...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	row.StoreID, row.Status = o.repo.ID(), catalog.HealthOK
	if o.set != nil {
		row.Generation = catalog.Generation(o.set.Generation())
		return nameMembers(ctx, row, o.set)
	}
	return nil
}

// attach opens a repository that is there. A word about members of its set is in the audit log first.
func (a *Appliance) attach(ctx context.Context, row *catalog.Repository, n httpapi.NewRepository) error {
	var trust []string
	if n.Set != nil {
		trust = n.Set.Trust
	}
	find := func() error {
		if n.KeySource != "" {
			return a.attachAs(ctx, row, trust)
		}
		return a.attachByFile(ctx, row, n.KeyFile, trust)
	}
	if len(trust) == 0 {
		return find()
	}
	return a.audited(ctx, trustEntry(n.By, row.Name, trust), find)
}

// attachAs attaches with a key that stays where it is.
func (a *Appliance) attachAs(ctx context.Context, row *catalog.Repository, trust []string) error {
	if _, err := store.LoadKey(ctx, row.KeyFile); err != nil {
		return unusableKey(err)
	}
	err := a.adopt(ctx, row, trust)
	if err != nil && fault.KindOf(err) == fault.NotFound {
		err = unusable("attach repository", row.Path, err)
	}
	return err
}

// attachByFile finds the key of a repository and keeps a copy. Without a key file the keys that were kept are tried.
func (a *Appliance) attachByFile(ctx context.Context, row *catalog.Repository, keyFile string, trust []string) error {
	candidates := []string{keyFile}
	if keyFile == "" {
		var err error
		if candidates, err = filepath.Glob(a.path("keys", catalog.PrefixRepository+"_*.key")); err != nil {
			return fault.Context("look for keys", row.Name, err)
		}
	}
	err := error(fault.New(fault.Denied, "attach repository", row.Path, "no key for it is kept here").Explain(
		"Without its key a repository cannot be read.", "Name the key file."))
	for _, candidate := range candidates {
		if err = a.attachWith(ctx, row, candidate, trust); err == nil || fault.KindOf(err) != fault.Denied {
			return err
		}
	}
	return err
}

func (a *Appliance) attachWith(ctx context.Context, row *catalog.Repository, keyFile string, trust []string) error {
	raw, err := os.ReadFile(keyFile)
	if err != nil {
		return unusable("read key file", keyFile, err)
	}
	if err := durable.Create(row.KeyFile, raw, 0o400); err != nil {
		return fault.Context("keep key file", row.KeyFile, err)
	}
	if err := a.adopt(ctx, row, trust); err != nil {
		if fault.KindOf(err) == fault.NotFound {
			err = unusable("attach repository", row.Path, err)
		}
		return errors.Join(err, os.Remove(row.KeyFile))
	}
	return nil
}
