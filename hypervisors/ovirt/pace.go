package ovirt

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// pace is how often states are looked at and how long they may take. Tests of a fast engine shorten the first two.
type pace struct {
	first, most time.Duration // between two looks
	create      time.Duration // of a snapshot, backup, disk or VM
	transfer    time.Duration // until an image transfer is ready, or over
	busy        time.Duration // how long a call is repeated that the engine refuses because something else is under way
	wait        time.Duration // until a reply of the engine
	events      time.Duration // between two looks at the engine's events
}

// Most steps of an engine that is not busy end within a second; those that do not are looked at ever more rarely.
var usualPace = pace{
	first: 100 * time.Millisecond, most: 8 * time.Second, create: 10 * time.Minute, transfer: 10 * time.Minute, busy: 2 * time.Minute,
	wait: 3 * time.Minute, events: 15 * time.Second,
}

// poll calls done until it says true or an error, at most for limit.
func (p pace) poll(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	end := time.Now().Add(limit)
	for wait := p.first; ; wait = min(wait*3/2, p.most) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if err := p.sleep(ctx, wait, what); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fault.New(fault.Transient, "wait until", what, "it did not happen within %s", limit).
				Explain("The engine takes longer than it should.", "Look at the engine's tasks and events; storage that is slow, or a host that does not answer, shows there.")
		}
	}
}

func (p pace) sleep(ctx context.Context, d time.Duration, what string) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.KindOf(ctx.Err()), "wait until", what, ctx.Err())
	}
}

// unlessBusy repeats a call that the engine refuses, for a while: mostly something else is under way, which ends.
func (p pace) unlessBusy(ctx context.Context, what string, call func() error) error {
	end := time.Now().Add(p.busy)
	for wait := p.first; ; wait = min(wait*2, p.most) {
		err := call()
		if err == nil || fault.KindOf(err) != fault.Conflict || notRoot(err) || time.Now().After(end) {
			return err
		}
		if e := p.sleep(ctx, wait, what); e != nil {
			return err
		}
	}
}
