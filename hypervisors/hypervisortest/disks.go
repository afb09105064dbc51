package hypervisortest

import (
	"slices"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// testRestoreDisks makes disks that no VM has.
func testRestoreDisks(e *env) {
	e.need(e.caps.Restore && e.caps.RestoreDisks && e.caps.Backup, "disks without a VM")
	e.Write(e.T)
	s := e.save(e.Running)
	for n := 1; n <= 2; n++ {
		req := e.restoreRequest(s, hypervisors.RestoreDisks)
		req.Disks, req.Chosen = req.Disks[:n], true
		for i := range req.Disks {
			req.Disks[i].Name = "alone_" + string(rune('a'+i)) + "_" + req.Tag
		}
		e.ok(e.Driver.CheckRestore(e.Context(), req), "check restore")
		vm := e.restore(req, s)
		if vm.ID != "" || len(vm.Disks) != n {
			e.Fatalf("VM %q with the disks %+v, want none with %d", vm.ID, vm.Disks, n)
		}
		e.clean("after the restore of disks alone")
		for i, want := range req.Disks {
			if got := vm.Disks[i]; got.Name != want.Name || got.SizeBytes < want.SizeBytes {
				e.Errorf("disk %s is %+v, want %q", want.ID, got, want.Name)
			}
			e.same(e.Content(e.T, "", vm.Disks[i].ID), s.disks[want.ID], "disk "+want.ID+", which no VM has")
			e.RemoveDisk(e.T, vm.Disks[i].ID)
		}
	}
	if got := e.restoredNames(); len(got) > 0 {
		e.Errorf("VMs after the restore of disks alone: %q", got)
	}
}

// testRestoreInto gives disks to a VM that runs, and then to the same one that is off, beside its own.
func testRestoreInto(e *env) {
	e.need(e.caps.RestoreInto && e.caps.Restore && e.caps.Power && e.caps.StoppedBackup, "disks in another VM")
	e.Write(e.T)
	s := e.save(e.Running)
	target := e.restore(e.restoreRequest(s, hypervisors.RestoreNew), s)
	own := slices.Clone(target.Disks)
	e.ok(e.Driver.Start(e.Context(), target.ID), "start the VM")
	for i, state := range []string{"running", "off"} {
		if state == "off" {
			e.ok(e.Driver.Stop(e.Context(), target.ID, true), "stop the VM")
		}
		req := e.restoreRequest(s, hypervisors.RestoreInto)
		req.Into, req.Disks, req.Chosen = target.ID, req.Disks[i:], true
		for n := range req.Disks {
			req.Disks[n].Name = "given_" + string(rune('a'+n)) + "_" + req.Tag
		}
		e.ok(e.Driver.CheckRestore(e.Context(), req), "check restore into a VM that is "+state)
		before := e.vm(target.ID)
		vm := e.restore(req, s)
		if vm.ID != target.ID || vm.Power != before.Power || len(vm.Disks) != len(before.Disks)+len(req.Disks) {
			e.Fatalf("a VM that is %s: %s, %s, with the disks %+v; want %s with %d more than %+v", state, vm.ID, vm.Power, vm.Disks, target.ID, len(req.Disks), before.Disks)
		}
		e.clean("after the restore into a VM that is " + state)
		e.given(before, vm, req, s)
		e.release(e.freeze(e.request(target.ID)))
	}
	for _, d := range own {
		if now := pathIn(e.vm(target.ID), d.ID); now != d.Path {
			e.Errorf("the VM's own disk %s is at %q now, was at %q", d.ID, now, d.Path)
		}
	}
}

// pathIn is where a disk of a VM lies.
func pathIn(vm hypervisors.VM, disk string) string {
	for _, d := range vm.Disks {
		if d.ID == disk {
			return d.Path
		}
	}
	return "gone"
}

// given compares the disks that a VM has got. What of them its guest may have written to is not read.
func (e *env) given(before, now hypervisors.VM, req hypervisors.RestoreRequest, s saved) {
	e.Helper()
	added := slices.DeleteFunc(slices.Clone(now.Disks), func(d hypervisors.Disk) bool {
		return slices.ContainsFunc(before.Disks, func(o hypervisors.Disk) bool { return o.ID == d.ID })
	})
	for i, want := range req.Disks {
		d := added[i]
		if d.BootOrder != 0 || d.Unprotectable != "" || d.Bus != s.disk(want.ID).Bus {
			e.Errorf("disk %s is %+v in VM %s; want one on the bus %q that does not boot", want.ID, d, now.Name, s.disk(want.ID).Bus)
		}
		if now.Power == hypervisors.PowerOff {
			e.same(e.Content(e.T, now.ID, d.ID), s.disks[want.ID], "disk "+want.ID+" in another VM")
		}
	}
}

// refusedInto are requests to restore into VMs that cannot be carried out.
func refusedInto(e *env, change func(hypervisors.RestoreMode, func(*hypervisors.RestoreRequest)) hypervisors.RestoreRequest) []refusedRestore {
	if !e.caps.RestoreInto {
		return nil
	}
	out := []refusedRestore{
		{"into a VM that is gone", change(hypervisors.RestoreInto, func(r *hypervisors.RestoreRequest) { r.Into = e.NoSuchVM }), fault.NotFound},
		{"into no VM", change(hypervisors.RestoreInto, func(r *hypervisors.RestoreRequest) { r.Into = "" }), fault.NotFound},
	}
	if e.Mover != "" {
		out = append(out, refusedRestore{"into a mover", change(hypervisors.RestoreInto, func(r *hypervisors.RestoreRequest) { r.Into = e.Mover }), fault.Conflict})
	}
	return out
}
