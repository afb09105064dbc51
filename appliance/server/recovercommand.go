package server

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/durable"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/erasure"
)

// recovery is one `cairnd recover`.
type recovery struct {
	configured
	places       []string // the repository, or the members of its set
	key          string
	paper, ident string
	version      string
	list         bool

	drivers map[hypervisors.Platform]OpenDriver
	stdout  io.Writer
	log     *slog.Logger

	by      store.Opener
	keyText []byte // of a key file, nil if another kind of key was given
}

// unfinishedRecovery is in the data directory while it is being recovered into.
const unfinishedRecovery = "recovery-unfinished"

// recoverCommand is `cairnd recover`: a new machine becomes an appliance whose configuration was saved in a repository.
func recoverCommand(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer,
	drivers map[hypervisors.Platform]OpenDriver,
) (err error) {
	r := recovery{stdout: stdout, drivers: drivers}
	r.configured, err = configure("cairnd recover", args, getenv, stderr, func(f *flag.FlagSet) {
		f.Func("repository", "`directory` of a repository of the appliance; of a set one --repository for each of its directories", func(v string) error {
			v, err := filepath.Abs(v)
			r.places = append(r.places, v)
			return err
		})
		f.StringVar(&r.key, "key", "", "key of the repository: `FILE`, env:NAME or credential:NAME")
		f.StringVar(&r.paper, "paper", "", "instead of --key: `FILE` with a typed paper key")
		f.StringVar(&r.ident, "identity", "", "instead of --key: `FILE` with age identities")
		f.StringVar(&r.version, "version", "", "`version` of the configuration, as --list shows them; the newest one when absent")
		f.BoolVar(&r.list, "list", false, "show what is there, and change nothing")
	})
	if err != nil {
		return err
	}
	r.log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: max(r.level, slog.LevelWarn)}))
	if err := r.readKey(ctx); err != nil {
		return err
	}
	var f finding
	if err := r.onBackend(ctx, func(b blob.Store) error {
		f, err = r.look(ctx, b)
		return err
	}); err != nil || r.list {
		return err
	}
	unlock, err := r.begin()
	if err != nil {
		return err
	}
	err = r.install(ctx, f)
	if err = errors.Join(err, unlock()); err != nil {
		return err
	}
	return r.prove(ctx, f.document)
}

// readKey reads the key that was given.
func (r *recovery) readKey(ctx context.Context) (err error) {
	given := 0
	for _, v := range []string{r.key, r.paper, r.ident} {
		if v != "" {
			given++
		}
	}
	if len(r.places) == 0 || given != 1 {
		return fault.New(fault.Invalid, "recover", "", "it takes --repository and one of --key, --paper and --identity").Explain(
			"The configuration lies in the repositories of the appliance, sealed with their keys.",
			"cairnd recover --repository /srv/backups --key /media/usb/main.key")
	}
	switch {
	case r.paper != "":
		text, err := os.ReadFile(r.paper)
		if err != nil {
			return fault.Context("read paper key", r.paper, err)
		}
		r.by, err = store.ParsePaperKey(string(text))
		return err
	case r.ident != "":
		r.by, err = store.LoadIdentity(r.ident)
		return err
	}
	source := r.key
	if kind, _, _ := strings.Cut(source, ":"); kind != "env" && kind != "credential" && kind != "file" {
		if source, err = filepath.Abs(source); err != nil {
			return fault.Context("read key file", r.key, err)
		}
	}
	key, err := store.LoadKey(ctx, source)
	r.by = key
	if path := strings.TrimPrefix(source, "file:"); err == nil && filepath.IsAbs(path) {
		r.keyText, err = os.ReadFile(path)
	}
	return err
}

// onBackend opens what the repository lies on, for reading.
func (r *recovery) onBackend(ctx context.Context, do func(blob.Store) error) (err error) {
	var b blob.Store
	_, statErr := os.Stat(filepath.Join(r.places[0], "cairn-erasure")) // store/erasure/FORMAT.md: that of a set
	if len(r.places) > 1 || statErr == nil {
		b, err = erasure.OpenPaths(ctx, erasure.Options{Log: r.log}, r.places...)
	} else {
		b, err = file.Open(r.places[0])
	}
	if err != nil {
		return fault.Context("recover from repository", strings.Join(r.places, ", "), err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return do(b)
}

// found is a version that is there.
type found struct {
	store.SavedVersion
	document
	err error
}

// id is how a version is named on the command line: the ULID of its object.
func (f found) id() string { return f.Name[strings.LastIndexByte(f.Name, '-')+1:] }

// finding is the version that this machine becomes.
type finding struct {
	found
	storeID, repository string
	newest              bool // of its appliance's versions
}

// look shows what there is, and takes what was asked for.
func (r *recovery) look(ctx context.Context, b blob.Store) (f finding, err error) {
	saves, err := store.OpenSaves(ctx, b, r.by)
	if err != nil {
		return f, err
	}
	f.storeID, f.repository = saves.Repository()
	all, err := r.find(ctx, saves, f.repository)
	if err != nil || r.list {
		return f, err
	}
	f.found, f.newest, err = r.choose(all, f.repository)
	return f, err
}

// find lists the versions, the newest first, and shows them.
func (r *recovery) find(ctx context.Context, saves *store.Saves, name string) (all []found, err error) {
	versions, err := saves.Versions(ctx, "")
	if err != nil {
		return nil, err
	}
	if len(versions) == 0 {
		return nil, fault.New(fault.NotFound, "recover from repository", name, "no configuration was saved in it").Explain(
			"An appliance saves its configuration in all of its repositories. This one was never used by an appliance that does, or not for long enough.",
			"Name another repository of the appliance. Without any, set a new one up and attach the repositories: `cairn repository create --attach`.")
	}
	fmt.Fprintf(r.stdout, "Configurations in repository %s:\n\n", name)
	w := tabwriter.NewWriter(r.stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "VERSION\tSAVED\tAPPLIANCE\tON\tHAS")
	for _, v := range versions {
		f := found{SavedVersion: v}
		f.document, f.err = readVersion(ctx, saves, v)
		all = append(all, f)
		if f.err != nil {
			fmt.Fprintf(w, "%s\t%s\t?\t?\t%v\n", f.id(), v.Time.Format(time.RFC3339), f.err)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s, incarnation %d\t%s\t%s\n", f.id(), v.Time.Format(time.RFC3339), f.Appliance, f.Incarnation, f.Host, f.contents())
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	fmt.Fprintln(r.stdout)
	return all, nil
}

// contents says what there is in a configuration.
func (d document) contents() string {
	c := d.Configuration
	return fmt.Sprintf("%d connections, %d repositories, %d policies, %d exclusions, %d holds, %d movers, %d users",
		len(c.Connections), len(c.Repositories), len(c.Policies), len(c.Exclusions), len(c.Holds), len(c.Movers), len(c.Users))
}

// choose takes the version that was named, or the newest one. newest reports whether it is the newest of its appliance.
func (r *recovery) choose(all []found, name string) (chosen found, newest bool, err error) {
	owners := map[string]bool{}
	for _, f := range all {
		if f.err == nil {
			owners[f.Owner] = true
		}
	}
	i := slices.IndexFunc(all, func(f found) bool { return r.version == "" && f.err == nil || r.version != "" && f.id() == r.version })
	switch {
	case i < 0 && r.version != "":
		return found{}, false, fault.New(fault.NotFound, "recover from repository", name, "there is no version %s", r.version).Explain(
			"The repository does not have it.", "Name one of those that --list shows.")
	case i < 0:
		return found{}, false, all[0].err
	case r.version == "" && len(owners) > 1:
		return found{}, false, fault.New(fault.Invalid, "recover from repository", name, "%d appliances have saved their configurations in it", len(owners)).Explain(
			"It is not said which of them this machine is to become.", "Name a version: --version "+all[i].id())
	case all[i].err != nil:
		return found{}, false, all[i].err
	}
	chosen = all[i]
	newest = !slices.ContainsFunc(all[:i], func(f found) bool { return f.Owner == chosen.Owner })
	for _, f := range all { // so that every appliance that this one has ever been is one of before
		if f.err == nil && f.Owner == chosen.Owner {
			chosen.Incarnation = max(chosen.Incarnation, f.Incarnation)
		}
	}
	return chosen, newest, nil
}

// begin makes the data directory this command's, if it is empty, or what a recovery that was cut short has left.
func (r *recovery) begin() (unlock func() error, err error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, fault.Context("create data directory", r.dir, err)
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fault.Context("read data directory", r.dir, err)
	}
	cut := slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == unfinishedRecovery })
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() == "lost+found" || e.Name() == unfinishedRecovery })
	if len(entries) > 0 && !cut {
		return nil, fault.New(fault.Exists, "recover into", r.dir, "the data directory is not empty: there is %s", entries[0].Name()).Explain(
			"An appliance is recovered into an empty data directory; two cannot be made one.",
			"Name another one with --data, or move away what is there if it is not needed.")
	}
	lock, err := lockDir(filepath.Join(r.dir, "lock"))
	if err != nil {
		return nil, err
	}
	if err := durable.Replace(filepath.Join(r.dir, unfinishedRecovery), nil, 0o600); err != nil {
		return nil, errors.Join(fault.Context("recover into", r.dir, err), lock.Close())
	}
	for _, e := range entries {
		if e.Name() == "lock" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(r.dir, e.Name())); err != nil {
			return nil, errors.Join(fault.Context("recover into", r.dir, err), lock.Close())
		}
	}
	return lock.Close, nil
}

// install writes files and catalog. Until it has ended, cairnd does not start on the data directory.
func (r *recovery) install(ctx context.Context, f finding) (err error) {
	now := time.Now().UTC()
	r.place(ctx, f.storeID, &f.document)
	if !f.newest {
		f.Configuration.Tokens = nil
		fmt.Fprintln(r.stdout, "This is not the newest version: API tokens are left out, for they may have been revoked since.")
	}
	for _, path := range slices.Sorted(maps.Keys(f.Files)) {
		to := filepath.Join(r.dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return fault.Context("recover into", r.dir, err)
		}
		mode := fs.FileMode(0o400)
		if path == authorityFile {
			mode = 0o600
		}
		if err := durable.Replace(to, f.Files[path], mode); err != nil {
			return fault.Context("write", to, err)
		}
	}
	c, err := catalog.Open(ctx, catalog.Options{Path: filepath.Join(r.dir, "catalog.db"), Address: r.database, KeyFile: filepath.Join(r.dir, catalogKeyFile)})
	if err != nil {
		return err
	}
	err = c.Install(ctx, f.Configuration, catalog.Standing{
		Appliance: f.Appliance, Incarnation: f.Incarnation + 1, RecoveredAt: &now, Held: true,
		From: "repository " + f.repository + ", as of " + f.document.Time.UTC().Format(time.RFC3339),
	}, now)
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(r.dir, unfinishedRecovery)); err != nil {
		return fault.Context("recover into", r.dir, err)
	}
	return nil
}

// place makes what the configuration says of the repository it comes from what is so now: where it lies, and which key opens it.
func (r *recovery) place(ctx context.Context, storeID string, d *document) {
	rows := d.Configuration.Repositories
	i := slices.IndexFunc(rows, func(row catalog.Repository) bool { return row.StoreID == storeID })
	if i < 0 {
		return // it was detached after that
	}
	row := &rows[i]
	row.Path = r.places[0]
	if row.Kind == catalog.KindSet {
		row.Members = nil
		for _, path := range r.places {
			row.Members = append(row.Members, catalog.RepositoryMember{Path: path})
		}
	}
	kept := "keys/" + row.ID + ".key"
	has := bytes.TrimSpace(d.Files[kept])
	switch {
	case r.keyText != nil && !bytes.Equal(has, bytes.TrimSpace(r.keyText)) && (has != nil || !r.usable(ctx, row.KeyFile)):
		d.Files[kept], row.KeyFile = r.keyText, filepath.Join(r.dir, kept) // the key was rotated since, or was elsewhere
	case has == nil && !r.usable(ctx, row.KeyFile):
		fmt.Fprintf(r.stdout, "The appliance had the key of this repository from %s. Put it there before cairnd is started.\n", row.KeyFile)
	}
}

func (r *recovery) usable(ctx context.Context, source string) bool {
	_, err := store.LoadKey(ctx, source)
	return err == nil
}

// prove starts the appliance once: restore points are read from the repositories, and the configuration is saved there as that of the
// new incarnation, so that the old one knows.
func (r *recovery) prove(ctx context.Context, d document) error {
	a, err := Open(ctx, Options{
		Dir: r.dir, Database: r.database, Drivers: r.drivers, Log: r.log, Hosts: r.hosts, Images: r.images, Workers: r.workers, Settings: d.Settings,
		Ticks: make(chan time.Time), saveAfter: -1,
	})
	if err != nil {
		return fault.Context("start the recovered appliance", r.dir, err)
	}
	a.note(ctx, fleet.Who{User: "cairnd recover"}, "appliance.recover", d.Appliance, "incarnation "+strconv.Itoa(d.Incarnation+1))
	a.awaitRepositories(ctx)
	err = r.report(ctx, a, d)
	return errors.Join(err, a.Close(ctx))
}

// takenWithin is how long a recovery on a database that managers share waits until its repositories are its own.
const takenWithin = time.Minute

// awaitRepositories waits until this manager has taken over the repositories, where it shares a database.
func (a *Appliance) awaitRepositories(ctx context.Context) {
	if a.peers == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, takenWithin)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	list, err := a.catalog.AllRepositories(ctx)
	for i := 0; err == nil && i < len(list); {
		if id := list[i].ID; a.peers.Owns(id) {
			_, _, err := a.protector.Reconcile(ctx, id)
			if err != nil {
				a.log.WarnContext(ctx, "restore points were not read", "repository", list[i].Name, "err", err)
			}
			i++
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// inventoryTime bounds how long a connection may take to answer: it is read again by the appliance.
const inventoryTime = 30 * time.Second

func (r *recovery) readInventories(ctx context.Context, a *Appliance) error {
	list, err := a.catalog.AllConnections(ctx)
	if err != nil {
		return err
	}
	for _, conn := range list {
		bounded, cancel := context.WithTimeout(ctx, inventoryTime)
		report, err := a.RefreshConnection(bounded, conn.ID)
		cancel()
		if err != nil {
			fmt.Fprintf(r.stdout, "Connection %s does not answer now: %v\n", conn.Name, err)
			continue
		}
		fmt.Fprintf(r.stdout, "Connection %s: %d VMs\n", conn.Name, report.VMs)
	}
	return nil
}

func (r *recovery) report(ctx context.Context, a *Appliance, d document) error {
	saveErr := a.saveConfiguration(ctx)
	list, err := a.catalog.AllRepositories(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(r.stdout, "Recovered into %s: %s.\n", r.dir, d.contents())
	for _, row := range list {
		ids, err := a.catalog.RestorePointIDs(ctx, row.ID)
		if err != nil {
			return err
		}
		fmt.Fprintf(r.stdout, "Repository %s (%s): %d restore points", row.Name, row.Path, len(ids))
		if row.LastError != nil {
			fmt.Fprintf(r.stdout, "; it cannot be used now: %s %s", row.LastError.What, row.LastError.Advice)
		}
		fmt.Fprintln(r.stdout)
	}
	if err := r.readInventories(ctx, a); err != nil {
		return err
	}
	if saveErr != nil {
		fmt.Fprintf(r.stdout, "The configuration could not be saved everywhere; where it could not, an appliance that still lives elsewhere does not see that this one is there: %v\n", saveErr)
	}
	if len(d.Settings) > 0 {
		fmt.Fprintf(r.stdout, "cairnd was started with these settings, which are in %s or on the command line:\n", defaultConfig)
		for _, name := range slices.Sorted(maps.Keys(d.Settings)) {
			fmt.Fprintf(r.stdout, "    %s: %s\n", name, cmp.Or(d.Settings[name], `""`))
		}
	}
	fmt.Fprintln(r.stdout, "Start cairnd. Restores work at once; policies and maintenance wait until you have seen that the old appliance does not run any more: cairn appliance resume")
	return nil
}
