package kvm

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
)

// conn is one connection to a libvirt daemon, dialled when first needed and again after it was lost.
type conn struct {
	uri      string // complete, with the paths of private files
	name     string // as configured, for messages
	user     string
	password string
	confirm  hypervisors.ConfirmHost // nil takes any host
	log      *slog.Logger

	dialing sync.Mutex // held while dialling, so that two callers do not dial twice
	mu      sync.Mutex
	c       *libvirt.Connect
	closed  bool
	calls   sync.WaitGroup // libvirt calls under way, also those nobody waits for any more
}

// startEvents runs libvirt's event loop, which keepalive and the discovery of dead connections need. libvirt has
// one loop a process and no way to stop it.
var startEvents = sync.OnceValue(func() error {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return err
	}
	// Without a timer the loop would sleep in poll for ever when a handle is added by another thread too early.
	if _, err := libvirt.EventAddTimeout(1000, func(int) {}); err != nil {
		return err
	}
	go func() {
		for libvirt.EventRunDefaultImpl() == nil {
		}
	}()
	return nil
})

// get returns a live connection with a reference of its own; the caller closes it.
func (c *conn) get(ctx context.Context) (*libvirt.Connect, error) {
	if lv, err := c.current(); lv != nil || err != nil {
		return lv, err
	}
	c.dialing.Lock()
	defer c.dialing.Unlock()
	if lv, err := c.current(); lv != nil || err != nil {
		return lv, err
	}
	if err := startEvents(); err != nil {
		return nil, translate("start event loop", "", err)
	}
	lv, err := libvirt.NewConnectWithAuth(c.uri, c.auth(), 0)
	if err != nil {
		return nil, translateDial(c.name, err)
	}
	if err := lv.SetKeepAlive(5, 4); err != nil {
		c.log.Debug("keepalive is not available", "connection", c.name, "err", err)
	}
	if err := c.confirmed(ctx, lv); err != nil {
		_, _ = lv.Close()
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_, _ = lv.Close()
		return nil, errClosed(c.name)
	}
	c.c = lv
	return lv, lv.Ref()
}

// confirmed asks whether the host that was dialled is the right one.
func (c *conn) confirmed(ctx context.Context, lv *libvirt.Connect) error {
	if c.confirm == nil {
		return nil
	}
	host, err := lv.GetHostname()
	if err != nil {
		return translate("ask host for its name", c.name, err)
	}
	id, err := hostID(lv)
	if err != nil {
		return translate("ask host for its identity", c.name, err)
	}
	return c.confirm(ctx, host, id)
}

// current returns the present connection, or nil when there is none alive.
func (c *conn) current() (*libvirt.Connect, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed(c.name)
	}
	if c.c == nil {
		return nil, nil
	}
	if alive, err := c.c.IsAlive(); err != nil || !alive {
		_, _ = c.c.Close()
		c.c = nil
		return nil, nil
	}
	return c.c, c.c.Ref()
}

// drop forgets lv after its connection was lost; the next call dials anew.
func (c *conn) drop(lv *libvirt.Connect) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.c == lv {
		_, _ = lv.Close()
		c.c = nil
	}
}

func (c *conn) auth() *libvirt.ConnectAuth {
	return &libvirt.ConnectAuth{
		CredType: []libvirt.ConnectCredentialType{libvirt.CRED_AUTHNAME, libvirt.CRED_USERNAME, libvirt.CRED_PASSPHRASE},
		Callback: func(creds []*libvirt.ConnectCredential) {
			for _, cred := range creds {
				switch cred.Type {
				case libvirt.CRED_AUTHNAME, libvirt.CRED_USERNAME:
					cred.Result = c.user
				case libvirt.CRED_PASSPHRASE:
					cred.Result = c.password
				}
				cred.ResultLen = len(cred.Result)
			}
		},
	}
}

// close ends the connection and waits for the calls that are still under way, at most for a while: a call into a
// daemon that hangs cannot be interrupted.
func (c *conn) close() error {
	c.mu.Lock()
	c.closed = true
	lv := c.c
	c.c = nil
	c.mu.Unlock()
	waitAtMost(&c.calls, 10*time.Second)
	if lv != nil {
		if _, err := lv.Close(); err != nil {
			return translate("close connection", c.name, err)
		}
	}
	return nil
}

func waitAtMost(wg *sync.WaitGroup, d time.Duration) {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(d):
	}
}

// call runs fn with a live connection. libvirt's calls block and know no context: when ctx ends first, call
// returns at once and fn runs on to its end, alone. Whoever starts something that way looks after it by its owed
// clean-up.
func call[T any](ctx context.Context, c *conn, op, subject string, fn func(*libvirt.Connect) (T, error)) (T, error) {
	return callThen(ctx, c, op, subject, fn, func() {})
}

// callThen is call with a function that runs when fn has really ended, or will never start.
func callThen[T any](ctx context.Context, c *conn, op, subject string, fn func(*libvirt.Connect) (T, error), ended func()) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		ended()
		return zero, fault.Wrap(fault.KindOf(err), op, subject, err)
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	c.calls.Go(func() {
		defer ended()
		lv, err := c.get(ctx)
		if err != nil {
			if subject == c.name { // the error says what was not reached
				subject = ""
			}
			done <- result{err: fault.Context(op, subject, err)}
			return
		}
		defer lv.Close()
		v, err := fn(lv)
		if err != nil {
			if lostConnection(err) {
				c.drop(lv)
			}
			err = translate(op, subject, err)
		}
		done <- result{v, err}
	})
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		return zero, fault.Wrap(fault.KindOf(ctx.Err()), op, subject, ctx.Err())
	}
}

// onDomain runs fn with the domain of a UUID.
func onDomain[T any](ctx context.Context, c *conn, op, uuid string, fn func(*libvirt.Connect, *libvirt.Domain) (T, error)) (T, error) {
	return call(ctx, c, op, "VM "+uuid, func(lv *libvirt.Connect) (T, error) {
		dom, err := lv.LookupDomainByUUIDString(uuid)
		if err != nil {
			var zero T
			return zero, err
		}
		defer dom.Free()
		return fn(lv, dom)
	})
}

// none is the result of calls that only succeed or fail.
type none = struct{}
