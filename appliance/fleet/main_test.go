package fleet_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/control"
	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/loopback"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come; it is no assertion about speed.
const patience = 60 * time.Second

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// manager is a catalog, an authority and a fleet on a real listener.
type manager struct {
	t       *testing.T
	dir     string
	timing  fleet.Timing
	catalog *catalog.Catalog
	fleet   *fleet.Fleet
	print   string
	address string
	log     *watched
	ahead   atomic.Int64 // of the real time, by which the manager's clock for certificates and refusals is; nanoseconds

	stop context.CancelFunc
	done chan error
}

func newManager(t *testing.T, timing fleet.Timing) *manager {
	m := &manager{t: t, dir: t.TempDir(), timing: timing, log: newWatched(t, "manager")}
	var err error
	m.catalog, err = catalog.Open(t.Context(), catalog.Options{Path: filepath.Join(m.dir, "c.db"), KeyFile: filepath.Join(m.dir, "key")})
	check(t, err)
	l, err := loopback.Listen()
	check(t, err)
	m.start(l)
	t.Cleanup(func() {
		m.end()
		check(t, m.catalog.Close())
	})
	return m
}

// start begins a manager process, as far as movers see one, that listens at l.
func (m *manager) start(l net.Listener) {
	m.t.Helper()
	authority, err := identity.OpenAuthority(filepath.Join(m.dir, "tls"), []string{"localhost", pb.ManagerName})
	check(m.t, err)
	m.fleet = fleet.New(fleet.Options{
		Catalog: m.catalog, Authority: authority, Log: slog.New(m.log), Version: "test", Timing: m.timing,
		Now: func() time.Time { return time.Now().Add(time.Duration(m.ahead.Load())) },
	})
	m.print = authority.Fingerprint()
	m.address = l.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	m.stop, m.done = stop, make(chan error, 1)
	server := m.fleet.Server(authority.TLSConfig())
	go func() { m.done <- m.fleet.Serve(ctx, l, server) }()
}

func (m *manager) end() {
	m.stop()
	if err := <-m.done; err != nil {
		m.t.Error(err)
	}
	m.done <- nil
}

func (m *manager) token(n fleet.NewToken) string {
	m.t.Helper()
	_, secret, err := m.fleet.IssueToken(m.t.Context(), n)
	check(m.t, err)
	return secret
}

// waits looks for a mover, which must not be found at once: the reasons given, and what comes of it when one is found.
func (m *manager) waits(ctx context.Context, w fleet.Wish, own fleet.Candidate) (words string, found <-chan error) {
	m.t.Helper()
	waits, done := make(chan string, 1), make(chan error, 1)
	go func() {
		p, err := m.fleet.Find(ctx, w, own, nil, func(c fleet.Choice) { waits <- c.Words() })
		if err == nil {
			p.Release()
		}
		done <- err
	}()
	select {
	case words = <-waits:
	case err := <-done:
		m.t.Fatalf("it did not wait: %v", err)
	}
	return words, done
}

// audited returns the log's entries of an action, the newest first.
func (m *manager) audited(action string) (out []catalog.AuditEntry) {
	m.t.Helper()
	all, err := m.catalog.AuditLog(m.t.Context(), 0, 1000)
	check(m.t, err)
	for _, e := range all {
		if e.Action == action {
			out = append(out, e)
		}
	}
	check(m.t, m.catalog.CheckAudit(m.t.Context()))
	return out
}

// mover is a cairn-mover without the disks: its work is a function of the test.
type mover struct {
	t      *testing.T
	work   *worker
	log    *watched
	config control.Config
	stop   context.CancelFunc
	done   chan error
}

// newMover prepares a mover that is not started.
func newMover(t *testing.T, m *manager, token string) *mover {
	w := &worker{release: make(chan struct{})}
	log := newWatched(t, "mover")
	return &mover{t: t, work: w, log: log, config: control.Config{
		Manager: m.address, Fingerprint: m.print, Token: token, Name: "m1", StateDir: filepath.Join(t.TempDir(), "state"), Log: slog.New(log),
		Facts:   func() *pb.Facts { return control.FactsOf([]string{"nbd"}, nil) },
		Open:    func(grpc.ClientConnInterface) agent.Mover { return w },
		Backoff: time.Second,
	}}
}

func (v *mover) start() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 2)
	v.stop, v.done = stop, done
	config := v.config
	go func() {
		err := control.Run(ctx, config)
		done <- err
		done <- err
	}()
	v.t.Cleanup(func() { stop(); <-done })
}

// end stops the mover and returns what Run said.
func (v *mover) end() error {
	v.stop()
	return <-v.done
}

// ends waits for the mover to end by itself.
func (v *mover) ends() error {
	v.t.Helper()
	select {
	case err := <-v.done:
		return err
	case <-time.After(patience):
		v.t.Fatal("the mover does not end")
		return nil
	}
}

// worker is an agent.Mover whose transfers last until they are released.
type worker struct {
	mu      sync.Mutex
	begun   []string
	ended   []string
	release chan struct{}
	fail    error
}

func (w *worker) Backup(ctx context.Context, task agent.BackupTask, progress func(transfer.Progress)) (agent.BackupResult, error) {
	w.mu.Lock()
	w.begun = append(w.begun, task.ID)
	release, fail := w.release, w.fail
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ended = append(w.ended, task.ID)
	}()
	progress(transfer.Progress{BytesTotal: 10, BytesRead: 1, Bottleneck: transfer.BottleneckSource, ETA: time.Second})
	select {
	case <-release:
		return agent.BackupResult{Result: transfer.Result{BytesTotal: 10, BytesRead: 7}}, fail
	case <-ctx.Done():
		return agent.BackupResult{}, ctx.Err()
	}
}

func (w *worker) Restore(context.Context, agent.RestoreTask, func(transfer.Progress)) (agent.RestoreResult, error) {
	return agent.RestoreResult{Result: transfer.Result{BytesTotal: 5, Verified: true}}, nil
}

// times returns how often a transfer was begun and ended.
func (w *worker) times(id string) (begun, ended int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return count(w.begun, id), count(w.ended, id)
}

func count(list []string, id string) (n int) {
	for _, x := range list {
		if x == id {
			n++
		}
	}
	return n
}

// watched is a log that tells of its messages.
type watched struct {
	name string
	mu   sync.Mutex
	seen []string
	news chan struct{}
	t    *testing.T
	over bool
}

func newWatched(t *testing.T, name string) *watched {
	w := &watched{name: name, news: make(chan struct{}), t: t}
	t.Cleanup(func() { w.mu.Lock(); defer w.mu.Unlock(); w.over = true })
	return w
}

func (w *watched) Enabled(context.Context, slog.Level) bool { return true }
func (w *watched) WithAttrs([]slog.Attr) slog.Handler       { return w }
func (w *watched) WithGroup(string) slog.Handler            { return w }
func (w *watched) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", w.name, r.Message)
	r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s=%v", a.Key, a.Value); return true })
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.t.Log(b.String())
	}
	w.seen = append(w.seen, r.Message)
	close(w.news)
	w.news = make(chan struct{})
	return nil
}

// await waits until a message was logged n times.
func (w *watched) await(message string, n int) {
	w.t.Helper()
	until(w.t, message, func() (bool, <-chan struct{}) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return count(w.seen, message) >= n, w.news
	})
}

// until waits until a condition holds; it is looked at again whenever the channel closes.
func until(t *testing.T, what string, holds func() (bool, <-chan struct{})) {
	t.Helper()
	limit := time.After(patience)
	for {
		ok, again := holds()
		if ok {
			return
		}
		select {
		case <-again:
		case <-limit:
			t.Fatalf("%s: it does not come", what)
		}
	}
}

// enrolled starts a manager and a mover that is connected to it.
func enrolled(t *testing.T, timing fleet.Timing) (*manager, *mover) {
	m := newManager(t, timing)
	v := newMover(t, m, m.token(fleet.NewToken{By: "admin"}))
	v.start()
	m.log.await("mover connected", 1)
	return m, v
}

func (m *manager) id() string {
	m.t.Helper()
	list, err := m.fleet.List(m.t.Context())
	check(m.t, err)
	if len(list) != 1 {
		m.t.Fatalf("%d movers", len(list))
	}
	return list[0].ID
}

func wantFault(t *testing.T, err error, kind fault.Kind, words string) {
	t.Helper()
	meaning, advice := fault.Explanation(err)
	if err == nil || fault.KindOf(err) != kind || !strings.Contains(err.Error(), words) {
		t.Errorf("error %v, want %v with %q", err, kind, words)
	} else if kind == fault.Denied && (meaning == "" || advice == "") {
		t.Errorf("%v does not explain itself", err)
	}
}
