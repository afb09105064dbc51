package peers_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/rpc"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/appliance/peers"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// What a manager's process finds in its environment.
const (
	childEnv   = "CAIRN_PEERS_CHILD"   // its name
	addressEnv = "CAIRN_PEERS_ADDRESS" // of its database
	dirEnv     = "CAIRN_PEERS_DIR"     // shared by all
	seedEnv    = "CAIRN_PEERS_SEED"

	judgeSocket = "judge.sock"
	keyFile     = "catalog.key"
	lease       = 6 * time.Second
	beat        = 500 * time.Millisecond
)

// manager is the part of a manager that shares the work: everything but platforms, repositories and people.
type manager struct {
	name, dir string
	seed      uint64
	judge     *rpc.Client
	catalog   *catalog.Catalog
	queue     *jobs.Queue
	lost      chan error

	mu    sync.Mutex
	locks map[string]*os.File // as repositories have them
}

// child is the main function of a manager's process.
func child() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	seed, err := strconv.ParseUint(os.Getenv(seedEnv), 10, 64)
	if err != nil {
		return err
	}
	m := &manager{name: os.Getenv(childEnv), dir: os.Getenv(dirEnv), seed: seed, lost: make(chan error, 1), locks: map[string]*os.File{}}
	if m.judge, err = rpc.Dial("unix", filepath.Join(m.dir, judgeSocket)); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})).With("process", m.name)
	m.catalog, err = catalog.Open(ctx, catalog.Options{Address: catalog.Secret(os.Getenv(addressEnv)), KeyFile: filepath.Join(m.dir, keyFile)})
	if err != nil {
		return err
	}
	if err := m.catalog.Join(ctx, &catalog.Manager{Name: m.name}); err != nil {
		return err
	}
	journal := jobs.NewJournal(m.catalog, func(context.Context, string) (hypervisors.Driver, error) { return platform{judge: m.judge}, nil }, log)
	m.queue, err = jobs.New(ctx, jobs.Options{
		Catalog: m.catalog, Journal: journal, Publish: nobody{}, Log: log, Workers: 4,
		Handlers: map[catalog.RunKind]jobs.Handler{catalog.KindRestore: m.handle},
	})
	if err != nil {
		return err
	}
	if err := m.queue.Start(ctx); err != nil {
		return err
	}
	p := peers.Start(peers.Options{
		Catalog: m.catalog, Queue: m.queue, Log: log, Beat: beat, Lease: lease, Open: m.open, Close: m.close,
		Lost: func(err error) { m.lost <- err },
	})
	sweeping, stop := context.WithCancel(ctx)
	var sweeper sync.WaitGroup
	sweeper.Go(func() { m.sweep(sweeping, log) })
	defer sweeper.Wait()
	defer stop()
	select {
	case err := <-m.lost:
		stop()
		sweeper.Wait()
		abandon, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		return errors.Join(err, m.queue.Abandon(abandon))
	case <-ctx.Done():
	}
	sweeper.Wait()
	drain, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = m.queue.Stop(drain)
	p.Stop()
	return errors.Join(err, m.catalog.Leave(drain), m.catalog.Close())
}

// sweep does what the maintenance of a whole appliance does: one of the managers sweeps, now and then.
func (m *manager) sweep(ctx context.Context, log *slog.Logger) {
	for tick := time.NewTicker(3 * time.Second); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		if !m.queue.Leads() {
			continue
		}
		if _, err := m.queue.Sweep(ctx); err != nil {
			log.Warn("not swept", "err", err)
		}
	}
}

// open takes the lock that a repository has, so that two managers that work with one are found out.
func (m *manager) open(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locks[id] != nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(m.dir, id), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return fault.Wrap(fault.Conflict, "lock", id, err)
	}
	m.locks[id] = f
	return nil
}

func (m *manager) close(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.locks[id]
	delete(m.locks, id)
	if f == nil {
		return nil
	}
	return f.Close()
}

// kept is what a task keeps for the manager that takes it up: how far it is.
type kept struct {
	Step int `json:"step"`
}

const steps = 4

// handle does a task as real ones are done: the VM is held, what is made is owed first, how far it is is kept, and the result
// is the last thing.
func (m *manager) handle(ctx context.Context, t *jobs.Task) (err error) {
	release, err := t.Journal().Hold(ctx, t.ConnectionID, t.VMID)
	if err != nil {
		return err
	}
	defer release()
	call := Call{Process: m.name, Task: t.ID, VM: t.VMID, Name: "cairn-" + jobs.Tag(t.ID)}
	if err := m.tell("Begin", call); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err, _ = t.Leave(ctx, err)
		}
	}()
	if t.RepositoryID != "" {
		m.mu.Lock()
		locked := m.locks[t.RepositoryID] != nil
		m.mu.Unlock()
		if !locked {
			return fault.New(fault.Internal, "work", t.ID, "without its repository")
		}
	}
	var k kept
	again, err := t.TakenUp(&k)
	if err != nil {
		return err
	}
	owed := hypervisors.Owed{Kind: hypervisors.OwedCheckpoint, VM: t.VMID, Name: call.Name}
	if !again {
		if err := t.Journal().Owe(t.ConnectionID, t.ID)(ctx, owed); err != nil {
			return err
		}
		if err := errors.Join(m.tell("Step", call), m.tell("Mark", call)); err != nil {
			return err
		}
	}
	random := rand.New(rand.NewPCG(m.seed, uint64(len(t.ID)))) //nolint:gosec // a test's
	for ; k.Step < steps; k.Step++ {
		if err := t.Keep(ctx, k); err != nil {
			return err
		}
		select { // what a disk takes
		case <-time.After(time.Duration(20+random.IntN(160)) * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := m.tell("Step", call); err != nil {
			return err
		}
	}
	if err := m.judge.Call("Judge.CleanUp", owed, new(bool)); err != nil {
		return err
	}
	if err := t.SetResult(ctx, catalog.Result{VMName: m.name}); err != nil {
		return err
	}
	return m.tell("Made", call)
}

func (m *manager) tell(what string, c Call) error {
	if err := m.judge.Call("Judge."+what, c, new(bool)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// platform is the judge's, as far as tasks and sweeps need it.
type platform struct {
	hypervisors.Unsupported
	judge *rpc.Client
}

func (platform) Capabilities() hypervisors.Capabilities { return hypervisors.Capabilities{} }
func (platform) Close() error                           { return nil }

func (platform) Check(context.Context) (hypervisors.Health, error) { return hypervisors.Health{}, nil }

func (p platform) CleanUp(_ context.Context, o hypervisors.Owed) error {
	return p.judge.Call("Judge.CleanUp", o, new(bool))
}

func (p platform) Leftovers(context.Context) (out []hypervisors.Owed, err error) {
	return out, p.judge.Call("Judge.Leftovers", false, &out)
}

// nobody follows the events.
type nobody struct{}

func (nobody) PublishTask(catalog.Task)               {}
func (nobody) PublishRun(catalog.Run, []catalog.Task) {}
func (nobody) PublishRunEvent(catalog.Event)          {}
