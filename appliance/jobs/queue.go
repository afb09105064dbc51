package jobs

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Handler does the work of a task. When ctx is cancelled it returns soon, after a clean-up with a context of its own.
// A nil error means the task succeeded, with a warning if there was one.
type Handler func(ctx context.Context, t *Task) error

// Publisher passes on what happens. Its methods do not block.
type Publisher interface {
	PublishTask(catalog.Task)
	PublishRun(catalog.Run, []catalog.Task)
	PublishRunEvent(catalog.Event)
}

// Options of New.
type Options struct {
	Catalog  *catalog.Catalog
	Journal  *Journal
	Handlers map[catalog.RunKind]Handler
	Publish  Publisher
	Log      *slog.Logger
	Workers  int // tasks at once; 0 is 4
}

// Queue runs tasks.
type Queue struct {
	catalog  *catalog.Catalog
	journal  *Journal
	handlers map[catalog.RunKind]Handler
	publish  Publisher
	log      *slog.Logger
	client   *river.Client[*sql.Tx]

	stopping atomic.Bool
	mu       sync.Mutex
	running  map[string]context.CancelCauseFunc
	before   map[string]catalog.Secret // of tasks to be taken up
	ready    map[string]bool           // repositories whose tasks may begin here
	leads    bool
	taking   sync.Mutex                // one TakeOver at a time
	adopted  map[string][]catalog.Task // and not settled yet, by repository; under taking
	sweeping chan struct{}             // one token: one sweep at a time
	places   chan struct{}             // a token for each task that runs
}

// What the contexts of tasks are cancelled with.
var (
	errCancelled = errors.New("the task was cancelled")
	errStopping  = errors.New("the manager is stopping")
	errLost      = errors.New("the manager has lost the database")
)

// pollEvery is how soon a task that was queued is noticed. The queue looks: SQLite tells nobody, and what the drivers for
// database/sql are told, they do not hear.
const pollEvery = 250 * time.Millisecond

// When River may deliver a job again that it believes stuck. It does no harm: the task is claimed. Where there are several
// managers it helps: what one of them had fetched and could neither begin nor give back comes again.
const (
	rescueAfter       = 24 * time.Hour
	rescueSharedAfter = time.Minute
)

// snooze is how long a job is put off that this manager cannot begin yet.
const snooze = time.Second

type jobArgs struct {
	TaskID string `json:"task_id"`
}

// Kind is the name River stores.
func (jobArgs) Kind() string { return "task" }

type worker struct {
	river.WorkerDefaults[jobArgs]
	q *Queue
}

// Work does a task. What becomes of it is in its row; River sees an error only when the row could not be read.
func (w *worker) Work(ctx context.Context, job *river.Job[jobArgs]) error {
	return w.q.work(ctx, job.Args.TaskID)
}

// Timeout is none: a task takes as long as its disks need.
func (w *worker) Timeout(*river.Job[jobArgs]) time.Duration { return -1 }

// New makes a queue and its tables.
func New(ctx context.Context, o Options) (*Queue, error) {
	q := &Queue{
		catalog: o.Catalog, journal: o.Journal, handlers: o.Handlers, publish: o.Publish, log: o.Log,
		running: map[string]context.CancelCauseFunc{}, before: map[string]catalog.Secret{}, sweeping: make(chan struct{}, 1),
		ready: map[string]bool{}, adopted: map[string][]catalog.Task{}, leads: !o.Catalog.Shared(),
	}
	if o.Workers == 0 {
		o.Workers = 4
	}
	q.places = make(chan struct{}, o.Workers)
	var driver riverdriver.Driver[*sql.Tx] = riversqlite.New(o.Catalog.DB())
	rescue, queues := rescueAfter, map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: o.Workers}}
	if o.Catalog.Shared() {
		driver, rescue = riverdatabasesql.New(o.Catalog.DB()), rescueSharedAfter
		if own := o.Catalog.ManagerID(); own != "" {
			queues[own] = river.QueueConfig{MaxWorkers: o.Workers}
		}
	}
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: quiet(o.Log)})
	if err != nil {
		return nil, fault.Context("prepare queue", "", err)
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, fault.Context("create tables of queue", "", err)
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker{q: q})
	q.client, err = river.NewClient(driver, &river.Config{
		ID:                   o.Catalog.ManagerID(),
		Queues:               queues,
		PollOnly:             true,
		Workers:              workers,
		Logger:               quiet(o.Log),
		JobTimeout:           -1,
		RescueStuckJobsAfter: rescue,
		FetchCooldown:        50 * time.Millisecond,
		FetchPollInterval:    pollEvery,
	})
	if err != nil {
		return nil, fault.Context("prepare queue", "", err)
	}
	return q, nil
}

// firstSweep bounds the sweep before the first task: a platform that does not answer must not keep others waiting.
const firstSweep = 15 * time.Second

// Start begins to work. Where there can be no other manager it first brings the tasks of one that was killed to their end,
// and sweeps once; where there can be, TakeOver does the first, for what falls to this one.
func (q *Queue) Start(ctx context.Context) error {
	if !q.catalog.Shared() {
		if err := q.reconcile(ctx); err != nil {
			return err
		}
		first, done := context.WithTimeout(ctx, firstSweep)
		_, err := q.Sweep(first)
		q.complain(ctx, "something could not be cleaned up; it will be tried again", "", err)
		done()
	}
	if err := q.client.Start(context.WithoutCancel(ctx)); err != nil {
		return fault.Context("start queue", "", err)
	}
	return nil
}

// Stop cancels what is running, waits until it has cleaned up, at most until ctx ends, and stops working. Tasks that
// are queued stay queued.
func (q *Queue) Stop(ctx context.Context) error {
	return q.stop(ctx, errStopping)
}

// Abandon is Stop for a manager that has lost the database: it ends what it does at once, and stores and removes nothing
// more, because all that is for the others now.
func (q *Queue) Abandon(ctx context.Context) error { return q.stop(ctx, errLost) }

func (q *Queue) stop(ctx context.Context, cause error) error {
	q.stopping.Store(true)
	q.mu.Lock()
	for _, cancel := range q.running {
		cancel(cause)
	}
	q.mu.Unlock()
	if err := q.client.StopAndCancel(ctx); err != nil {
		return fault.Context("stop queue", "", err)
	}
	return nil
}

// Submit queues a run with its tasks. A Conflict means that one of their subjects is being worked on. When the run's
// request is a repetition, run becomes the known one and the answer is true.
func (q *Queue) Submit(ctx context.Context, run *catalog.Run, tasks ...*catalog.Task) (replayed bool, err error) {
	replayed, err = q.catalog.CreateRun(ctx, run, tasks, q.enqueue)
	if err != nil || replayed {
		return replayed, err
	}
	q.publishRun(ctx, run.ID)
	return false, nil
}

// enqueue queues a task for the manager that it is for, or for any.
func (q *Queue) enqueue(ctx context.Context, tx *sql.Tx, t catalog.Task) (int64, error) {
	res, err := q.client.InsertTx(ctx, tx, jobArgs{TaskID: t.ID}, &river.InsertOpts{Queue: t.ManagerID})
	if err != nil {
		return 0, fault.Context("queue task", t.ID, err)
	}
	return res.Job.ID, nil
}

// Cancel asks a task to stop and returns at once. A Conflict means that it is over.
func (q *Queue) Cancel(ctx context.Context, taskID string) (catalog.Task, error) {
	t, err := q.catalog.RequestCancel(ctx, taskID)
	if err != nil {
		return t, err
	}
	q.CancelHere(taskID)
	q.event(ctx, catalog.Event{RunID: t.RunID, TaskID: t.ID, Level: catalog.LevelInfo, Message: "Cancelling was asked for."})
	q.publish.PublishTask(t)
	q.publishRun(ctx, t.RunID)
	return t, nil
}

// CancelHere ends a task for which cancelling was asked, if this manager runs it.
func (q *Queue) CancelHere(taskID string) {
	q.mu.Lock()
	cancel := q.running[taskID]
	q.mu.Unlock()
	if cancel != nil {
		cancel(errCancelled)
	}
}

// work claims a task, does it and brings it to its end.
func (q *Queue) work(ctx context.Context, id string) error {
	select {
	case q.places <- struct{}{}:
		defer func() { <-q.places }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	q.mu.Lock()
	if q.running[id] != nil {
		q.mu.Unlock()
		return nil // the job was delivered twice
	}
	q.running[id] = cancel // before the claim, so that no cancelling falls between the two
	before := q.before[id]
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.running, id)
		q.mu.Unlock()
	}()
	if q.stopping.Load() {
		return errStopping // it stays queued
	}
	t, err := q.claim(ctx, id, before)
	switch {
	case err == nil:
	case errors.Is(err, catalog.ErrElsewhere), errors.Is(err, errNotReady), errors.Is(err, catalog.ErrBuried):
		return q.pass(ctx, id, err)
	case fault.KindOf(err) == fault.Conflict, fault.KindOf(err) == fault.NotFound:
		return nil // cancelled or done already
	default:
		return q.later(ctx, id, err)
	}
	q.mu.Lock()
	delete(q.before, id)
	q.mu.Unlock()
	q.publish.PublishTask(t.Task)
	q.publishRun(ctx, t.RunID)
	err = q.handle(ctx, t)
	if errors.Is(context.Cause(ctx), errLost) {
		return nil
	}
	if errors.Is(err, ErrLeft) {
		t.Event(ctx, "The manager stops; the task goes on when it is started again.")
		return nil
	}
	q.finish(ctx, t, err)
	return nil
}

// handle calls the handler; a panic in it fails the task, not the manager.
func (q *Queue) handle(ctx context.Context, t *Task) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "run task", t.ID, "panic: %v", p)
		}
	}()
	h, ok := q.handlers[t.Kind]
	if !ok {
		return fault.New(fault.Unsupported, "run task", t.ID, "there is no %q", t.Kind)
	}
	return h(ctx, t)
}

// complain logs an error of something that is not worth failing a task for.
func (q *Queue) complain(ctx context.Context, message, taskID string, err error) {
	if err != nil {
		q.log.WarnContext(ctx, message, "task_id", taskID, "err", err)
	}
}

func (q *Queue) event(ctx context.Context, e catalog.Event) {
	if err := q.catalog.AddEvent(context.WithoutCancel(ctx), &e); err != nil {
		q.complain(ctx, "event was not stored: "+e.Message, e.TaskID, err)
		return
	}
	q.publish.PublishRunEvent(e)
}

func (q *Queue) publishRun(ctx context.Context, id string) {
	ctx = context.WithoutCancel(ctx)
	run, err := q.catalog.Run(ctx, id)
	if err == nil {
		var tasks catalog.List[catalog.Task]
		if tasks, err = q.catalog.Tasks(ctx, catalog.TaskFilter{RunID: id}, catalog.Page{Limit: catalog.MaxLimit}); err == nil {
			q.publish.PublishRun(run, tasks.Items)
			return
		}
	}
	q.log.WarnContext(ctx, "run was not published", "run_id", id, "err", err)
}

// quiet lets River log what is a problem and nothing else.
func quiet(log *slog.Logger) *slog.Logger { return slog.New(warnOnly{log.Handler()}) }

type warnOnly struct{ slog.Handler }

// Enabled is true for warnings and worse.
func (h warnOnly) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.Handler.Enabled(ctx, l)
}

// WithAttrs keeps the limit.
func (h warnOnly) WithAttrs(a []slog.Attr) slog.Handler { return warnOnly{h.Handler.WithAttrs(a)} }

// WithGroup keeps the limit.
func (h warnOnly) WithGroup(g string) slog.Handler { return warnOnly{h.Handler.WithGroup(g)} }
