package imageio

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Ticket opens one image for those who know its id.
type Ticket struct {
	ID         string
	TransferID string // that errors and logs name instead of the ticket
	Backend    Backend
	SizeBytes  int64 // what the ticket allows; the backend may have more
	Write      bool  // allows writing, and reading as well; else reading only
	Dirty      bool  // the backend knows what changed
	// Timeout is how long the ticket lives after the last operation; 0 means 300 s.
	Timeout time.Duration
	// InactivityTimeout is how long a connection may stall; 0 means 60 s.
	InactivityTimeout time.Duration
	// Volatile keeps what is written in memory until it is flushed, so that Crash can lose it.
	Volatile bool
}

// TicketInfo is what the daemon knows of a ticket.
type TicketInfo struct {
	Active      bool // operations are under way
	Canceled    bool
	Connections int           // that have used it and are open
	IdleTime    time.Duration // since the last operation; 0 while one is under way
	Expires     time.Time
	Transferred int64 // bytes; of ranges that were read or written several times each one
}

// ticket is one that was added.
type ticket struct {
	Ticket
	now func() time.Time

	mu       sync.Mutex
	expires  time.Time
	accessed time.Time
	canceled bool
	ongoing  int
	cancel   context.CancelFunc // of operations under way
	ctx      context.Context
	unused   chan struct{} // closed when the last operation of a canceled ticket has ended
	conns    map[*timedConn]bool
	done     ranges
}

func newTicket(t Ticket, now func() time.Time) *ticket {
	if t.Timeout <= 0 {
		t.Timeout = 300 * time.Second
	}
	if t.InactivityTimeout <= 0 {
		t.InactivityTimeout = 60 * time.Second
	}
	if t.Volatile {
		t.Backend = newVolatile(t.Backend)
	}
	out := &ticket{Ticket: t, now: now, unused: make(chan struct{}), conns: map[*timedConn]bool{}}
	out.ctx, out.cancel = context.WithCancel(context.Background())
	out.touch()
	return out
}

// refusal is the text of a 403, behind the usual beginning.
type refusal string

func (r refusal) Error() string { return string(r) }

// may says why the ticket does not allow an operation now.
func (t *ticket) may(writing bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	op := "read"
	if writing {
		op = "write"
	}
	switch {
	case t.canceled:
		return refusal(fmt.Sprintf("Transfer=%s was canceled", t.TransferID))
	case !t.now().Before(t.expires):
		return refusal(fmt.Sprintf("Transfer=%s expired", t.TransferID))
	case writing && !t.Write:
		return refusal(fmt.Sprintf("Transfer=%s forbids %s", t.TransferID, op))
	}
	return nil
}

// begin registers an operation of a range; the ticket lives while it is under way.
func (t *ticket) begin(c *timedConn) (ctx context.Context, end func(off, n int64) error, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.canceled {
		return nil, nil, refusal(fmt.Sprintf("Transfer %s was canceled", t.TransferID))
	}
	t.ongoing++
	if c != nil {
		t.conns[c] = true
	}
	return t.ctx, t.end, nil
}

func (t *ticket) end(off, n int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ongoing--
	if t.canceled {
		if t.ongoing == 0 {
			close(t.unused)
		}
		return refusal(fmt.Sprintf("Transfer %s was canceled", t.TransferID))
	}
	t.done.add(off, n)
	t.touchLocked()
	return nil
}

func (t *ticket) touch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.touchLocked()
}

func (t *ticket) touchLocked() {
	t.accessed = t.now()
	t.expires = t.accessed.Add(t.Timeout)
}

// left forgets a connection that was closed.
func (t *ticket) left(c *timedConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
}

func (t *ticket) info() TicketInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := TicketInfo{
		Active: t.ongoing > 0, Canceled: t.canceled, Connections: len(t.conns), Expires: t.expires, Transferred: t.done.sum(),
	}
	if !i.Active {
		i.IdleTime = t.now().Sub(t.accessed)
	}
	return i
}

// remove cancels what is under way and waits for its end.
func (t *ticket) remove(ctx context.Context) error {
	t.mu.Lock()
	if !t.canceled {
		t.canceled = true
		t.cancel()
		if t.ongoing == 0 {
			close(t.unused)
		}
	}
	t.mu.Unlock()
	select {
	case <-t.unused:
		return nil
	case <-ctx.Done():
		return fault.New(fault.Conflict, "remove ticket of transfer", t.TransferID, "operations are still under way")
	}
}

// ranges are the parts of an image that were transferred, sorted, without overlaps.
type ranges []span

type span struct{ from, to int64 }

func (r *ranges) add(off, n int64) {
	if n <= 0 {
		return
	}
	s := span{off, off + n}
	var out ranges
	for _, o := range *r {
		switch {
		case o.to < s.from:
			out = append(out, o)
		case s.to < o.from:
			out = append(out, s)
			s = o
		default:
			s = span{min(s.from, o.from), max(s.to, o.to)}
		}
	}
	*r = append(out, s)
}

func (r ranges) sum() (n int64) {
	for _, s := range r {
		n += s.to - s.from
	}
	return n
}
