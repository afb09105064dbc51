// Package control is the mover's side of the control protocol (api/mover): it enrols the mover with its manager, keeps
// its certificate new, and carries tasks over one stream that the mover dials.
//
// It moves no data: an agent.Mover does, and transfers go on while the stream is broken. Its invariants: the mover's key
// never leaves its machine; nothing secret is sent before the manager's certificate was checked against the fingerprint;
// a task is begun once, and its result is kept until the manager has it.
package control

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Config of Run.
type Config struct {
	Manager     string // host:port of the manager's listener for movers
	Fingerprint string // SHA-256 of the manager's CA certificate, hexadecimal, with or without "sha256:"
	Token       string // join token; needed as long as StateDir has no identity, ignored afterwards
	Name        string // wished for; "" is the host's
	StateDir    string // keeps the identity; made with mode 0700
	Slots       int    // transfers at once; 0 is 4
	Facts       func() *pb.Facts
	// Open makes the mover that does the work. Its way to the repositories is conn, which reconnects by itself, and shows
	// the newest certificate in calls that begin after that has come.
	Open func(conn grpc.ClientConnInterface) agent.Mover
	Log  *slog.Logger
	// ReadLimit, which may be nil, is told how many bytes a second all transfers together may read from, or write to, the
	// platform's disks; 0 is no limit. What goes to the manager over conn is limited here.
	ReadLimit func(bytes int64)

	// Orphaned is how long transfers go on without a manager; 0 is 15 min.
	Orphaned time.Duration
	// Backoff is the longest pause between two attempts to connect; 0 is 30 s.
	Backoff time.Duration
}

func (c *Config) check() error {
	print, err := hex.DecodeString(strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(c.Fingerprint, "sha256:"), ":", "")))
	if err != nil || len(print) != 32 {
		return fault.New(fault.Invalid, "read configuration", "", "the fingerprint %q is no SHA-256", c.Fingerprint).Explain(
			"Without the fingerprint of the manager's authority the mover cannot tell the manager from an impostor.",
			"Copy the whole line that `cairn mover token` printed.")
	}
	c.Fingerprint = hex.EncodeToString(print)
	if c.Manager == "" {
		return fault.New(fault.Invalid, "read configuration", "", "no manager is named").Explain(
			"The mover has to know the manager's address.", "Copy the whole line that `cairn mover token` printed.")
	}
	if c.Slots == 0 {
		c.Slots = 4
	}
	if c.Orphaned == 0 {
		c.Orphaned = 15 * time.Minute
	}
	if c.Backoff == 0 {
		c.Backoff = 30 * time.Second
	}
	return nil
}

// ErrDismissed is in the chain of Run's error when the manager wants nothing of this process, now or later: its mover was
// revoked or removed, another process has taken its place, or its join token is no good. Whoever starts it again before
// somebody has changed something does harm.
var ErrDismissed = errors.New("the manager wants nothing of this mover")

// Run enrols the mover if need be and works until ctx ends, which is no error. It returns an error only for what waiting
// does not mend: ErrDismissed, an expired certificate, another manager than the one that was named.
func Run(ctx context.Context, c Config) error {
	if err := c.check(); err != nil {
		return err
	}
	m := &machine{Config: c, incarnation: newIncarnation()}
	i, err := m.loadOrEnrol(ctx)
	if err != nil {
		return quiet(ctx, err)
	}
	m.identity.Store(i)
	data := m.dialer()
	data.limit = &m.network
	m.data = &dataConn{dial: data.connect}
	if err := m.data.redial(); err != nil {
		return err
	}
	defer m.data.close()
	m.table = newTable(c.Open(m.data), c.Slots, c.Log)
	defer m.table.stop()
	err = m.stay(ctx)
	if ctx.Err() != nil {
		c.Log.InfoContext(ctx, "ending, as it was asked to", "running", m.table.count())
	}
	return quiet(ctx, err)
}

// quiet makes of an end that was asked for no error.
func quiet(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || fault.KindOf(err) == fault.Canceled) {
		return nil
	}
	return err
}

// machine is a running mover.
type machine struct {
	Config
	incarnation string
	identity    atomic.Pointer[identity]
	data        *dataConn
	network     throttle // of data
	table       *table
	orphaned    *time.Timer // runs while there is no stream
}

// stay keeps a stream to the manager.
func (m *machine) stay(ctx context.Context) error {
	pause := &pause{longest: m.Backoff}
	m.orphaned = time.AfterFunc(m.Orphaned, m.table.cancelAll)
	defer func() { m.orphaned.Stop() }()
	for {
		worked, err := m.attach(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if final(err) && !errors.Is(err, errImpostor) { // who can put himself in between must not end movers for good
			return dismissal(err)
		}
		if worked {
			pause.reset()
			m.orphaned.Reset(m.Orphaned)
		}
		wait := pause.next()
		if errors.Is(err, errRenewed) {
			wait = 0
		} else {
			m.Log.WarnContext(ctx, "control stream ended; it will be opened again",
				"manager", m.Manager, "running", m.table.count(), "in", wait, "err", err)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		if err := m.renewIfDue(ctx); err != nil {
			return err
		}
	}
}

// final reports whether trying again is of no use.
func final(err error) bool {
	switch fault.KindOf(err) {
	case fault.Denied, fault.Invalid, fault.Unsupported:
		return true
	default:
		return errors.Is(err, errSuperseded)
	}
}

// dismissal marks a final error that came from the manager itself.
func dismissal(err error) error {
	if kind := fault.KindOf(err); kind != fault.Denied && !errors.Is(err, errSuperseded) || errors.Is(err, errImpostor) {
		return err
	}
	return dismissed{err}
}

// dismissed has the words, kind and explanation of its error.
type dismissed struct{ error }

// Unwrap makes it one of its error and ErrDismissed.
func (d dismissed) Unwrap() []error { return []error{d.error, ErrDismissed} }

// pause grows with every failure, by chance a little less: movers must not all come back in the same moment.
type pause struct {
	longest time.Duration
	last    time.Duration
}

func (p *pause) reset() { p.last = 0 }

func (p *pause) next() time.Duration {
	p.last = min(p.longest, max(200*time.Millisecond, 2*p.last))
	return p.last/2 + rand.N(p.last/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
