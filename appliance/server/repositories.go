package server

import (
	"cmp"
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/erasure"
)

// repositories keeps repositories open.
type repositories struct {
	adding sync.Mutex // one is added at a time: who undoes must not undo another's
	keys   sync.Mutex // one change of keys at a time

	mu     sync.Mutex
	open   map[string]*openRepository
	closed bool
}

// openRepository is opened once; who comes meanwhile waits.
type openRepository struct {
	mu sync.Mutex
	opened
	before  []opened // for reading only, until it could be written to again: restores may be running on them
	dropped bool     // it was closed, and who waited for it has to look for another
}

// opened is a repository with what it lies on.
type opened struct {
	repo       *store.Repository
	backend    blob.Store
	set        *erasure.Store // backend, if that is a set
	unwritable error          // why it is open for reading only; nil: it is not
}

func (o opened) close() error { return errors.Join(o.repo.Close(), o.backend.Close()) }

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

// hold returns the entry of a repository, locked.
func (r *repositories) hold(id string) (*openRepository, error) {
	for {
		entry, err := r.entry(id)
		if err != nil || entry.lock() {
			return entry, err
		}
	}
}

// lock locks an entry; false, it was dropped since it was looked up.
func (e *openRepository) lock() bool {
	e.mu.Lock()
	if e.dropped {
		e.mu.Unlock()
		return false
	}
	return true
}

// drop closes one repository. Its entry stays until that is done, so that who opens it meanwhile waits, and never meets one that is closing.
func (r *repositories) drop(id string) error {
	r.mu.Lock()
	entry := r.open[id]
	r.mu.Unlock()
	if entry == nil || !entry.lock() {
		return nil
	}
	defer entry.mu.Unlock()
	defer r.forget(id)
	entry.dropped = true
	var errs []error
	for _, o := range append(entry.before, entry.opened) {
		if o.repo != nil {
			errs = append(errs, o.close())
		}
	}
	return errors.Join(errs...)
}

// forget takes an entry that is closed out of the table.
func (r *repositories) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, id)
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

// repository returns an open repository. One that could not be opened, or for reading only, is tried again each time, so
// that a directory that was mounted late, or for writing again, is found.
func (a *Appliance) repository(ctx context.Context, id string) (*store.Repository, error) {
	o, err := a.opened(ctx, id)
	return o.repo, err
}

// holdOwn returns the entry of a repository that this manager works with, locked.
func (a *Appliance) holdOwn(ctx context.Context, id string) (*openRepository, error) {
	if err := a.mayOpen(ctx, id); err != nil {
		return nil, err
	}
	entry, err := a.repositories.hold(id)
	if err != nil {
		return nil, err
	}
	if err := a.mayOpen(ctx, id); err != nil { // it was given to another manager while this waited
		entry.mu.Unlock()
		return nil, err
	}
	return entry, nil
}

func (a *Appliance) opened(ctx context.Context, id string) (opened, error) {
	entry, err := a.holdOwn(ctx, id)
	if err != nil {
		return opened{}, err
	}
	defer entry.mu.Unlock()
	if entry.repo != nil && entry.unwritable == nil {
		return entry.opened, nil
	}
	row, err := a.catalog.Repository(ctx, id)
	if err != nil {
		return opened{}, err
	}
	if entry.repo != nil && unix.Access(row.Path, unix.W_OK) != nil {
		return entry.opened, nil
	}
	o, err := a.openStore(ctx, row)
	a.noteRepository(ctx, row, cmp.Or(err, o.unwritable))
	if err != nil {
		return opened{}, fault.Wrap(absentKind(err), "open repository", row.Name, err)
	}
	a.forgetSuspended(ctx, o.repo)
	if entry.repo != nil {
		entry.before = append(entry.before, entry.opened)
	}
	entry.opened = o
	return o, nil
}

// forgetSuspended gives up the sessions of an earlier process whose tasks do not go on.
func (a *Appliance) forgetSuspended(ctx context.Context, repo *store.Repository) {
	for _, s := range repo.Suspended() {
		task, err := a.catalog.Task(ctx, s.Writer)
		if err == nil && task.State == catalog.Running {
			_, err = a.catalog.Kept(ctx, s.Writer)
		} else if err == nil {
			err = fault.New(fault.NotFound, "take up task", s.Writer, "it has ended")
		}
		if fault.KindOf(err) != fault.NotFound {
			continue
		}
		if err := repo.Forget(ctx, s.ID); err != nil {
			a.log.WarnContext(ctx, "session was not forgotten", "session", s.ID, "err", err)
		}
	}
}

// absentKind is the kind of an error about something the appliance itself needs. When that is not there, a client must
// not be told NotFound, which would be about what its request names; it may come back (a file system not mounted yet).
func absentKind(err error) fault.Kind {
	if kind := fault.KindOf(err); kind != fault.NotFound {
		return kind
	}
	return fault.Transient
}

// openStore opens a repository; of a set, what the members of trust have counts as all there is.
func (a *Appliance) openStore(ctx context.Context, row catalog.Repository, trust ...string) (o opened, err error) {
	if o.backend, o.set, err = a.openBackend(ctx, row, trust...); err != nil {
		return opened{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.backend.Close())
			o = opened{}
		}
	}()
	row.KeyFile = a.keyFile(row)
	if err := a.pullKey(ctx, row); err != nil {
		return o, err
	}
	if err := settleRotation(ctx, o.backend, row.KeyFile); err != nil {
		return o, err
	}
	o.repo, err = a.openRepo(ctx, row, o.backend, false)
	if errors.Is(err, unix.EROFS) && o.set == nil {
		// What is there can be restored all the same, when it is needed most.
		o.unwritable = err
		o.repo, err = a.openRepo(ctx, row, o.backend, true)
	}
	if err != nil {
		return o, err
	}
	if err := a.rotationDone(ctx, row); err != nil {
		return o, errors.Join(err, o.repo.Close())
	}
	if row.StoreID != "" && o.repo.ID() != row.StoreID {
		return o, errors.Join(fault.New(fault.Conflict, "open directory", row.Path, "another repository is there").Explain(
			"The directory holds a repository, but not the one that was attached here.",
			"Look whether another file system is mounted there."), o.repo.Close())
	}
	return o, nil
}

// openRepo opens a repository with its key; where managers share keys, with the one that another has put in its place.
func (a *Appliance) openRepo(ctx context.Context, row catalog.Repository, b blob.Store, readOnly bool) (*store.Repository, error) {
	for again := false; ; again = true {
		key, err := store.LoadKey(ctx, row.KeyFile)
		if err != nil {
			return nil, err
		}
		if err := a.stillThis(ctx, b, key); err != nil {
			return nil, err
		}
		repo, err := store.Open(ctx, b, key, store.Options{IndexDir: a.path("index", row.ID), Log: a.log, Compression: row.Compression, ReadOnly: readOnly})
		if err == nil || again || fault.KindOf(err) != fault.Denied {
			return repo, err
		}
		if other, keyErr := a.takeSharedKey(ctx, row); !other {
			return nil, errors.Join(err, keyErr)
		}
	}
}

// openBackend opens what a repository lies on; it takes no lock.
func (a *Appliance) openBackend(ctx context.Context, row catalog.Repository, trust ...string) (blob.Store, *erasure.Store, error) {
	if row.Kind == catalog.KindSet {
		set, err := a.openSet(ctx, row, trust)
		if err != nil {
			return nil, nil, err
		}
		return set, set, nil
	}
	backend, err := file.Open(row.Path)
	if err != nil {
		return nil, nil, err
	}
	return backend, nil, nil
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
	list, err := a.catalog.AllRepositories(ctx)
	if err != nil {
		return err
	}
	for _, row := range list {
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

// DetachRepository implements httpapi.Core.
func (a *Appliance) DetachRepository(ctx context.Context, id string) (name string, err error) {
	row, err := a.catalog.Repository(ctx, id)
	if err == nil {
		err = a.mayOpen(ctx, id)
	}
	if err == nil {
		err = a.protector.Healing(ctx, id)
	}
	if err == nil {
		err = a.catalog.DeleteRepository(ctx, id)
	}
	if err != nil {
		return "", err
	}
	if err := a.repositories.drop(id); err != nil {
		a.log.WarnContext(ctx, "repository was not closed", "repository", id, "err", err)
	}
	if err := os.RemoveAll(a.path("index", id)); err != nil {
		a.log.WarnContext(ctx, "index of repository was not removed", "repository", id, "err", err)
	}
	return row.Name, nil
}
