package ovirtsim

import (
	"context"
	"errors"
)

// Reinstall has another engine answer at the address, with the same VMs: its id is another, which it returns, and nobody is logged in.
func (e *Engine) Reinstall() (instance string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.instance = e.newID()
	clear(e.sessions)
	return e.instance
}

// CrashHosts lets all hosts die at once, and the VMs that ran start again elsewhere: what was flushed is on the disks, and the
// checkpoints of disks that were written are gone or inconsistent, which the engine learns when a backup asks for them. It is refused
// while a VM is being backed up.
func (e *Engine) CrashHosts(ctx context.Context) error {
	e.mu.Lock()
	var halts []func(context.Context) error
	for _, v := range e.vms.all() {
		if v.activeBackup() != nil {
			e.mu.Unlock()
			return conflict("VM %s is during a backup operation.", v.name)
		}
		if v.runs() {
			halts = append(halts, e.halt(v))
		}
	}
	e.mu.Unlock()
	s, err := e.storage(ctx)
	for _, halt := range halts {
		err = errors.Join(err, halt(ctx))
	}
	if err == nil {
		err = s.Crash(ctx)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, v := range e.vms.all() {
		if v.runs() {
			e.boot(v)
		}
	}
	return err
}
