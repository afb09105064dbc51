package server

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

func TestMain(m *testing.M) {
	if os.Getenv(asMover) != "" {
		os.Exit(beMover())
	}
	goleak.VerifyTestMain(m)
}

const diskBytes = 4 << 20

// bench is an appliance with a platform in memory, one VM of two disks and one repository.
type bench struct {
	*Appliance
	t        testing.TB
	root     string // holds data/ and repo/
	platform *memplatform.Platform
	others   map[string]*memplatform.Platform // by address; all others are platform
	vm       hypervisors.VM
	vmID     string // in the catalog
	conn     string
	repo     string
	random   *rand.Rand
	watch    *watch
	ticks    chan time.Time // nil: the appliance's own
	saves    time.Duration  // how long after a change the configuration is saved; 0 is never by itself: tests copy repositories
	dead     *atomic.Bool   // the process was killed: what still runs of it reaches the platform no more
}

func newBench(t *testing.T) *bench {
	t.Helper()
	t.Parallel() // most of a test's time is waiting for the disk and the queue
	return makeBench(t)
}

func makeBench(t testing.TB) *bench {
	t.Helper()
	p, err := memplatform.New(memplatform.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	const seed = 7
	t.Logf("seed %d", seed)
	b := &bench{
		t: t, root: t.TempDir(), platform: p, random: rand.New(rand.NewPCG(seed, seed)),
		vm: p.AddVM(memplatform.VMSpec{Name: "web", Disks: []int64{diskBytes, diskBytes / 2}}),
	}
	b.start()
	conn, err := b.AddConnection(t.Context(), httpapi.NewConnection{Name: "lab", Platform: memplatform.PlatformName, Address: "here"})
	if err != nil {
		t.Fatal(err)
	}
	repo, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "main", Path: filepath.Join(b.root, "repo")})
	if err != nil {
		t.Fatal(err)
	}
	vms, err := b.ListVMs(t.Context(), catalog.VMFilter{}, catalog.Page{})
	if err != nil || len(vms.Items) != 1 {
		t.Fatalf("VMs = %v, %v", vms, err)
	}
	b.conn, b.repo, b.vmID = conn.ID, repo.ID, vms.Items[0].ID
	b.write("disk0", 64<<10, 0)
	b.write("disk1", 64<<10, 1<<20)
	return b
}

// start opens the appliance on the data directory.
func (b *bench) start() {
	b.t.Helper()
	dead := &atomic.Bool{}
	b.dead = dead
	b.watch = &watch{over: map[string]chan struct{}{}}
	a, err := Open(b.t.Context(), Options{
		Dir: filepath.Join(b.root, "data"), Log: slog.New(slog.DiscardHandler), observe: b.watch.see, Ticks: b.ticks, saveAfter: cmp.Or(b.saves, -1),
		Drivers: map[hypervisors.Platform]OpenDriver{
			memplatform.PlatformName: func(_ context.Context, t Target) (hypervisors.Driver, error) {
				return mortal{cmp.Or(b.others[t.Address], b.platform).Confirmed(t.Confirm), dead}, nil
			},
		},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = a.Close(context.Background()) })
	b.Appliance = a
}

func (b *bench) write(disk string, n int, off int64) {
	b.t.Helper()
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(b.random.Uint32())
	}
	if err := b.platform.Write(b.vm.ID, disk, data, off); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) content(vm, disk string) []byte {
	b.t.Helper()
	c, err := b.platform.Content(vm, disk)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *bench) startBackup() (httpapi.Started, error) {
	return b.StartBackup(b.t.Context(), httpapi.Start{User: "ann"}, httpapi.BackupRequest{VMID: b.vmID, RepositoryID: b.repo})
}

// task returns the only task of a run that was started.
func (b *bench) task(s httpapi.Started, err error) catalog.Task {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	run, err := b.GetRun(b.t.Context(), s.RunID)
	if err != nil || len(run.Tasks) != 1 {
		b.t.Fatalf("run = %+v, %v", run, err)
	}
	return run.Tasks[0]
}

// ended waits for the end of a run that was started.
func (b *bench) ended(s httpapi.Started, err error) catalog.Task {
	b.t.Helper()
	id := b.task(s, err).ID
	b.await(b.watch.end(id))
	task, err := b.GetTask(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return task
}

func (b *bench) await(c <-chan struct{}) {
	b.t.Helper()
	select {
	case <-c:
	case <-b.t.Context().Done():
		b.t.Fatal("waited in vain")
	}
}

// backup makes a restore point and returns it.
func (b *bench) backup() catalog.RestorePoint {
	b.t.Helper()
	task := b.ended(b.startBackup())
	if task.State != catalog.Succeeded {
		b.t.Fatalf("backup = %s, %+v, %v", task.State, task.Error, task.Warnings)
	}
	point, err := b.GetRestorePoint(b.t.Context(), task.RestorePointID)
	if err != nil {
		b.t.Fatal(err)
	}
	return point.RestorePoint
}

// restore makes a new VM of a restore point and returns what is on its disks.
func (b *bench) restore(point, name string) (disk0, disk1 []byte) {
	b.t.Helper()
	return b.restored(b.startRestore(point, name))
}

// restored waits for a restore and returns what is on its disks.
func (b *bench) restored(s httpapi.Started, err error) (disk0, disk1 []byte) {
	b.t.Helper()
	task := b.ended(s, err)
	if task.State != catalog.Succeeded {
		b.t.Fatalf("restore = %s, %+v, %v", task.State, task.Error, task.Warnings)
	}
	return b.content(task.Result.VMPlatformID, "disk0"), b.content(task.Result.VMPlatformID, "disk1")
}

func (b *bench) startRestore(point, name string) (httpapi.Started, error) {
	return b.StartRestore(b.t.Context(), httpapi.Start{User: "ann"}, httpapi.RestoreRequest{
		RestorePointID: point, Mode: hypervisors.RestoreNew, Name: name,
	})
}

// restoresTo checks that a restore point holds some content.
func (b *bench) restoresTo(point, name string, disk0, disk1 []byte) {
	b.t.Helper()
	got0, got1 := b.restore(point, name)
	if !bytes.Equal(got0, disk0) || !bytes.Equal(got1, disk1) {
		b.t.Errorf("%s: the restored disks are not what was frozen", name)
	}
}

// clean checks that the platform has nothing of ours but the newest checkpoint, and that nothing is owed.
func (b *bench) clean() {
	b.t.Helper()
	left, err := b.platform.Driver().Leftovers(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	newest, err := b.catalog.NewestRestorePoint(b.t.Context(), b.vmID, "")
	if err != nil && fault.KindOf(err) != fault.NotFound {
		b.t.Fatal(err)
	}
	for _, l := range left {
		if l.Kind != hypervisors.OwedCheckpoint || l.Name != newest.Checkpoint || l.VM != b.vm.ID {
			b.t.Errorf("left on the platform: %+v", l)
		}
	}
	rows, err := b.catalog.OpenCleanups(b.t.Context(), "")
	if err != nil || len(rows) != 0 {
		b.t.Errorf("owed: %+v, %v", rows, err)
	}
}

func (b *bench) vms() int {
	b.t.Helper()
	vms, err := b.platform.Driver().VMs(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return len(vms)
}

// until waits until a fault has fired in a task.
func (b *bench) until(f *memplatform.Fault, task string) {
	b.t.Helper()
	for f.Fired() == 0 {
		got, err := b.GetTask(b.t.Context(), task)
		if err != nil || got.State.Final() {
			b.t.Fatalf("the fault did not fire: %s, %+v, %v", got.State, got.Error, err)
		}
	}
}

// watch tells when tasks end.
type watch struct {
	mu   sync.Mutex
	over map[string]chan struct{}
}

func (w *watch) see(t catalog.Task) {
	if t.State.Final() {
		close(w.end(t.ID)) // panics if a task ends twice
	}
}

func (w *watch) end(id string) chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over[id] == nil {
		w.over[id] = make(chan struct{})
	}
	return w.over[id]
}

func kindOf(err error) string {
	if err == nil {
		return "nil"
	}
	return fault.KindOf(err).String()
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func startOf(user string) httpapi.Start { return httpapi.Start{User: user} }

func restoreOf(point, name string, start bool) httpapi.RestoreRequest {
	return httpapi.RestoreRequest{RestorePointID: point, Mode: hypervisors.RestoreNew, Name: name, Start: start}
}

// mortal is a driver whose process can be killed.
type mortal struct {
	hypervisors.Driver
	dead *atomic.Bool
}

var errKilled = fault.New(fault.Internal, "reach platform", "", "this process was killed")

func (m mortal) alive() error {
	if m.dead.Load() {
		return errKilled
	}
	return nil
}

func (m mortal) KeepCheckpoint(ctx context.Context, vm, keep string) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.Driver.KeepCheckpoint(ctx, vm, keep)
}

func (m mortal) CleanUp(ctx context.Context, owed hypervisors.Owed) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.Driver.CleanUp(ctx, owed)
}

func (m mortal) Freeze(ctx context.Context, req hypervisors.FreezeRequest) (hypervisors.Frozen, error) {
	f, err := m.Driver.Freeze(ctx, req)
	if err != nil {
		return nil, err
	}
	return mortalFrozen{f, m}, nil
}

func (m mortal) BeginRestore(ctx context.Context, req hypervisors.RestoreRequest) (hypervisors.Restoring, error) {
	r, err := m.Driver.BeginRestore(ctx, req)
	if err != nil {
		return nil, err
	}
	return mortalRestoring{r, m}, nil
}

type mortalFrozen struct {
	hypervisors.Frozen
	m mortal
}

func (f mortalFrozen) Release(ctx context.Context) error {
	if err := f.m.alive(); err != nil {
		return err
	}
	return f.Frozen.Release(ctx)
}

type mortalRestoring struct {
	hypervisors.Restoring
	m mortal
}

func (r mortalRestoring) Abandon(ctx context.Context) error {
	if err := r.m.alive(); err != nil {
		return err
	}
	return r.Restoring.Abandon(ctx)
}
