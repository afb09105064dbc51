package hypervisortest

import (
	"slices"

	"github.com/cairn-backup/cairn/hypervisors"
)

// testRestoreChosenDisk makes a VM of one disk of several, and gives a VM with several one of them back.
func testRestoreChosenDisk(e *env) {
	e.need(e.caps.Backup && e.caps.Restore && e.caps.StoppedBackup, "restore")
	e.Write(e.T)
	s := e.save(e.Running)
	req := e.restoreRequest(s, hypervisors.RestoreNew)
	whole := e.restore(req, s)
	if n := len(req.Disks); n < 2 {
		e.Fatalf("the VM has %d disks, want 2 or more", n)
	}

	one := e.restoreRequest(s, hypervisors.RestoreNew)
	one.Disks, one.Chosen = one.Disks[1:2], true
	vm := e.restore(one, s)
	if got := restoreDisks(vm); len(got) != 1 {
		e.Errorf("a VM of one disk has the disks %+v", got)
	}
	chosen := one.Disks[0].ID
	e.same(e.Content(e.T, vm.ID, s.diskIn(vm, chosen).ID), s.disks[chosen], "the only disk")
	e.clean("after the restore of one disk as a VM")

	e.need(e.caps.RestoreInPlace, "restore in place")
	e.chosenInPlace(e.save(whole.ID))
}

// chosenInPlace gives a VM that is off its second disk back, with another content.
func (e *env) chosenInPlace(s saved) {
	e.Helper()
	req := e.restoreRequest(s, hypervisors.RestoreInPlace)
	chosen := req.Disks[1].ID
	req.Disks, req.Chosen = req.Disks[1:2], true
	back := slices.Repeat([]byte("given back "), len(s.disks[chosen])/11+1)[:len(s.disks[chosen])]
	e.ok(e.Driver.CheckRestore(e.Context(), req), "check restore")
	vm := e.restore(req, saved{info: s.info, disks: map[string][]byte{chosen: back}})
	if vm.ID != s.info.VM.ID || len(vm.Disks) != len(s.info.VM.Disks) {
		e.Errorf("restored in place: %s with %d disks, want %s with %d", vm.ID, len(vm.Disks), s.info.VM.ID, len(s.info.VM.Disks))
	}
	for id, was := range s.disks {
		now := s.diskIn(vm, id)
		if id == chosen {
			e.same(e.Content(e.T, vm.ID, now.ID), back, "the disk that was given back")
			continue
		}
		if now.ID != id || now.Path != s.disk(id).Path {
			e.Errorf("disk %s, which was not chosen, is %+v now", id, now)
		}
		e.same(e.Content(e.T, vm.ID, now.ID), was, "disk "+id+", which was not chosen")
	}
	e.clean("after the restore of one disk in place")
	e.release(e.freeze(e.request(vm.ID)))
}

// restore carries a restore out. A new VM is removed at the end of the test.
func (e *env) restore(req hypervisors.RestoreRequest, s saved) hypervisors.VM {
	e.Helper()
	r, err := e.Driver.BeginRestore(e.Context(), req)
	e.ok(err, "begin restore")
	e.fill(r, s.disks)
	vm, err := r.Finish(e.Context())
	if err != nil {
		_ = r.Abandon(e.cleanup())
		e.ok(err, "finish restore")
	}
	if req.Mode == hypervisors.RestoreNew {
		e.Cleanup(func() { e.Remove(e.T, vm.ID) })
	}
	return vm
}
