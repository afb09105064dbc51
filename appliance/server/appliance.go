package server

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/deploy"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/appliance/metrics"
	"github.com/cairn-backup/cairn/appliance/peers"
	"github.com/cairn-backup/cairn/appliance/protect"
	"github.com/cairn-backup/cairn/appliance/recover"
	"github.com/cairn-backup/cairn/appliance/schedule"
	"github.com/cairn-backup/cairn/appliance/support"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/version"
)

// Target is what a driver needs to reach a connection.
type Target struct {
	Address string
	User    string
	Secret  catalog.Secret
	Options map[string]string
	Confirm hypervisors.ConfirmHost // to be asked in each session; nil while there is no connection yet
	Log     *slog.Logger
}

// OpenDriver makes the driver of a connection. It does not have to reach it.
type OpenDriver func(ctx context.Context, t Target) (hypervisors.Driver, error)

// Options of Open.
type Options struct {
	Dir      string         // the data directory
	Database catalog.Secret // address of the PostgreSQL database with the catalog; "": it is in the data directory
	Drivers  map[hypervisors.Platform]OpenDriver
	Log      *slog.Logger
	Workers  int // tasks at once; 0 is the queue's default

	Hosts []string // names and addresses for the appliance's certificate

	Images string // directory with the mover images

	Ticks <-chan time.Time // when to look at policies and maintenance; nil is every 5 seconds

	Beat, Lease time.Duration // of managers that share a database; 0 is the default

	Settings map[string]string // what cairnd was started with, without secrets: it is saved with the configuration

	// For support bundles: all settings as `cairnd config print` shows them, the end of the log, and the environment. nil: not known.
	Printed string
	Recent  *support.Ring
	Getenv  func(string) string

	observe   func(catalog.Task) // for tests: sees every change of a task
	saveAfter time.Duration      // for tests: how long after a change the configuration is saved; 0 is the default, less is never
}

// Appliance is a running manager without its network side. It implements httpapi.Core.
type Appliance struct {
	dir       string
	openers   map[hypervisors.Platform]OpenDriver
	log       *slog.Logger
	lock      *os.File
	catalog   *catalog.Catalog
	queue     *jobs.Queue
	protector *protect.Protector
	recoverer *recover.Recoverer
	scheduler *schedule.Scheduler
	stream    *httpapi.Stream
	metrics   *metrics.Metrics
	mover     *mover
	authority *identity.Authority
	fleet     *fleet.Fleet
	deployer  *deploy.Deployer
	moverPort atomic.Int32 // 0: nobody listens for movers
	peers     *peers.Peers // nil: there can be no other manager
	lost      chan error

	connections  connections
	repositories repositories
	routine      routine
	settings     map[string]string
	supporting   supporting
	saver        saver
	watches      watches
	closing      sync.Once
	closeErr     error
}

var _ httpapi.Core = (*Appliance)(nil)

// Open opens the data directory, brings what an earlier process left to its end and begins to work. Close it.
func Open(ctx context.Context, o Options) (_ *Appliance, err error) {
	a := &Appliance{dir: o.Dir, openers: o.Drivers, log: o.Log, stream: httpapi.NewStream(), lost: make(chan error, 1)}
	commit, _ := version.Source()
	a.metrics = metrics.New(metrics.Build{Version: version.Version, Commit: commit}, a.log)
	a.routine.ended = make(chan struct{}, 1)
	a.settings, a.saver.after = o.Settings, cmp.Or(o.saveAfter, saveAfter)
	a.supporting.from = bundled{dir: o.Dir, printed: o.Printed, recent: o.Recent, database: o.Database, getenv: o.Getenv}
	a.connections.drivers, a.connections.reading = map[string]hypervisors.Driver{}, map[string]*sync.Mutex{}
	a.connections.ways = map[string]string{}
	a.repositories.open = map[string]*openRepository{}
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return nil, fault.Context("create data directory", a.dir, err)
	}
	if a.lock, err = lockDir(a.path("lock")); err != nil {
		return nil, err
	}
	if _, err := os.Stat(a.path(unfinishedRecovery)); err == nil {
		return nil, errors.Join(fault.New(fault.Conflict, "open data directory", a.dir, "a recovery into it was cut short").Explain(
			"What is in the data directory is part of an appliance.", "Run `cairnd recover` again: it begins anew."), a.lock.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.shut(context.WithoutCancel(ctx), true))
		}
	}()
	a.catalog, err = catalog.Open(ctx, catalog.Options{
		Path: a.path("catalog.db"), Address: o.Database, KeyFile: a.path("keys", "catalog.key"),
	})
	if err != nil {
		return nil, err
	}
	a.supporting.from.catalog = a.catalog
	if err := a.join(ctx); err != nil {
		return nil, err
	}
	if err := a.openFleet(ctx, o.Hosts); err != nil {
		return nil, err
	}
	if err := a.fleet.LoadLimits(ctx, func(b fleet.Bandwidth) { a.mover.limit(b.Read) }); err != nil {
		return nil, err
	}
	a.protector = protect.New(protect.Options{
		Catalog: a.catalog, Drivers: a.driver, Repositories: a.repository, Sets: a.set, There: a.there, Retention: a.retention, Reader: a.mover, Log: a.log,
	})
	a.recoverer = recover.New(recover.Options{
		Catalog: a.catalog, Drivers: a.driver, Repositories: a.repository, Writer: a.mover, Log: a.log,
	})
	a.deployer = deploy.New(deploy.Options{
		Catalog: a.catalog, Drivers: a.driver, Fleet: a.fleet, Fingerprint: a.authority.Fingerprint(),
		Port: func() int { return int(a.moverPort.Load()) }, Images: o.Images, Log: a.log,
	})
	a.queue, err = jobs.New(ctx, jobs.Options{
		Catalog: a.catalog, Journal: jobs.NewJournal(a.catalog, a.driver, a.log), Log: a.log, Publish: publisher{a.stream, a.metrics, a.routine.taskEnded, o.observe},
		Workers: o.Workers,
		Handlers: map[catalog.RunKind]jobs.Handler{
			catalog.KindBackup: a.protector.Backup, catalog.KindRestore: a.recoverer.Restore,
			catalog.KindVerify: a.protector.Verify, catalog.KindPrune: a.protector.Prune, catalog.KindCollect: a.protector.Collect,
			catalog.KindHeal: a.protector.Heal, catalog.KindScrub: a.protector.Scrub, catalog.KindRebuild: a.protector.Rebuild,
			catalog.KindReread: a.protector.Reread, catalog.KindDeploy: a.deployer.Deploy,
		},
	})
	if err != nil {
		return nil, err
	}
	if err := a.begin(ctx, o); err != nil {
		return nil, err
	}
	a.scheduler = schedule.New(a.catalog, a.submitTurn, a.log)
	a.beginSchedule(o.Ticks)
	return a, nil
}

func (a *Appliance) path(parts ...string) string {
	return filepath.Join(append([]string{a.dir}, parts...)...)
}

// Close cancels what is running, waits for its clean-up until ctx ends, and closes everything. Queued tasks stay
// queued for the next process.
func (a *Appliance) Close(ctx context.Context) error {
	a.closing.Do(func() {
		a.routine.end()
		err := a.queue.Stop(ctx)
		a.saveRest(ctx)
		if a.peers != nil {
			a.peers.Stop()
		}
		a.closeErr = errors.Join(err, a.shut(ctx, true))
	})
	return a.closeErr
}

// shut closes what is open, in the opposite order of Open. A manager that leaves says so once its repositories can be opened by
// others; one that has lost the database cannot.
func (a *Appliance) shut(ctx context.Context, leave bool) error {
	errs := []error{a.repositories.close(), a.connections.close()}
	if a.catalog != nil {
		if leave {
			errs = append(errs, a.catalog.Leave(ctx))
		}
		errs = append(errs, a.catalog.Close())
	}
	return errors.Join(append(errs, a.lock.Close())...)
}

// Ready implements httpapi.Core.
func (a *Appliance) Ready(ctx context.Context) error {
	if err := a.catalog.DB().PingContext(ctx); err != nil {
		return fault.Context("reach catalog", "", err)
	}
	return nil
}

// lockDir keeps other processes off the data directory.
func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Context("lock data directory", path, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fault.Wrap(fault.Conflict, "lock data directory", path, err).Explain(
			"Another cairnd works on this data directory.", "Stop it first, or choose another directory.")
	}
	return f, nil
}

// publisher passes what the queue tells on to those who follow the events.
type publisher struct {
	stream  *httpapi.Stream
	metrics *metrics.Metrics
	ended   func() // a task
	observe func(catalog.Task)
}

// PublishTask implements jobs.Publisher.
func (p publisher) PublishTask(t catalog.Task) {
	p.stream.PublishTask(t)
	if t.State.Final() {
		p.metrics.JobEnded(jobOf(t))
		p.ended()
	}
	if p.observe != nil {
		p.observe(t)
	}
}

// PublishRun implements jobs.Publisher.
func (p publisher) PublishRun(r catalog.Run, tasks []catalog.Task) {
	p.stream.PublishRun(httpapi.RunInfo{Run: r, Tasks: tasks})
}

// PublishRunEvent implements jobs.Publisher.
func (p publisher) PublishRunEvent(e catalog.Event) { p.stream.PublishRunEvent(e) }
