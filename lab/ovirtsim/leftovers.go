package ovirtsim

import (
	"fmt"
	"slices"
)

// Leftovers names everything that work on the engine has left half done or lying about, in words and sorted: snapshots,
// backups, transfers, locks, disks that no VM has, and disks in VMs whose guest is idle, as movers are, beyond those they
// began with. VMs and checkpoints that were made are none.
func (e *Engine) Leftovers() (out []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, v := range e.vms.all() {
		for _, s := range v.snapshots.all() {
			if s.kind != snapshotActive {
				add("VM %s: snapshot %q, %s", v.name, s.description, s.status)
			}
		}
		if b := v.activeBackup(); b != nil {
			add("VM %s: backup %q, %s", v.name, b.description, b.phase)
		}
		if v.busy != "" || v.status == vmLocked {
			add("VM %s: locked: %s", v.name, v.busy)
		}
		for _, a := range v.attached.all() {
			if a.snapshot != "" || v.idle && !a.original {
				add("VM %s: disk %s is attached to it", v.name, a.disk.alias)
			}
		}
	}
	for _, t := range e.transfers.all() {
		if !t.over() {
			add("transfer of disk %s, %s", t.disk.alias, t.phase)
		}
	}
	for _, d := range e.disks.all() {
		if d.status == diskLocked {
			add("disk %s: locked", d.alias)
		}
		if len(e.uses(d)) == 0 {
			add("disk %s: no VM has it", d.alias)
		}
	}
	slices.Sort(out)
	return out
}
