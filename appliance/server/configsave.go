package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
)

const (
	// saveAfter is how long after a change the configuration is saved: so that what belongs together is one version.
	saveAfter = 5 * time.Second
	// saveLook is how often it is looked whether there is something to save although nobody has told: changes of other managers, a
	// repository that could not be written to.
	saveLook = time.Minute
)

// savedVersions are the versions that are kept of an appliance's configuration in each repository.
var savedVersions = policy.Retention{Last: 5, Daily: 10}

// saver is what saves the configuration.
type saver struct {
	after   time.Duration
	mu      sync.Mutex  // one save at a time
	pending atomic.Bool // there was a change, and no save after it has succeeded
}

// keepConfigurationSaved saves the configuration into every repository of this manager soon after each change, until ctx ends. What
// was changed and not saved before a crash is saved at the next start: the versions in the repositories say what they are of.
func (a *Appliance) keepConfigurationSaved(ctx context.Context) {
	look := time.NewTicker(saveLook)
	defer look.Stop()
	for {
		a.saver.pending.Store(false)
		if err := a.saveConfiguration(ctx); err != nil {
			a.saver.pending.Store(true)
			if ctx.Err() == nil {
				a.log.WarnContext(ctx, "configuration was not saved; it will be tried again", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		case <-a.catalog.Configured():
			a.saver.pending.Store(true)
			settle := time.NewTimer(a.saver.after)
			select {
			case <-ctx.Done():
			case <-settle.C:
			}
			settle.Stop()
		}
	}
}

// saveRest saves what was changed just before the end.
func (a *Appliance) saveRest(ctx context.Context) {
	select {
	case <-a.catalog.Configured():
		a.saver.pending.Store(true)
	default:
	}
	if a.saver.after < 0 || !a.saver.pending.Load() {
		return
	}
	if err := a.saveConfiguration(ctx); err != nil {
		a.log.WarnContext(ctx, "configuration was not saved; it will be, at the next start", "err", err)
	}
}

// saveConfiguration saves the configuration into the repositories of this manager in which it is not yet. One that cannot be written
// to keeps nobody from anything: its row says so.
func (a *Appliance) saveConfiguration(ctx context.Context) error {
	a.saver.mu.Lock()
	defer a.saver.mu.Unlock()
	who, err := a.catalog.Standing(ctx)
	if err != nil || who.SupersededAt != nil {
		return err
	}
	d, err := a.document(ctx, who)
	if err != nil {
		return err
	}
	var text []byte
	var errs []error
	for _, row := range d.Configuration.Repositories {
		if a.mayOpen(ctx, row.ID) != nil {
			continue
		}
		if text == nil {
			if text, err = d.encode(); err != nil {
				return err
			}
		}
		if err := a.saveInto(ctx, row.ID, who, d, text); err != nil {
			errs = append(errs, fault.Context("save configuration in repository", row.Name, err))
		}
	}
	return errors.Join(errs...)
}

// saveInto saves a configuration in one repository, and keeps how that went in its row.
func (a *Appliance) saveInto(ctx context.Context, id string, who catalog.Standing, d document, text []byte) error {
	row, err := a.catalog.Repository(ctx, id)
	if err != nil {
		return err
	}
	was := catalog.ConfigurationSave{}
	if row.Saved != nil {
		was = *row.Saved
	}
	is := was
	at, err := a.saveVersion(ctx, id, who, d, text)
	if err == nil {
		is = catalog.ConfigurationSave{SavedAt: &at, Digest: d.Digest}
	} else {
		is.Pending, is.Error = true, catalog.FailureOf(err)
	}
	if ctx.Err() != nil || same(was, is) {
		return err
	}
	_, noteErr := a.catalog.UpdateRepository(context.WithoutCancel(ctx), id, func(r *catalog.Repository) { r.Saved = &is })
	return errors.Join(err, noteErr)
}

func same(a, b catalog.ConfigurationSave) bool {
	sameTime := a.SavedAt == b.SavedAt || a.SavedAt != nil && b.SavedAt != nil && a.SavedAt.Equal(*b.SavedAt)
	return sameTime && a.Digest == b.Digest && a.Pending == b.Pending && fmt.Sprint(a.Error) == fmt.Sprint(b.Error)
}

// saveVersion makes the newest version in a repository one of this configuration, and says when that was written.
func (a *Appliance) saveVersion(ctx context.Context, id string, who catalog.Standing, d document, text []byte) (time.Time, error) {
	repo, err := a.repository(ctx, id)
	if err != nil {
		return time.Time{}, err
	}
	newest, at, err := newestOf(ctx, repo.Saves(), d.Appliance)
	if err != nil {
		return time.Time{}, err
	}
	if err := a.checkSuperseded(ctx, who, newest); err != nil {
		return time.Time{}, err
	}
	if newest.Digest == d.Digest {
		return at, nil
	}
	v, err := repo.Save(ctx, d.Appliance, text)
	if err != nil {
		return time.Time{}, err
	}
	return v.Time, a.dropVersions(ctx, repo, d.Appliance)
}

// dropVersions takes away the older versions that retention lets go. Versions of other appliances are theirs.
func (a *Appliance) dropVersions(ctx context.Context, repo *store.Repository, appliance string) error {
	saves := repo.Saves()
	versions, err := saves.Versions(ctx, saves.OwnerHash(appliance))
	if err != nil {
		return err
	}
	var points []policy.Point
	for _, v := range versions {
		points = append(points, policy.Point{ID: v.Name, Time: v.Time})
	}
	var gone []store.SavedVersion
	for _, verdict := range savedVersions.Apply(points, time.UTC) {
		if !verdict.Keep() {
			i := slices.IndexFunc(versions, func(v store.SavedVersion) bool { return v.Name == verdict.ID })
			gone = append(gone, versions[i])
		}
	}
	return repo.RemoveSaved(ctx, gone...)
}

// newestOf is the newest configuration of an appliance in a repository that can be read, and when it was written; an empty one if
// there is none.
func newestOf(ctx context.Context, saves *store.Saves, appliance string) (document, time.Time, error) {
	versions, err := saves.Versions(ctx, saves.OwnerHash(appliance))
	if err != nil {
		return document{}, time.Time{}, err
	}
	for _, v := range versions {
		d, err := readVersion(ctx, saves, v)
		switch kind := fault.KindOf(err); {
		case err == nil:
			return d, v.Time, nil
		case kind != fault.Corrupt && kind != fault.Unsupported && kind != fault.NotFound:
			return document{}, time.Time{}, err
		}
	}
	return document{}, time.Time{}, nil
}

func readVersion(ctx context.Context, saves *store.Saves, v store.SavedVersion) (document, error) {
	text, err := saves.Text(ctx, v)
	if err != nil {
		return document{}, err
	}
	return decodeDocument(text)
}

// errSuperseded is in the chain of errors of an appliance that was recovered elsewhere.
var errSuperseded = errors.New("this appliance was recovered on another machine")

// superseded is what an appliance that was recovered elsewhere answers instead of working with its repositories.
func superseded(by string) error {
	return fault.Wrap(fault.Conflict, "work with repository", "", fmt.Errorf("%w: %s", errSuperseded, by)).Explain(
		"The other one is the appliance now; two that do the same would get into each other's way, so this one does nothing by itself any more and leaves the repositories alone.",
		"Stop this one. If it is to be the appliance again, stop the other one, move the data directory away and recover here, too: `cairnd recover`.")
}

// checkSuperseded compares the newest configuration in a repository with this appliance's: one of a later incarnation was written by
// the appliance that this one has become elsewhere. That is remembered.
func (a *Appliance) checkSuperseded(ctx context.Context, who catalog.Standing, newest document) error {
	if !newest.after(who) {
		return nil
	}
	by := "on " + newest.Host + ", as of " + newest.Time.UTC().Format(time.RFC3339)
	a.log.ErrorContext(ctx, "this appliance was recovered on another machine; it does nothing by itself any more", "by", by)
	return errors.Join(superseded(by), a.catalog.Supersede(context.WithoutCancel(ctx), by, time.Now()))
}

// stillThis refuses a repository in which a later incarnation of this appliance has left its configuration, before anything of it
// is taken over. What cannot be read decides nothing.
func (a *Appliance) stillThis(ctx context.Context, b blob.Store, key store.Opener) error {
	who, err := a.catalog.Standing(ctx)
	if err != nil {
		return err
	}
	if who.SupersededAt != nil {
		return superseded(who.By)
	}
	saves, err := store.OpenSaves(ctx, b, key)
	if err != nil {
		return nil //nolint:nilerr // opening the repository says what is wrong
	}
	newest, _, err := newestOf(ctx, saves, who.Appliance)
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	return a.checkSuperseded(ctx, who, newest)
}
