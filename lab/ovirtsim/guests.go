package ovirtsim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/lab/kvmlab/pattern"
)

// guest is what runs in a VM: it writes lab/kvmlab/pattern to the VM's disks.
type guest struct {
	mu     sync.Mutex // held during a round
	writer *pattern.Writer
	end    context.CancelFunc
	done   chan struct{}
	close  func()
	err    error // of the first round that failed; mu
}

// boot is called under the lock when a VM is up. The guest of a VM whose disks nothing has needed yet starts when
// something does.
func (e *Engine) boot(v *vm) {
	if v.filled {
		e.work(func(ctx context.Context) error { return e.fill(ctx, v) }, func(error) {})
	}
}

// startGuest goes on writing where the disks' content stands. Disks that were never written have no guest.
func (e *Engine) startGuest(ctx context.Context, v *vm, disks []*disk) error {
	if len(disks) == 0 {
		return nil
	}
	devices, closeAll, err := e.open(ctx, disks)
	if err != nil {
		return err
	}
	w, err := e.bootGuest(v, devices)
	if err != nil || w == nil {
		closeAll()
		return err
	}
	run, end := context.WithCancel(e.ctx)
	g := &guest{writer: w, end: end, done: make(chan struct{}), close: closeAll}
	e.mu.Lock()
	v.guest = g
	e.mu.Unlock()
	go g.run(run, v.rate)
	return nil
}

// bootGuest looks what is on a guest's disks, and tells it in an event. There is no writer, and no error, for disks that hold
// nothing of a guest's.
func (e *Engine) bootGuest(v *vm, devices []pattern.Device) (*pattern.Writer, error) {
	rep, err := pattern.Check(devices...)
	if errors.Is(err, pattern.ErrBlank) {
		return nil, nil
	}
	said := &event{code: guestChecked, severity: "normal", text: "The guest of VM " + v.name + " has checked its disks: " + rep.String() + ".", vm: v.id}
	if err != nil {
		said.severity, said.text = "error", "The guest of VM "+v.name+" found damage on its disks: "+err.Error()+"."
	}
	e.mu.Lock()
	e.audit(said)
	e.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("start the guest of %s: %w", v.name, err)
	}
	return pattern.Open(devices...)
}

// run writes rate rounds a second until it is ended.
func (g *guest) run(ctx context.Context, rate float64) {
	defer close(g.done)
	if rate <= 0 {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if g.write(1) != nil {
				return
			}
		}
	}
}

func (g *guest) write(rounds int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range rounds {
		if g.err != nil {
			return g.err
		}
		g.err = g.writer.WriteRound()
	}
	return g.err
}

// halt takes a VM's guest away. The caller holds mu; what it returns waits for its end.
func (e *Engine) halt(v *vm) func(ctx context.Context) error {
	g := v.guest
	v.guest = nil
	return func(context.Context) error {
		if g == nil {
			return nil
		}
		g.end()
		<-g.done
		g.close()
		return nil
	}
}

// quiesce keeps a VM's guest between two rounds until what it returns is called.
func (e *Engine) quiesce(v *vm) (thaw func()) {
	e.mu.Lock()
	g := v.guest
	e.mu.Unlock()
	if g == nil {
		return func() {}
	}
	g.mu.Lock()
	return g.mu.Unlock
}

// ErrNoGuest says that nothing in a VM writes to its disks: it is not running, or they were never written.
var ErrNoGuest = errors.New("it has no guest that writes")

// Write lets the guest of a running VM write some rounds now.
func (e *Engine) Write(ctx context.Context, vmID string, rounds int) error {
	e.mu.Lock()
	v, err := e.vm(vmID)
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if err := e.fill(ctx, v); err != nil {
		return err
	}
	e.mu.Lock()
	g := v.guest
	e.mu.Unlock()
	if g == nil {
		return fmt.Errorf("VM %s: %w", v.name, ErrNoGuest)
	}
	return g.write(rounds)
}

// Check reads the disks of a VM that is down and compares them with what its guest may have left, crash or not.
func (e *Engine) Check(ctx context.Context, vmID string) (pattern.Report, error) {
	e.mu.Lock()
	v, err := e.vm(vmID)
	var disks []*disk
	if err == nil {
		if disks = v.ownDisks(); v.status != vmDown {
			err = fmt.Errorf("VM %s is %s, not down", v.name, v.status)
		}
	}
	e.mu.Unlock()
	if err != nil {
		return pattern.Report{}, err
	}
	devices, closeAll, err := e.open(ctx, disks)
	if err != nil {
		return pattern.Report{}, err
	}
	defer closeAll()
	return pattern.Check(devices...)
}
