package hypervisortest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/google/go-cmp/cmp"
)

func testFrozenContent(e *env) {
	e.need(e.caps.Backup, "backup")
	e.Write(e.T)
	vm := e.vm(e.Running)
	began := time.Now()
	f := e.freeze(e.request(e.Running))
	info := f.Info()
	if info.VM.ID != vm.ID || info.VM.Name != vm.Name || len(info.Documents) == 0 {
		e.Errorf("froze %s %q with %d documents, want %s %q and some", info.VM.ID, info.VM.Name, len(info.Documents), vm.ID, vm.Name)
	}
	if info.Time.Before(began.Add(-time.Minute)) || info.Time.After(time.Now().Add(time.Minute)) {
		e.Errorf("frozen at %v, it is %v", info.Time, time.Now())
	}
	if info.Checkpoint != "" {
		e.Errorf("checkpoint %q was made although none was asked for", info.Checkpoint)
	}
	e.accounted(info, vm)
	for _, d := range info.Disks {
		if d.FullReason != "" || d.Export.DirtyContext != "" || d.Export.Writable {
			e.Errorf("disk %s of a full: reason %q, export %+v", d.Disk.ID, d.FullReason, d.Export)
		}
		if d.Export.SizeBytes != d.Disk.SizeBytes {
			e.Errorf("disk %s: export of %d bytes, disk of %d", d.Disk.ID, d.Export.SizeBytes, d.Disk.SizeBytes)
		}
		want := e.Content(e.T, e.Running, d.Disk.ID)
		e.same(e.read(d.Export), want, "frozen disk "+d.Disk.ID)
		image := make([]byte, len(want))
		e.apply(image, d.Export)
		e.same(image, want, "frozen disk "+d.Disk.ID+" by its extents")
	}
	e.release(f)
}

// accounted checks that every disk of the VM is either frozen or skipped for a reason.
func (e *env) accounted(info hypervisors.FrozenInfo, vm hypervisors.VM) {
	e.Helper()
	got := diskIDs(info.Disks)
	for _, s := range info.Skipped {
		if s.Reason == "" {
			e.Errorf("disk %s is skipped without a reason", s.Disk.ID)
		}
		got = append(got, s.Disk.ID)
	}
	var want []string
	for _, d := range vm.Disks {
		want = append(want, d.ID)
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		e.Errorf("disks frozen or skipped (-VM +freeze):\n%s", diff)
	}
}

func testStable(e *env) {
	e.need(e.caps.Backup, "backup")
	stop := e.Background(e.T)
	defer stop()
	f := e.freeze(e.request(e.Running))
	first := e.content(f)
	for id := range first {
		if e.awaitChange(id, first[id]) {
			break
		}
	}
	for id, again := range e.content(f) {
		e.same(again, first[id], "frozen disk "+id+", read again")
	}
	e.release(f)
}

// awaitChange waits until the guest has changed a disk.
func (e *env) awaitChange(id string, frozen []byte) bool {
	for range 50 {
		e.Write(e.T)
		if !bytes.Equal(e.Content(e.T, e.Running, id), frozen) {
			return true
		}
	}
	e.Errorf("the guest does not write to disk %s: the test would prove nothing", id)
	return false
}

func testRelease(e *env) {
	e.need(e.caps.Backup, "backup")
	f := e.freeze(e.request(e.Running))
	x := f.Info().Disks[0].Export
	for range 3 {
		e.release(f)
	}
	if d, err := e.OpenSource(e.Context(), x); err == nil {
		d.Close()
		e.Error("the export can be opened after the release")
	}
	e.clean("after the release")
}

func testSecondFreeze(e *env) {
	e.need(e.caps.Backup, "backup")
	f := e.freeze(e.request(e.Running))
	second := e.request(e.Running)
	second.Track = e.caps.ChangeTracking
	g, err := e.Driver.Freeze(e.Context(), second)
	e.kind(err, fault.Conflict, "freeze a frozen VM")
	if err == nil {
		e.release(g)
	}
	for _, d := range f.Info().Disks {
		e.read(d.Export)
	}
	e.release(f)
	e.release(e.freeze(e.request(e.Running)))
}

func testQuiesce(e *env) {
	e.need(e.caps.Backup, "backup")
	for _, mode := range []hypervisors.Quiesce{hypervisors.QuiesceNever, hypervisors.QuiesceTry, hypervisors.QuiesceRequire} {
		req := e.request(e.Running)
		req.Quiesce = mode
		if mode == hypervisors.QuiesceRequire && !e.Agent {
			f, err := e.Driver.Freeze(e.Context(), req)
			if err == nil {
				e.Error("a guest that cannot be quiesced was frozen although that was required")
				e.release(f)
			}
			e.clean("after the refused freeze")
			continue
		}
		f := e.freeze(req)
		want := hypervisors.CrashConsistent
		if e.Agent && mode != hypervisors.QuiesceNever {
			want = hypervisors.FilesystemConsistent
		}
		info := f.Info()
		if info.Consistency != want {
			e.Errorf("quiesce %q: consistency %q (%s), want %q", mode, info.Consistency, info.ConsistencyNote, want)
		}
		if note := info.ConsistencyNote != ""; note != (mode == hypervisors.QuiesceTry && !e.Agent) {
			e.Errorf("quiesce %q, agent %v: note %q", mode, e.Agent, info.ConsistencyNote)
		}
		e.Write(e.T) // the guest was thawed
		e.release(f)
	}
}

func testExcluded(e *env) {
	e.need(e.caps.Backup, "backup")
	all := e.freeze(e.request(e.Running))
	ids := diskIDs(all.Info().Disks)
	e.release(all)
	if len(ids) < 2 {
		e.Fatalf("the running VM has %d disks, the suite needs two", len(ids))
	}
	req := e.request(e.Running)
	req.Exclude = ids[:1]
	req.Track = e.caps.ChangeTracking
	f := e.freeze(req)
	if diff := cmp.Diff(ids[1:], diskIDs(f.Info().Disks)); diff != "" {
		e.Errorf("disks without the excluded one (-want +got):\n%s", diff)
	}
	e.accounted(f.Info(), e.vm(e.Running))
	e.release(f)
	if !e.caps.ChangeTracking {
		return
	}
	e.Write(e.T)
	req = e.request(e.Running)
	req.Since = f.Info().Checkpoint
	f = e.freeze(req)
	for _, d := range f.Info().Disks {
		excluded := d.Disk.ID == ids[0]
		if full := d.Export.DirtyContext == ""; excluded && (!full || d.FullReason == "") {
			e.Errorf("disk %s was not in the last backup, but is incremental (%q, %q)", d.Disk.ID, d.Export.DirtyContext, d.FullReason)
		} else if !excluded && full {
			e.Errorf("disk %s is read as a whole: %s", d.Disk.ID, d.FullReason)
		}
	}
	e.release(f)
	e.forget()
}

func testStopped(e *env) {
	e.need(e.caps.Backup, "backup")
	if !e.caps.StoppedBackup {
		if e.Stopped != "" {
			_, err := e.Driver.Freeze(e.Context(), e.request(e.Stopped))
			e.kind(err, fault.Unsupported, "freeze a stopped VM")
		}
		return
	}
	req := e.request(e.Stopped)
	req.Track = e.caps.ChangeTracking
	f := e.freeze(req)
	for id, got := range e.content(f) {
		e.same(got, e.Content(e.T, e.Stopped, id), "disk "+id+" of the stopped VM")
	}
	e.release(f)
	if got := e.vm(e.Stopped).Power; got != hypervisors.PowerOff {
		e.Errorf("the stopped VM is %q after its backup", got)
	}
	if e.caps.ChangeTracking {
		e.ok(e.Driver.KeepCheckpoint(e.cleanup(), e.Stopped, ""), "remove checkpoints")
	}
}

// testOwe lets each call of Owe fail in turn.
func testOwe(e *env) {
	e.need(e.caps.Backup, "backup")
	full := errors.New("the catalog is full")
	calls := 0
	for n := 1; ; n++ {
		book := &ledger{fail: n, err: full}
		req := e.request(e.Running)
		req.Owe, req.Track = book.owe, e.caps.ChangeTracking
		f, err := e.Driver.Freeze(e.Context(), req)
		for _, o := range book.items {
			if !hasMarker(o.Name, req.Tag) || o.Kind == "" {
				e.Errorf("owed %+v does not carry the marker cairn-%s", o, req.Tag)
			}
		}
		if err == nil { // there were fewer than n calls
			calls = len(book.items)
			e.checkpointOwed(f.Info(), book.items)
			e.release(f)
			e.forget()
			break
		}
		if !errors.Is(err, full) {
			e.Errorf("freeze with failing call %d of Owe: %v, want %v", n, err, full)
		}
		if len(book.items) != n {
			e.Fatalf("Owe was called %d times although call %d failed", len(book.items), n)
		}
		e.clean("after call " + book.items[n-1].Name + " of Owe failed")
		for _, o := range book.items { // never made
			e.ok(e.Driver.CleanUp(e.cleanup(), o), "clean up what was never made")
		}
	}
	if calls == 0 {
		e.Error("a freeze makes things on the platform and owes nothing")
	}
}

// checkpointOwed checks that a new checkpoint was owed under the fixed kind.
func (e *env) checkpointOwed(info hypervisors.FrozenInfo, items []hypervisors.Owed) {
	e.Helper()
	if info.Checkpoint == "" {
		return
	}
	if !slices.ContainsFunc(items, func(o hypervisors.Owed) bool {
		return o.Kind == hypervisors.OwedCheckpoint && o.Name == info.Checkpoint
	}) {
		e.Errorf("checkpoint %q was not owed as such: %+v", info.Checkpoint, items)
	}
}

// testCleanUp forgets a freeze, as a crash of the manager would, and cleans up what was owed.
func testCleanUp(e *env) {
	e.need(e.caps.Backup, "backup")
	req := e.request(e.Running)
	req.Track = e.caps.ChangeTracking
	f := e.freeze(req)
	left := e.leftovers()
	if len(left) == 0 {
		e.Error("a freeze under way is not among the leftovers")
	}
	for range 2 {
		for _, o := range slices.Backward(e.owed.items) {
			e.ok(e.Driver.CleanUp(e.cleanup(), o), "clean up "+string(o.Kind)+" "+o.Name)
		}
		e.clean("after the clean-up")
	}
	e.ok(f.Release(e.cleanup()), "release what was cleaned up")
	for _, o := range left { // what Leftovers names can be cleaned up as well, here again
		e.ok(e.Driver.CleanUp(e.cleanup(), o), "clean up leftover "+string(o.Kind)+" "+o.Name)
	}
	f = e.freeze(e.request(e.Running))
	left = e.leftovers()
	for _, o := range left {
		e.ok(e.Driver.CleanUp(e.cleanup(), o), "clean up leftover "+string(o.Kind)+" "+o.Name)
	}
	e.clean("after the clean-up of the leftovers")
	e.release(f)
	e.release(e.freeze(e.request(e.Running)))
}

// testCanceled cancels a freeze at its beginning and at each call of Owe.
func testCanceled(e *env) {
	e.need(e.caps.Backup, "backup")
	for n := 0; ; n++ {
		ctx, cancel := context.WithCancel(e.Context())
		if n == 0 {
			cancel()
		}
		book := &ledger{hook: func(call int) {
			if call == n {
				cancel()
			}
		}}
		req := e.request(e.Running)
		req.Owe, req.Track = book.owe, e.caps.ChangeTracking
		f, err := e.Driver.Freeze(ctx, req)
		done := len(book.items) < n
		cancel()
		if err == nil {
			e.release(f)
			e.forget()
		} else {
			e.kind(err, fault.Canceled, "canceled freeze")
		}
		if n == 0 && (err == nil || len(book.items) > 0) {
			e.Errorf("a freeze that was canceled before it began: %v, owed %+v", err, book.items)
		}
		// A call to the platform that was under way may go on for a moment; what it makes is owed.
		for _, o := range slices.Backward(book.items) {
			e.ok(e.Driver.CleanUp(e.cleanup(), o), "clean up "+o.Name)
		}
		e.clean("after the canceled freeze")
		if done {
			return
		}
	}
}
