package imageiotransport

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Options tune a disk. The zero value is good.
type Options struct {
	Connections  int           // per disk, where the daemon allows several; 0 means 4
	Attempts     int           // of one request that make no progress; 0 means 7
	Backoff      time.Duration // before the second attempt, then doubled up to 5 s; 0 means 100 ms
	StallTimeout time.Duration // of a read or write on which nothing moves; 0 means 2 minutes, and more where the daemon has to work first
	JournalBytes int           // written to a target between two flushes; 0 means 32 MiB
	KeepAlive    time.Duration // of no activity, then a byte is read; 0 means a third of what the platform allows
	Log          *slog.Logger  // nil logs nothing
}

const (
	maxBackoff = 5 * time.Second
	// patience is how much longer than for a read the daemon may be silent while it zeroes, flushes or lists extents.
	patience = 5
)

// link is the way to one image of a daemon: a pool of connections that heals.
type link struct {
	name   string // what errors call the disk
	places []place
	at     atomic.Int64 // index of the place that works
	path   string       // of the image, with the ticket
	ticket string
	size   int64
	has    features
	opened bool // has is known
	// unreadable is set when the ticket allows writing only.
	unreadable bool
	attempts   int
	backoff    time.Duration
	stall      time.Duration
	log        *slog.Logger

	clock    atomic.Int64 // ticks at every connection and every entry of a journal
	activity atomic.Int64 // requests that were answered

	closed context.Context // ends with close; the calls of io.ReaderAt and io.WriterAt have no context of their own
	cancel context.CancelFunc
	ended  sync.Once
	alive  sync.WaitGroup // the goroutine that keeps the ticket alive

	tokens chan struct{} // one for each request that may be under way
	mu     sync.Mutex
	idle   []*conn // the oldest first; no more than there are tokens
}

// open connects and learns what the daemon can do. writing asks for its limit of writers instead of that of readers.
func open(ctx context.Context, e hypervisors.Export, o Options, writing bool) (*link, error) {
	l, err := prepare(e, o)
	if err != nil {
		return nil, err
	}
	l.closed, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	l.tokens = make(chan struct{}, 1)
	l.tokens <- struct{}{}
	var has features
	err = l.do(ctx, false, func(ctx context.Context, c *conn) (err error) {
		has, err = l.options(ctx, c)
		return err
	})
	if err != nil {
		l.close()
		return nil, l.explain("open image transfer", err)
	}
	l.has, l.opened = has, true
	l.goLocal(ctx)
	limit := has.readers
	if writing {
		limit = has.writers
	}
	l.allow(min(cmp.Or(max(o.Connections, 0), 4), limit))
	return l, nil
}

func prepare(e hypervisors.Export, o Options) (*link, error) {
	if e.Transport != hypervisors.TransportImageio || e.Imageio == nil {
		return nil, fault.New(fault.Invalid, "open image transfer", e.Name, "its transport is %q, or it has no URL", e.Transport)
	}
	if e.SizeBytes <= 0 {
		return nil, fault.New(fault.Invalid, "open image transfer", e.Name, "%d bytes", e.SizeBytes)
	}
	l := &link{
		name: e.Name, size: e.SizeBytes, attempts: o.Attempts, backoff: o.Backoff, stall: o.StallTimeout,
		log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
	}
	if l.attempts <= 0 {
		l.attempts = 7
	}
	if l.backoff <= 0 {
		l.backoff = 100 * time.Millisecond
	}
	if l.stall <= 0 {
		l.stall = 2 * time.Minute
	}
	var err error
	l.places, l.path, err = places(*e.Imageio)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "open image transfer", e.Name, err)
	}
	l.ticket = strings.TrimPrefix(l.path, imagesPath)
	return l, nil
}

// allow lets so many requests be under way at once. It is called before others use the link.
func (l *link) allow(n int) {
	l.tokens = make(chan struct{}, n)
	for range n {
		l.tokens <- struct{}{}
	}
}

// close ends the link and returns when all its connections are closed; calls under way fail. It may be repeated.
func (l *link) close() {
	l.cancel()
	l.ended.Do(func() {
		for range cap(l.tokens) {
			<-l.tokens
		}
		l.alive.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, c := range l.idle {
			c.close()
		}
		l.idle = nil
	})
}

// take returns a connection that waits for work, the oldest or the newest one, or nil if there is none.
func (l *link) take(oldest bool) *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.idle)
	if n == 0 {
		return nil
	}
	i := n - 1
	if oldest {
		i = 0
	}
	c := l.idle[i]
	l.idle = append(l.idle[:i], l.idle[i+1:]...)
	return c
}

// put takes a connection back.
func (l *link) put(c *conn) {
	if c.broken {
		c.close()
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := len(l.idle)
	for i > 0 && l.idle[i-1].born > c.born {
		i--
	}
	l.idle = append(l.idle[:i], append([]*conn{c}, l.idle[i:]...)...)
}

// progressError is an error after which some of the work is done, so that attempts count anew.
type progressError struct{ err error }

func (e *progressError) Error() string { return e.err.Error() }
func (e *progressError) Unwrap() error { return e.err }

// do runs op on a connection, and again, on another one, when the connection broke or the daemon could not do it just now. Whatever
// op does must be idempotent. oldest asks for the connection that lives longest.
func (l *link) do(ctx context.Context, oldest bool, op func(ctx context.Context, c *conn) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.closed, cancel)()
	tokens := l.tokens
	select {
	case <-tokens:
	case <-ctx.Done():
		return l.ending(ctx)
	}
	defer func() { tokens <- struct{}{} }()
	wait := l.backoff
	for try := 1; ; try++ {
		if ctx.Err() != nil {
			return l.ending(ctx)
		}
		stale, err := l.attempt(ctx, oldest, op)
		if err == nil {
			l.activity.Add(1)
			return nil
		}
		if ctx.Err() != nil {
			return l.ending(ctx)
		}
		if !again(err) {
			return err
		}
		if stale { // the daemon had hung up while nothing was asked; there are only so many such connections
			try--
			continue
		}
		if _, ok := errors.AsType[*progressError](err); ok {
			try, wait = 0, l.backoff
			continue
		}
		if try >= l.attempts {
			return err
		}
		l.log.Warn("a request of an image transfer did not work, trying again", "disk", l.name, "attempt", try, "err", l.scrub(err))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, maxBackoff)
	}
}

// attempt runs op once. stale says that it failed on a connection which had worked before and now gave no answer at all.
func (l *link) attempt(ctx context.Context, oldest bool, op func(ctx context.Context, c *conn) error) (stale bool, err error) {
	c := l.take(oldest)
	waited := c != nil
	if !waited {
		if c, err = l.connect(ctx); err != nil {
			return false, err
		}
	}
	answers := c.answers
	err = op(ctx, c)
	l.put(c)
	_, lost := errors.AsType[*lostError](err)
	return lost && waited && c.answers == answers, err
}

// ending is the error of what was cut short.
func (l *link) ending(ctx context.Context) error {
	if l.closed.Err() != nil {
		return fault.New(fault.Canceled, "use disk", l.name, "it is closed")
	}
	return ctx.Err()
}

// again says whether an error may be gone at the next attempt.
func again(err error) bool {
	if _, lost := errors.AsType[*lostError](err); lost {
		return true
	}
	if s, ok := errors.AsType[*statusError](err); ok {
		return s.code >= 500 && s.code != 501 || s.code == 408 || s.code == 429
	}
	_, unreachable := errors.AsType[*dialError](err)
	return unreachable
}

// keepAlive reads a byte whenever nothing else was asked for some time: the platform ends a transfer that is idle.
func (l *link) keepAlive(every time.Duration) {
	l.alive.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for seen := l.activity.Load(); ; seen = l.activity.Load() {
			select {
			case <-tick.C:
			case <-l.closed.Done():
				return
			}
			if l.activity.Load() != seen {
				continue
			}
			err := l.touch(l.closed)
			if err != nil && l.closed.Err() == nil {
				l.log.Warn("an image transfer could not be kept alive", "disk", l.name, "err", l.scrub(err))
			}
			if s, ok := errors.AsType[*statusError](err); ok && s.code == http.StatusForbidden {
				return // there is nothing left to keep
			}
		}
	})
}

// touch is an activity that changes nothing. A ticket that does not even allow reading is asked for its options, which not every
// daemon counts.
func (l *link) touch(ctx context.Context) error {
	if !l.unreadable {
		_, err := l.readSize(ctx)
		return err
	}
	return l.do(ctx, false, func(ctx context.Context, c *conn) error {
		_, err := l.options(ctx, c)
		return err
	})
}

// interval is how often to keep a transfer alive.
func (o Options) interval(e hypervisors.Imageio) time.Duration {
	if o.KeepAlive > 0 {
		return o.KeepAlive
	}
	return time.Duration(cmp.Or(max(e.InactivitySeconds, 0), 60)) * time.Second / 3
}
