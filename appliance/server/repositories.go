package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/durable"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// repositories keeps repositories open.
type repositories struct {
	adding sync.Mutex // one is added at a time: who undoes must not undo another's

	mu     sync.Mutex
	open   map[string]*openRepository
	closed bool
}

// openRepository is opened once; who comes meanwhile waits.
type openRepository struct {
	mu   sync.Mutex
	repo *store.Repository
}

func (r *repositories) entry(id string) (*openRepository, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fault.New(fault.Canceled, "open repository", id, "the manager is stopping")
	}
	if r.open[id] == nil {
		r.open[id] = &openRepository{}
	}
	return r.open[id], nil
}

// drop closes one repository.
func (r *repositories) drop(id string) error {
	r.mu.Lock()
	entry := r.open[id]
	delete(r.open, id)
	r.mu.Unlock()
	if entry == nil {
		return nil
	}
	entry.mu.Lock()
	defer entry.mu.Unlock()
	if entry.repo == nil {
		return nil
	}
	return entry.repo.Close()
}

func (r *repositories) close() error {
	r.mu.Lock()
	r.closed = true
	var ids []string
	for id := range r.open {
		ids = append(ids, id)
	}
	r.mu.Unlock()
	var errs []error
	for _, id := range ids {
		errs = append(errs, r.drop(id))
	}
	return errors.Join(errs...)
}

// repository returns an open repository. One that could not be opened is tried again each time, so that a directory
// that was mounted late is found.
func (a *Appliance) repository(ctx context.Context, id string) (*store.Repository, error) {
	entry, err := a.repositories.entry(id)
	if err != nil {
		return nil, err
	}
	entry.mu.Lock()
	defer entry.mu.Unlock()
	if entry.repo != nil {
		return entry.repo, nil
	}
	row, err := a.catalog.Repository(ctx, id)
	if err != nil {
		return nil, err
	}
	repo, err := a.openStore(ctx, row)
	a.noteRepository(ctx, row, err)
	if err != nil {
		return nil, fault.Wrap(absentKind(err), "open repository", row.Name, err)
	}
	entry.repo = repo
	return repo, nil
}

// absentKind is the kind of an error about something the appliance itself needs. When that is not there, a client must
// not be told NotFound, which would be about what its request names; it may come back (a file system not mounted yet).
func absentKind(err error) fault.Kind {
	if kind := fault.KindOf(err); kind != fault.NotFound {
		return kind
	}
	return fault.Transient
}

func (a *Appliance) openStore(ctx context.Context, row catalog.Repository) (*store.Repository, error) {
	key, err := store.LoadKeyFile(row.KeyFile)
	if err != nil {
		return nil, err
	}
	backend, err := file.Open(row.Path)
	if err != nil {
		return nil, err
	}
	repo, err := store.Open(ctx, backend, key, store.Options{IndexDir: a.path("index", row.ID), Log: a.log})
	if err != nil {
		return nil, err
	}
	if row.StoreID != "" && repo.ID() != row.StoreID {
		return nil, errors.Join(fault.New(fault.Conflict, "open directory", row.Path, "another repository is there").Explain(
			"The directory holds a repository, but not the one that was attached here.",
			"Look whether another file system is mounted there."), repo.Close())
	}
	return repo, nil
}

// noteRepository keeps whether a repository could be opened.
func (a *Appliance) noteRepository(ctx context.Context, row catalog.Repository, err error) {
	_, storeErr := a.catalog.UpdateRepository(context.WithoutCancel(ctx), row.ID, func(r *catalog.Repository) {
		now := time.Now().UTC()
		r.LastChecked, r.LastError, r.Status = &now, catalog.FailureOf(err), catalog.HealthOK
		if err != nil {
			r.Status = catalog.HealthProblem
		}
	})
	if storeErr != nil {
		a.log.WarnContext(ctx, "state of repository was not stored", "repository", row.Name, "err", storeErr)
	}
}

// openRepositories opens all repositories and makes the catalog agree with them. One that cannot be opened does not
// keep the manager from starting.
func (a *Appliance) openRepositories(ctx context.Context) error {
	list, err := a.catalog.Repositories(ctx, catalog.Page{Limit: catalog.MaxLimit})
	if err != nil {
		return err
	}
	for _, row := range list.Items {
		added, removed, err := a.protector.Reconcile(ctx, row.ID)
		if err != nil {
			a.log.ErrorContext(ctx, "repository cannot be read", "repository", row.Name, "err", err)
		}
		if added+removed > 0 {
			a.log.InfoContext(ctx, "catalog brought up to date", "repository", row.Name, "added", added, "removed", removed)
		}
	}
	return nil
}

// ListRepositories implements httpapi.Core.
func (a *Appliance) ListRepositories(ctx context.Context, p catalog.Page) (catalog.List[httpapi.RepositoryInfo], error) {
	list, err := a.catalog.Repositories(ctx, p)
	out := catalog.List[httpapi.RepositoryInfo]{Next: list.Next}
	for _, row := range list.Items {
		out.Items = append(out.Items, a.repositoryInfo(ctx, row))
	}
	return out, err
}

// GetRepository implements httpapi.Core.
func (a *Appliance) GetRepository(ctx context.Context, id string) (httpapi.RepositoryInfo, error) {
	row, err := a.catalog.Repository(ctx, id)
	if err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	return a.repositoryInfo(ctx, row), nil
}

func (a *Appliance) repositoryInfo(ctx context.Context, row catalog.Repository) httpapi.RepositoryInfo {
	info := httpapi.RepositoryInfo{Repository: row}
	repo, err := a.repository(ctx, row.ID)
	if err == nil {
		err = stillThere(ctx, row, repo.ID())
	}
	if err == nil {
		var u store.Usage
		if u, err = repo.Usage(ctx); err == nil {
			info.Usage = &httpapi.Usage{
				RestorePoints: u.RestorePoints, Packs: u.Packs, LogicalBytes: u.LogicalBytes, StoredBytes: u.StoredBytes,
				FreeBytes: freeBytes(row.Path),
			}
		}
	}
	if err != nil {
		info.Status, info.LastError = catalog.HealthProblem, catalog.FailureOf(err)
	} else {
		info.Status, info.LastError = catalog.HealthOK, nil
	}
	return info
}

// stillThere looks whether what was opened still lies in its directory, and its key file in its place: what is open
// would not notice that a disk was unmounted or a file removed under it.
func stillThere(ctx context.Context, row catalog.Repository, openID string) (err error) {
	key, err := store.LoadKeyFile(row.KeyFile)
	if err != nil {
		return fault.Wrap(absentKind(err), "check key of repository", row.Name, err)
	}
	backend, err := file.Open(row.Path)
	if err != nil {
		return fault.Wrap(absentKind(err), "check repository", row.Name, err)
	}
	defer func() { err = errors.Join(err, backend.Close()) }()
	id, err := store.Identify(ctx, backend, key)
	switch {
	case id != "" && id != openID:
		return fault.New(fault.Transient, "check repository", row.Name, "another repository is in %s", row.Path).Explain(
			"The directory holds a repository, but not the one that was attached here.",
			"Look whether another file system is mounted there; bring the right one back.")
	case err != nil && fault.KindOf(err) == fault.NotFound:
		return fault.New(fault.Transient, "check repository", row.Name, "no repository is in %s any more", row.Path).Explain(
			"The directory is there, but what was in it is not.",
			"Look whether the file system of the repository is still mounted there, and mount it again.")
	case err != nil && fault.KindOf(err) == fault.Denied:
		return fault.New(fault.Denied, "check key of repository", row.Name, "the key in %s does not open it", row.KeyFile).Explain(
			"The key file was changed since the repository was opened. Without the right one it cannot be opened again, and none of its backups be read.",
			"Put the key file back from the copy that was kept elsewhere, before the appliance is started again.")
	}
	return err
}

func freeBytes(path string) int64 {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return 0
	}
	return int64(s.Bavail) * s.Bsize
}

// AddRepository implements httpapi.Core.
func (a *Appliance) AddRepository(ctx context.Context, n httpapi.NewRepository) (httpapi.RepositoryInfo, error) {
	path := filepath.Clean(n.Path)
	if !filepath.IsAbs(path) {
		return httpapi.RepositoryInfo{}, fault.New(fault.Invalid, "add repository", n.Name, "%q is not an absolute path", n.Path).Explain(
			"A repository lies in a directory of the machine the appliance runs on.", "Give its whole path, beginning with a slash.")
	}
	a.repositories.adding.Lock()
	defer a.repositories.adding.Unlock()
	if _, err := a.catalog.RepositoryByName(ctx, n.Name); err == nil {
		return httpapi.RepositoryInfo{}, fault.New(fault.Exists, "add repository", n.Name, "there is one of that name").Explain(
			"Another repository of this appliance has the name.", "Choose another name.")
	}
	row := catalog.Repository{ID: catalog.NewID(catalog.PrefixRepository), Name: n.Name, Kind: catalog.KindDirectory, Path: path}
	row.KeyFile = a.path("keys", row.ID+".key")
	var err error
	if n.Attach {
		err = a.attach(ctx, &row, n.KeyFile)
	} else {
		err = a.create(ctx, &row)
	}
	if err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	if err := a.catalog.CreateRepository(ctx, &row); err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	if _, _, err := a.protector.Reconcile(ctx, row.ID); err != nil {
		a.log.WarnContext(ctx, "restore points were not read", "repository", row.Name, "err", err)
	}
	return a.GetRepository(ctx, row.ID)
}

// create makes a repository with a key of its own. On an error nothing of it is left.
func (a *Appliance) create(ctx context.Context, row *catalog.Repository) error {
	entries, err := os.ReadDir(row.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unusable("create repository in", row.Path, err)
	}
	fresh := err != nil
	if len(entries) > 0 {
		return fault.New(fault.Exists, "create repository in", row.Path, "the directory is not empty").Explain(
			"A new repository needs an empty directory.", "Choose another one, or attach the repository that is there.")
	}
	key, err := store.NewKeyFile(row.KeyFile)
	if err != nil {
		return err
	}
	undo := func(err error) error {
		errs := []error{err, os.Remove(row.KeyFile)}
		if fresh {
			errs = append(errs, os.RemoveAll(row.Path))
		}
		return errors.Join(errs...)
	}
	backend, err := file.Create(row.Path)
	if err != nil {
		return undo(unusable("create repository in", row.Path, err))
	}
	if err := store.Create(ctx, backend, key, store.CreateOptions{Name: row.Name}); err != nil {
		return undo(err)
	}
	if err := a.adopt(ctx, row); err != nil {
		return undo(err)
	}
	return nil
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

// adopt opens a repository that has its key in place and reads its identity.
func (a *Appliance) adopt(ctx context.Context, row *catalog.Repository) error {
	repo, err := a.openStore(ctx, *row)
	if err != nil {
		return err
	}
	row.StoreID, row.Status = repo.ID(), catalog.HealthOK
	return repo.Close()
}

// attach finds the key of a repository and keeps a copy. Without a key file the keys that were kept are tried.
func (a *Appliance) attach(ctx context.Context, row *catalog.Repository, keyFile string) error {
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
		if err = a.attachWith(ctx, row, candidate); err == nil || fault.KindOf(err) != fault.Denied {
			return err
		}
	}
	return err
}

func (a *Appliance) attachWith(ctx context.Context, row *catalog.Repository, keyFile string) error {
	raw, err := os.ReadFile(keyFile)
	if err != nil {
		return unusable("read key file", keyFile, err)
	}
	if err := durable.Create(row.KeyFile, raw, 0o400); err != nil {
		return fault.Context("keep key file", row.KeyFile, err)
	}
	if err := a.adopt(ctx, row); err != nil {
		if fault.KindOf(err) == fault.NotFound {
			err = unusable("attach repository", row.Path, err)
		}
		return errors.Join(err, os.Remove(row.KeyFile))
	}
	return nil
}

// DetachRepository implements httpapi.Core.
func (a *Appliance) DetachRepository(ctx context.Context, id string) error {
	if err := a.catalog.DeleteRepository(ctx, id); err != nil {
		return err
	}
	if err := a.repositories.drop(id); err != nil {
		a.log.WarnContext(ctx, "repository was not closed", "repository", id, "err", err)
	}
	if err := os.RemoveAll(a.path("index", id)); err != nil {
		a.log.WarnContext(ctx, "index of repository was not removed", "repository", id, "err", err)
	}
	return nil
}
