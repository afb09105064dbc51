package hypervisortest

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// saved is a restore point in memory.
type saved struct {
	info  hypervisors.FrozenInfo
	disks map[string][]byte
}

func (e *env) save(vm string) saved {
	e.Helper()
	f := e.freeze(e.request(vm))
	s := saved{info: f.Info(), disks: e.content(f)}
	e.release(f)
	return s
}

func restoreDisks(vm hypervisors.VM) []hypervisors.RestoreDisk {
	var out []hypervisors.RestoreDisk
	for _, d := range vm.Disks {
		if d.Unprotectable == "" {
			out = append(out, hypervisors.RestoreDisk{ID: d.ID, SizeBytes: d.SizeBytes})
		}
	}
	return out
}

func (e *env) restoreRequest(s saved, mode hypervisors.RestoreMode) hypervisors.RestoreRequest {
	req := hypervisors.RestoreRequest{
		Tag: e.tag(), Mode: mode, VM: s.info.VM, Documents: s.info.Documents, Owe: e.owed.owe,
	}
	switch mode {
	case hypervisors.RestoreNew:
		req.Name = "restored-" + req.Tag
	case hypervisors.RestoreInto:
		req.Into = e.Stopped
	}
	for _, d := range s.info.Disks {
		req.Disks = append(req.Disks, hypervisors.RestoreDisk{ID: d.Disk.ID, SizeBytes: d.Disk.SizeBytes})
	}
	return req
}

// fill writes a content to a restore's disks, zeros left out.
func (e *env) fill(r hypervisors.Restoring, disks map[string][]byte) {
	e.Helper()
	for _, target := range r.Disks() {
		data := disks[target.DiskID]
		if !target.Export.Writable || target.Export.SizeBytes != int64(len(data)) {
			e.Fatalf("target of disk %s: %+v, want a writable one of %d bytes", target.DiskID, target.Export, len(data))
		}
		e.fillDisk(target.Export, data)
	}
}

// fillDisk writes a content to a disk, zeros left out.
func (e *env) fillDisk(x hypervisors.Export, data []byte) {
	e.Helper()
	const piece = 256 << 10
	zeros := make([]byte, piece)
	d, err := e.OpenTarget(e.Context(), x)
	e.ok(err, "open target of disk "+x.Name)
	for off := 0; off < len(data); off += piece {
		p := data[off:min(off+piece, len(data))]
		if string(p) == string(zeros[:len(p)]) {
			continue
		}
		if _, err := d.WriteAt(p, int64(off)); err != nil {
			e.ok(err, "write target")
		}
	}
	e.ok(d.Flush(e.Context()), "flush target")
	e.ok(d.Close(), "close target")
}

func testRestoreNew(e *env) {
	e.need(e.caps.Backup && e.caps.Restore, "restore")
	e.Write(e.T)
	s := e.save(e.Running)
	req := e.restoreRequest(s, hypervisors.RestoreNew)
	e.ok(e.Driver.CheckRestore(e.Context(), req), "check restore")
	e.clean("after CheckRestore")
	r, err := e.Driver.BeginRestore(e.Context(), req)
	e.ok(err, "begin restore")
	var order []string
	for _, d := range r.Disks() {
		order = append(order, d.DiskID)
	}
	for i, d := range req.Disks {
		if len(order) != len(req.Disks) || order[i] != d.ID {
			e.Fatalf("targets %v, want those of %+v in order", order, req.Disks)
		}
	}
	e.fill(r, s.disks)
	vm, err := r.Finish(e.Context())
	if err != nil {
		_ = r.Abandon(e.cleanup())
		e.ok(err, "finish restore")
	}
	e.Cleanup(func() { e.Remove(e.T, vm.ID) })
	e.restored(vm, req, s)
	e.clean("after the restore")
	if got := e.restoredNames(); !slices.Equal(got, []string{req.Name}) {
		e.Errorf("VMs of ours after the restore: %q, want only %q", got, req.Name)
	}
}

// restoredNames returns the names of VMs that this run of the suite has restored.
func (e *env) restoredNames() []string {
	e.Helper()
	vms, err := e.Driver.VMs(e.Context())
	e.ok(err, "list VMs")
	var names []string
	for _, vm := range vms {
		if strings.Contains(vm.Name, e.run) {
			names = append(names, vm.Name)
		}
	}
	return names
}

// restored checks a new VM against what was saved.
func (e *env) restored(vm hypervisors.VM, req hypervisors.RestoreRequest, s saved) {
	e.Helper()
	if vm.ID == "" || vm.ID == s.info.VM.ID || vm.Name != req.Name || vm.Power != hypervisors.PowerOff {
		e.Errorf("restored %s %q, %s; want another identity than %s, the name %q, and off", vm.ID, vm.Name, vm.Power, s.info.VM.ID, req.Name)
	}
	if now := e.vm(vm.ID); now.Name != req.Name {
		e.Errorf("VM %s is %q in the inventory", vm.ID, now.Name)
	}
	for _, n := range vm.NICs {
		if slices.ContainsFunc(s.info.VM.NICs, func(old hypervisors.NIC) bool { return old.MAC == n.MAC }) {
			e.Errorf("NIC %s has the source's address %s", n.ID, n.MAC)
		}
	}
	for id, want := range s.disks {
		old, now := s.disk(id), s.diskIn(vm, id)
		if now.SizeBytes != int64(len(want)) {
			e.Errorf("disk %s of the restored VM: %+v", id, vm.Disks)
			continue
		}
		e.same(e.Content(e.T, vm.ID, now.ID), want, "restored disk "+id)
		if old.Path != "" && old.Path == now.Path {
			e.Errorf("disk %s of the restored VM is the source's own: %s", id, old.Path)
		}
	}
}

// disk returns a disk as it was saved.
func (s saved) disk(id string) hypervisors.Disk {
	i := slices.IndexFunc(s.info.VM.Disks, func(d hypervisors.Disk) bool { return d.ID == id })
	return s.info.VM.Disks[i]
}

// diskIn returns the disk of a restored VM that has taken the place of one that was saved: by its id, or by its name where
// ids are unique on the platform. It is empty if there is none.
func (s saved) diskIn(vm hypervisors.VM, id string) hypervisors.Disk {
	old := s.disk(id)
	for _, d := range vm.Disks {
		if d.ID == id || old.Name != "" && d.Name == old.Name {
			return d
		}
	}
	return hypervisors.Disk{}
}

// testRestoreInPlace gives a VM its disks back twice from one restore point: the second time its disks are not those that were
// backed up any more, on platforms that give new disks new ids.
func testRestoreInPlace(e *env) {
	e.need(e.caps.RestoreInPlace && e.caps.StoppedBackup, "restore in place")
	s := e.save(e.Stopped)
	for _, time := range []string{"restored in place", "restored in place again"} {
		for id := range s.disks { // other content than the VM has now
			for i := range min(len(s.disks[id]), 3<<20) {
				s.disks[id][i] ^= byte(i>>8) | 1
			}
		}
		req := e.restoreRequest(s, hypervisors.RestoreInPlace)
		e.ok(e.Driver.CheckRestore(e.Context(), req), "check restore")
		vm := e.restore(req, s)
		if vm.ID != e.Stopped || vm.Name != s.info.VM.Name || vm.Power != hypervisors.PowerOff {
			e.Errorf("%s: %s %q, %s; want the same VM, off", time, vm.ID, vm.Name, vm.Power)
		}
		if len(vm.Disks) != len(s.info.VM.Disks) {
			e.Errorf("%s it has %d disks, want %d: %+v", time, len(vm.Disks), len(s.info.VM.Disks), vm.Disks)
		}
		for id, want := range s.disks {
			e.same(e.Content(e.T, e.Stopped, s.diskIn(vm, id).ID), want, "disk "+id+" "+time)
		}
	}
	e.clean("after the restores in place")
	e.release(e.freeze(e.request(e.Stopped)))
}

func testRestoreAbandoned(e *env) {
	e.need(e.caps.Restore && e.caps.StoppedBackup, "restore")
	s := e.save(e.Stopped)
	other := map[string][]byte{}
	for id, data := range s.disks {
		other[id] = slices.Repeat([]byte("abandoned "), len(data)/10+1)[:len(data)]
	}
	for _, mode := range e.modes() {
		r, err := e.Driver.BeginRestore(e.Context(), e.restoreRequest(s, mode))
		e.ok(err, "begin restore")
		x := r.Disks()[0].Export
		e.fill(r, other)
		for range 2 {
			e.ok(r.Abandon(e.cleanup()), "abandon")
		}
		e.clean("after the abandoned restore (" + string(mode) + ")")
		if got := e.restoredNames(); len(got) > 0 {
			e.Errorf("%s: VMs after the abandoned restore: %q", mode, got)
		}
		if d, err := e.OpenTarget(e.Context(), x); err == nil {
			d.Close()
			e.Errorf("%s: the target can be opened after the restore was abandoned", mode)
		}
		for id, want := range s.disks {
			e.same(e.Content(e.T, e.Stopped, id), want, string(mode)+": original disk "+id)
		}
	}
}

func (e *env) modes() []hypervisors.RestoreMode {
	out := []hypervisors.RestoreMode{hypervisors.RestoreNew}
	for _, m := range []struct {
		mode hypervisors.RestoreMode
		can  bool
	}{
		{hypervisors.RestoreInPlace, e.caps.RestoreInPlace}, {hypervisors.RestoreDisks, e.caps.RestoreDisks}, {hypervisors.RestoreInto, e.caps.RestoreInto},
	} {
		if m.can {
			out = append(out, m.mode)
		}
	}
	return out
}

// refusedRestore is a request that cannot be carried out, and why.
type refusedRestore struct {
	name string
	req  hypervisors.RestoreRequest
	want fault.Kind
}

func testRestoreRefused(e *env) {
	e.need(e.caps.Backup && e.caps.Restore, "restore")
	s := e.save(e.Running)
	change := func(mode hypervisors.RestoreMode, f func(*hypervisors.RestoreRequest)) hypervisors.RestoreRequest {
		req := e.restoreRequest(s, mode)
		req.Disks = slices.Clone(req.Disks)
		f(&req)
		return req
	}
	tests := []refusedRestore{
		{"a name that is taken", change(hypervisors.RestoreNew, func(r *hypervisors.RestoreRequest) { r.Name = s.info.VM.Name }), fault.Exists},
		{"a datastore that is not there", change(hypervisors.RestoreNew, func(r *hypervisors.RestoreRequest) { r.Disks[0].Datastore = "no-such-datastore" }), fault.NotFound},
		{"a format that is not there", change(hypervisors.RestoreNew, func(r *hypervisors.RestoreRequest) { r.Disks[0].Format = "no-such-format" }), fault.Invalid},
		{"a mode that is not there", change("no-such-mode", func(*hypervisors.RestoreRequest) {}), fault.Invalid},
		{"no name", change(hypervisors.RestoreNew, func(r *hypervisors.RestoreRequest) { r.Name = "" }), fault.Invalid},
	}
	if e.caps.RestoreInPlace {
		tests = append(tests, []refusedRestore{
			{"a running VM", change(hypervisors.RestoreInPlace, func(*hypervisors.RestoreRequest) {}), fault.Conflict},
			{"a VM that is gone", change(hypervisors.RestoreInPlace, func(r *hypervisors.RestoreRequest) { r.VM.ID = e.NoSuchVM }), fault.NotFound},
		}...)
	}
	tests = append(tests, refusedInto(e, change)...)
	for _, tt := range tests {
		e.kind(e.Driver.CheckRestore(e.Context(), tt.req), tt.want, "check restore: "+tt.name)
		r, err := e.Driver.BeginRestore(e.Context(), tt.req)
		e.kind(err, tt.want, "begin restore: "+tt.name)
		if err == nil {
			_ = r.Abandon(e.cleanup())
		}
		e.clean("after the restore was refused: " + tt.name)
	}
}

// testRestoreOwe lets each call of Owe fail in turn.
func testRestoreOwe(e *env) {
	e.need(e.caps.Restore && e.caps.StoppedBackup, "restore")
	s := e.save(e.Stopped)
	full := errors.New("the catalog is full")
	for _, mode := range e.modes() {
		for n := 1; ; n++ {
			book := &ledger{fail: n, err: full}
			req := e.restoreRequest(s, mode)
			req.Owe = book.owe
			r, err := e.Driver.BeginRestore(e.Context(), req)
			for _, o := range book.items {
				if !hasMarker(o.Name, req.Tag) || o.Kind == "" {
					e.Errorf("owed %+v does not carry the marker cairn-%s", o, req.Tag)
				}
			}
			if err == nil {
				if len(book.items) == 0 {
					e.Errorf("%s: a restore makes disks and owes nothing", mode)
				}
				e.ok(r.Abandon(e.cleanup()), "abandon")
				break
			}
			if !errors.Is(err, full) {
				e.Errorf("%s: failing call %d of Owe: %v, want %v", mode, n, err, full)
			}
			e.clean("after a call of Owe failed")
			for _, o := range book.items {
				e.ok(e.Driver.CleanUp(e.cleanup(), o), "clean up what was never made")
			}
		}
	}
}

// testRestoreKeepsMACs restores a VM that is to take the place of the source in its networks.
func testRestoreKeepsMACs(e *env) {
	e.need(e.caps.Backup && e.caps.Restore, "restore")
	s := e.save(e.Running)
	e.need(len(s.info.VM.NICs) > 0, "NIC in its VM")
	req := e.restoreRequest(s, hypervisors.RestoreNew)
	req.KeepMACs = true
	r, err := e.Driver.BeginRestore(e.Context(), req)
	e.ok(err, "begin restore")
	vm, err := r.Finish(e.Context())
	if err != nil {
		_ = r.Abandon(e.cleanup())
		e.ok(err, "finish restore")
	}
	e.Cleanup(func() { e.Remove(e.T, vm.ID) })
	macs := func(vm hypervisors.VM) (out []string) {
		for _, n := range vm.NICs {
			out = append(out, n.MAC)
		}
		return out
	}
	if got, want := macs(vm), macs(s.info.VM); !slices.Equal(got, want) {
		e.Errorf("addresses %q, want the source's %q", got, want)
	}
	for id := range s.disks { // nothing was written
		e.same(e.Content(e.T, vm.ID, s.diskIn(vm, id).ID), make([]byte, len(s.disks[id])), "new disk "+id)
	}
}

// testRestoreCanceled cancels a restore at its beginning and at each call of Owe.
func testRestoreCanceled(e *env) {
	e.need(e.caps.Restore && e.caps.StoppedBackup, "restore")
	s := e.save(e.Stopped)
	for _, mode := range e.modes() {
		for n, done := 0, false; !done; n++ {
			ctx, cancel := context.WithCancel(e.Context())
			if n == 0 {
				cancel()
			}
			book := &ledger{hook: func(call int) {
				if call == n {
					cancel()
				}
			}}
			req := e.restoreRequest(s, mode)
			req.Owe = book.owe
			r, err := e.Driver.BeginRestore(ctx, req)
			done = len(book.items) < n
			cancel()
			if err == nil {
				e.ok(r.Abandon(e.cleanup()), "abandon")
			} else {
				e.kind(err, fault.Canceled, "canceled restore")
			}
			if n == 0 && (err == nil || len(book.items) > 0) {
				e.Errorf("%s: a restore that was canceled before it began: %v, owed %+v", mode, err, book.items)
			}
			for _, o := range slices.Backward(book.items) {
				e.ok(e.Driver.CleanUp(e.cleanup(), o), "clean up "+o.Name)
			}
			e.clean("after the canceled restore (" + string(mode) + ")")
		}
		for id, want := range s.disks {
			e.same(e.Content(e.T, e.Stopped, id), want, string(mode)+": original disk "+id)
		}
	}
}

// testRestoreCleanUp forgets a restore, as a crash of the manager would, and cleans up what was owed.
func testRestoreCleanUp(e *env) {
	e.need(e.caps.Restore && e.caps.StoppedBackup, "restore")
	s := e.save(e.Stopped)
	for _, mode := range e.modes() {
		book := &ledger{}
		req := e.restoreRequest(s, mode)
		req.Owe = book.owe
		r, err := e.Driver.BeginRestore(e.Context(), req)
		e.ok(err, "begin restore")
		left := e.leftovers()
		if len(left) == 0 {
			e.Errorf("%s: a restore under way is not among the leftovers", mode)
		}
		for range 2 {
			for _, o := range slices.Backward(book.items) {
				e.ok(e.Driver.CleanUp(e.cleanup(), o), "clean up "+string(o.Kind)+" "+o.Name)
			}
			e.clean("after the clean-up (" + string(mode) + ")")
		}
		e.ok(r.Abandon(e.cleanup()), "abandon what was cleaned up")
		if got := e.restoredNames(); len(got) > 0 {
			e.Errorf("%s: VMs after the clean-up: %q", mode, got)
		}
		for id, want := range s.disks {
			e.same(e.Content(e.T, e.Stopped, id), want, string(mode)+": original disk "+id)
		}
	}
}
