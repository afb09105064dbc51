package nbdtransport

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Options tune a disk. The zero value is good.
type Options struct {
	Connections  int           // per disk, where the server allows several; 0 means 4
	Attempts     int           // to connect anew, and connections in a row on which nothing works; 0 means 7
	Backoff      time.Duration // before the second attempt, then doubled up to 5 s; 0 means 100 ms
	StallTimeout time.Duration // see nbd.Config
	JournalBytes int           // written to a target between two flushes; 0 means 32 MiB
	Log          *slog.Logger  // nil logs nothing
}

const maxBackoff = 5 * time.Second

// link is a connection to an export that heals.
type link struct {
	cfg      nbd.Config
	info     nbd.Info
	attempts int
	backoff  time.Duration
	log      *slog.Logger
	// restore is called with each new client before others may use it.
	restore func(ctx context.Context, c *nbd.Client) error

	closed context.Context // ends with close; the calls of io.ReaderAt and io.WriterAt have no context of their own
	cancel context.CancelFunc

	progress atomic.Int64  // operations that worked
	healing  chan struct{} // holds one token: the right to reconnect
	seen     int64         // progress at the last reconnect; the token's
	barren   int           // reconnects since then; the token's

	mu         sync.Mutex
	client     *nbd.Client
	generation int
	err        error // why there will be no further client
	past       nbd.Stats
}

// open connects for the first time.
func open(ctx context.Context, e hypervisors.Export, o Options, contexts []string) (*link, error) {
	cfg, err := config(e, o, contexts)
	if err != nil {
		return nil, err
	}
	c, err := nbd.Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if info := c.Info(); e.SizeBytes != 0 && info.Size != e.SizeBytes {
		_ = c.Close()
		return nil, fault.New(fault.Conflict, "open export", e.Name, "it has %d bytes, the platform said %d", info.Size, e.SizeBytes).Explain(
			"The disk that the server exports has another size than the disk that was frozen.",
			"Start the task again; if it happens again, the disk was resized under way or the address is wrong.")
	}
	l := &link{
		cfg: cfg, info: c.Info(), client: c, attempts: o.Attempts, backoff: o.Backoff, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		restore: func(context.Context, *nbd.Client) error { return nil }, healing: make(chan struct{}, 1),
	}
	if l.attempts <= 0 {
		l.attempts = 7
	}
	if l.backoff <= 0 {
		l.backoff = 100 * time.Millisecond
	}
	l.closed, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	l.healing <- struct{}{}
	return l, nil
}

func config(e hypervisors.Export, o Options, contexts []string) (nbd.Config, error) {
	cfg := nbd.Config{
		Network: e.Network, Address: e.Address, Export: e.Name, Contexts: contexts, Connections: o.Connections, StallTimeout: o.StallTimeout,
	}
	if e.Transport != hypervisors.TransportNBD {
		return cfg, fault.New(fault.Invalid, "open export", e.Name, "its transport is %q, not NBD", e.Transport)
	}
	if e.TLS == nil {
		return cfg, nil
	}
	var err error
	cfg.TLS, err = tlsConfig(*e.TLS)
	return cfg, err
}

func tlsConfig(t hypervisors.TLS) (*tls.Config, error) {
	const meaning, advice = "The certificates for the connection to the hypervisor cannot be used.", "Check the files that the connection names."
	pem, err := os.ReadFile(t.CAFile)
	if err != nil {
		return nil, fault.Context("read CA", t.CAFile, err).Explain(meaning, advice)
	}
	cfg := &tls.Config{ServerName: t.ServerName, RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.Invalid, "read CA", t.CAFile, "no certificate in it").Explain(meaning, advice)
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, "read certificate", t.CertFile, err).Explain(meaning, advice)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// close ends the link; calls under way return soon. It may be repeated.
func (l *link) close() {
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = fault.Wrap(fault.Canceled, "use disk", l.cfg.Export, nbd.ErrClosed)
	}
	_ = l.client.Close()
}

// current returns the client to use and its generation.
func (l *link) current() (*nbd.Client, int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.client, l.generation, l.err
}

// stats adds up all clients there were.
func (l *link) stats() nbd.Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return sum(l.past, l.client.Stats())
}

func sum(a, b nbd.Stats) nbd.Stats {
	return nbd.Stats{
		Reads: a.Reads + b.Reads, Writes: a.Writes + b.Writes, Zeroes: a.Zeroes + b.Zeroes, Flushes: a.Flushes + b.Flushes,
		Statuses: a.Statuses + b.Statuses, BytesRead: a.BytesRead + b.BytesRead, BytesWritten: a.BytesWritten + b.BytesWritten,
	}
}

// lost reports whether a request failed for its connection and not for itself.
func lost(err error) bool {
	return errors.Is(err, nbd.ErrConnectionLost) || errors.Is(err, nbd.ESHUTDOWN)
}

// do runs op, and again on a new connection whenever one breaks. Whatever op does must be idempotent.
func (l *link) do(ctx context.Context, op func(c *nbd.Client) error) error {
	for {
		c, generation, err := l.current()
		if err != nil {
			return err
		}
		if err = op(c); err == nil {
			l.progress.Add(1)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if l.closed.Err() != nil {
			return fault.Wrap(fault.Canceled, "use disk", l.cfg.Export, nbd.ErrClosed)
		}
		if errors.Is(err, nbd.ErrClosed) { // another goroutine has replaced the client
			err = nil
		} else if !lost(err) {
			return err
		}
		if err := l.heal(ctx, generation, err); err != nil {
			return err
		}
	}
}

// heal makes a new connection unless another goroutine has done so since generation.
func (l *link) heal(ctx context.Context, generation int, cause error) error {
	select {
	case <-l.healing:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { l.healing <- struct{}{} }()
	old, now, err := l.current()
	if err != nil || now != generation {
		return err
	}
	_ = old.Close()
	if p := l.progress.Load(); p != l.seen {
		l.seen, l.barren = p, 0
	}
	c, err := (*nbd.Client)(nil), errors.New("the connection breaks again and again")
	if l.barren++; l.barren <= l.attempts {
		c, err = l.reconnect(ctx, cause)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err() // the next caller tries again
	case l.closed.Err() != nil:
		if err == nil {
			_ = c.Close()
		}
		return fault.Wrap(fault.Canceled, "use disk", l.cfg.Export, nbd.ErrClosed)
	case err != nil:
		l.err = l.gone(err)
		return l.err
	}
	l.past = sum(l.past, old.Stats())
	l.client, l.generation = c, l.generation+1
	return nil
}

// reconnect tries to connect until it works, it makes no sense, or all attempts are used.
func (l *link) reconnect(ctx context.Context, cause error) (*nbd.Client, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.closed, cancel)()
	wait := l.backoff
	err := cause
	for try := 1; try <= l.attempts; try++ {
		l.log.Warn("connection to the disk broke, connecting anew", "disk", l.cfg.Export, "attempt", try, "err", err)
		var c *nbd.Client
		if c, err = l.connect(ctx); err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !fault.Retryable(err) {
			return nil, err
		}
		if try == l.attempts {
			break
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		wait = min(2*wait, maxBackoff)
	}
	return nil, err
}

// connect makes one attempt. The export must be the one we know.
func (l *link) connect(ctx context.Context) (*nbd.Client, error) {
	c, err := nbd.Dial(ctx, l.cfg)
	if err != nil {
		return nil, err
	}
	if now := c.Info(); !same(l.info, now) {
		_ = c.Close()
		return nil, fault.New(fault.Conflict, "connect anew to", l.cfg.Export, "the export is another one now: %+v, was %+v", now, l.info)
	}
	if err := l.restore(ctx, c); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func same(a, b nbd.Info) bool {
	contexts := slices.Equal(a.Contexts, b.Contexts)
	a.Contexts, b.Contexts = nil, nil
	return contexts && a.Size == b.Size && a.Description == b.Description && a.ReadOnly == b.ReadOnly && a.Structured == b.Structured &&
		a.MinBlock == b.MinBlock && a.MaxBlock == b.MaxBlock && a.CanFlush == b.CanFlush
}

// gone says in words that the server will not come back.
func (l *link) gone(cause error) error {
	e := fault.Wrap(fault.Transient, "connect anew to", l.cfg.Export+" at "+l.cfg.Address, cause)
	return e.Explain("The server that exports the disk is gone or exports something else now, so this transfer cannot be finished.",
		"Check that the VM and its host are running and reachable, then start the task again.")
}
