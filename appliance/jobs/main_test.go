package jobs

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a manager's core on a data directory: it can be dropped as a crash would and made again.
type fixture struct {
	t        *testing.T
	dir      string
	platform *memplatform.Platform
	conn     string
	vm       hypervisors.VM
	catalog  *catalog.Catalog
	journal  *Journal
	queue    *Queue
	handlers map[catalog.RunKind]Handler
	ends     *ends
}

func newFixture(t *testing.T, handler Handler) *fixture {
	t.Helper()
	p, err := memplatform.New(memplatform.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	f := &fixture{
		t: t, dir: t.TempDir(), platform: p, vm: p.AddVM(memplatform.VMSpec{Name: "web", Disks: []int64{1 << 20}}),
		handlers: map[catalog.RunKind]Handler{catalog.KindBackup: handler, catalog.KindRestore: handler},
	}
	f.open()
	conn := catalog.Connection{Name: "lab", Platform: memplatform.PlatformName}
	if err := f.catalog.CreateConnection(t.Context(), &conn, ""); err != nil {
		t.Fatal(err)
	}
	f.conn = conn.ID
	return f
}

// open makes the core anew on the data directory; the queue does not run yet.
func (f *fixture) open() {
	f.t.Helper()
	c, err := catalog.Open(f.t.Context(), catalog.Options{
		Path: filepath.Join(f.dir, "catalog.db"), KeyFile: filepath.Join(f.dir, "catalog.key"),
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	log := slog.New(slog.DiscardHandler)
	f.catalog = c
	f.journal = NewJournal(c, func(context.Context, string) (hypervisors.Driver, error) { return f.platform.Driver(), nil }, log)
	f.ends = &ends{over: map[string]chan struct{}{}}
	f.queue, err = New(f.t.Context(), Options{
		Catalog: c, Journal: f.journal, Handlers: f.handlers, Publish: f.ends, Log: log, Workers: 2,
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) start() {
	f.t.Helper()
	if err := f.queue.Start(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	q := f.queue
	f.t.Cleanup(func() { _ = q.Stop(context.Background()) })
}

// crash drops everything in memory and opens the data directory again.
func (f *fixture) crash() {
	f.t.Helper()
	if err := f.catalog.Close(); err != nil {
		f.t.Fatal(err)
	}
	f.open()
}

func (f *fixture) submit(kind catalog.RunKind, subject string) *catalog.Task {
	f.t.Helper()
	task := &catalog.Task{Subject: subject, VMName: "web", ConnectionID: f.conn}
	if _, err := f.queue.Submit(f.t.Context(), &catalog.Run{Kind: kind}, task); err != nil {
		f.t.Fatal(err)
	}
	return task
}

// wait returns a task after its end was told.
func (f *fixture) wait(id string) catalog.Task {
	f.t.Helper()
	select {
	case <-f.ends.of(id):
	case <-f.t.Context().Done():
		f.t.Fatalf("task %s did not end", id)
	}
	return f.task(id)
}

func (f *fixture) task(id string) catalog.Task {
	f.t.Helper()
	task, err := f.catalog.Task(f.t.Context(), id)
	if err != nil {
		f.t.Fatal(err)
	}
	return task
}

func (f *fixture) owed() int {
	f.t.Helper()
	rows, err := f.catalog.OpenCleanups(f.t.Context(), "")
	if err != nil {
		f.t.Fatal(err)
	}
	return len(rows)
}

// ends tells when tasks are over.
type ends struct {
	mu   sync.Mutex
	over map[string]chan struct{}
}

func (e *ends) of(id string) chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over[id] == nil {
		e.over[id] = make(chan struct{})
	}
	return e.over[id]
}

// PublishTask implements Publisher.
func (e *ends) PublishTask(t catalog.Task) {
	if t.State.Final() {
		close(e.of(t.ID)) // panics if a task ends twice
	}
}

// PublishRun implements Publisher.
func (*ends) PublishRun(catalog.Run, []catalog.Task) {}

// PublishRunEvent implements Publisher.
func (*ends) PublishRunEvent(catalog.Event) {}

// makeCheckpoint makes something on the platform that the task owes.
func (f *fixture) makeCheckpoint(ctx context.Context, taskID string) error {
	name := "cairn-" + Tag(taskID)
	owed := hypervisors.Owed{Kind: hypervisors.OwedCheckpoint, VM: f.vm.ID, Name: name}
	if err := f.journal.Owe(f.conn, taskID)(ctx, owed); err != nil {
		return err
	}
	return f.platform.AddCheckpoint(f.vm.ID, name)
}

func (f *fixture) hasCheckpoint(taskID string) bool {
	return f.platform.HasCheckpoint(f.vm.ID, "cairn-"+Tag(taskID))
}

func kindOf(err error) string {
	if err == nil {
		return "nil"
	}
	return fault.KindOf(err).String()
}
