package hypervisortest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// hotadd skips the test where disks cannot be attached to movers.
func (e *env) hotadd() {
	e.Helper()
	e.need(e.caps.Backup && slices.Contains(e.caps.Transports, hypervisors.TransportHotadd), "movers to attach disks to")
}

func (e *env) attachRequest(tag string, x hypervisors.Export) hypervisors.AttachRequest {
	return hypervisors.AttachRequest{Mover: e.Mover, Tag: tag, Export: x, Serial: hypervisors.NewSerial(), Owe: e.owed.owe}
}

// attach attaches a disk and detaches it at the end of the test, if that was not done before.
func (e *env) attach(tag string, x hypervisors.Export) hypervisors.Attached {
	e.Helper()
	req := e.attachRequest(tag, x)
	a, err := e.Driver.Attach(e.Context(), req)
	e.ok(err, "attach disk "+x.Name)
	e.Cleanup(func() { e.detach(a) })
	got := a.Export()
	if e.OwnSerials && got.Serial != "" {
		req.Serial = got.Serial
	}
	if got.Transport != hypervisors.TransportHotadd || got.Serial != req.Serial || got.SizeBytes != x.SizeBytes || got.Writable != x.Writable {
		e.Errorf("attached as %+v, want the serial %s and the size of %+v", got, req.Serial, x)
	}
	return a
}

func (e *env) detach(a hypervisors.Attached) {
	e.Helper()
	if err := a.Detach(e.cleanup()); err != nil {
		e.Errorf("detach: %v", err)
	}
}

// testAttach reads frozen disks in the mover, all of them plugged in at once.
func testAttach(e *env) {
	e.hotadd()
	e.Write(e.T)
	before := e.mover()
	for _, vm := range []string{e.Running, e.Stopped} {
		if vm == e.Stopped && !e.caps.StoppedBackup {
			continue
		}
		req := e.request(vm)
		f := e.freeze(req)
		var plugged []hypervisors.Attached
		for _, d := range f.Info().Disks {
			plugged = append(plugged, e.attach(req.Tag, d.Export))
		}
		if now := e.mover(); len(now.Disks) != len(before.Disks) {
			e.Errorf("what is plugged into the mover shows as its own: %+v", now.Disks)
		}
		for i, d := range f.Info().Disks {
			e.same(e.read(plugged[i].Export()), e.read(d.Export), "disk "+d.Disk.ID+" in the mover")
		}
		for _, a := range plugged {
			e.detach(a)
			e.detach(a) // may be repeated
			e.gone(a.Export())
		}
		e.release(f)
		e.clean("after detach and release")
	}
}

// mover is the fixture's as the driver shows it.
func (e *env) mover() hypervisors.VM {
	e.Helper()
	all, err := e.Driver.Movers(e.Context())
	e.ok(err, "list movers")
	for _, vm := range all {
		if vm.ID == e.Mover {
			return vm
		}
	}
	e.Fatalf("the mover %s is not among the driver's movers", e.Mover)
	return hypervisors.VM{}
}

// gone looks into the mover: a disk that is not there does not appear.
func (e *env) gone(x hypervisors.Export) {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), time.Second)
	defer cancel()
	if d, err := e.OpenSource(ctx, x); err == nil {
		_ = d.Close()
		e.Errorf("disk %s is still in the mover", x.Name)
	}
}

// testAttachChanged reads in the mover only what changed, by the map that the manager sends along.
func testAttachChanged(e *env) {
	e.hotadd()
	e.need(e.caps.ChangeTracking, "change tracking")
	defer e.forget()
	req := e.request(e.Running)
	req.Track = true
	f := e.freeze(req)
	images := e.content(f)
	since := f.Info().Checkpoint
	e.release(f)
	e.Write(e.T)
	req = e.request(e.Running)
	req.Track, req.Since = true, since
	f = e.freeze(req)
	tracked := false
	for _, d := range f.Info().Disks {
		if d.Export.DirtyContext == "" {
			continue
		}
		if d.Export.Unpluggable != "" {
			_, err := e.Driver.Attach(e.Context(), e.attachRequest(req.Tag, d.Export))
			e.kind(err, fault.Unsupported, "attach a disk that cannot be plugged in")
			tracked = true
			continue
		}
		a := e.attach(req.Tag, d.Export)
		x := a.Export()
		x.Extents = e.mapOf(d.Export)
		if unchanged := e.apply(images[d.Disk.ID], x); unchanged == 0 {
			e.Errorf("disk %s: nothing is unchanged", d.Disk.ID)
		}
		tracked = true
		e.same(images[d.Disk.ID], e.read(d.Export), "disk "+d.Disk.ID+" by its changes")
		e.detach(a)
	}
	if !tracked {
		e.Error("no disk is tracked")
	}
	e.release(f)
}

// mapOf asks the export itself, as the manager does.
func (e *env) mapOf(x hypervisors.Export) hypervisors.ExtentMap {
	e.Helper()
	d, err := e.OpenSource(e.Context(), x)
	e.ok(err, "open export "+x.Name)
	defer d.Close()
	m, err := hypervisors.NewExtentMap(d.Size(), d.Extents(e.Context()))
	e.ok(err, "map extents of "+x.Name)
	return m
}

// testAttachRestore writes a restore's disks in the mover.
func testAttachRestore(e *env) {
	e.hotadd()
	e.need(e.caps.Restore, "restore")
	e.Write(e.T)
	s := e.save(e.Running)
	req := e.restoreRequest(s, hypervisors.RestoreNew)
	r, err := e.Driver.BeginRestore(e.Context(), req)
	e.ok(err, "begin restore")
	done := false
	defer func() {
		if !done {
			_ = r.Abandon(e.cleanup())
		}
	}()
	for _, target := range r.Disks() {
		a := e.attach(req.Tag, target.Export)
		e.fillDisk(a.Export(), s.disks[target.DiskID])
		e.same(e.read(a.Export()), s.disks[target.DiskID], "disk "+target.DiskID+" read back in the mover")
		e.detach(a)
	}
	vm, err := r.Finish(e.Context())
	e.ok(err, "finish restore")
	done = true
	e.Cleanup(func() { e.Remove(e.T, vm.ID) })
	e.restored(vm, req, s)
}

// testAttachOwe looks that a disk is owed before it is there, and that an error of Owe leaves nothing.
func testAttachOwe(e *env) {
	e.hotadd()
	req := e.request(e.Running)
	f := e.freeze(req)
	refused := errors.New("the catalog is full")
	book := &ledger{fail: 1, err: refused, hook: func(int) {
		if left := e.attachedNow(); left != 0 {
			e.Errorf("%d disks are attached before one is owed", left)
		}
	}}
	attach := e.attachRequest(req.Tag, f.Info().Disks[0].Export)
	attach.Owe = book.owe
	if _, err := e.Driver.Attach(e.Context(), attach); !errors.Is(err, refused) {
		e.Errorf("attach though nothing can be owed: %v", err)
	}
	if left := e.attachedNow(); left != 0 {
		e.Errorf("%d disks are attached though nothing could be owed", left)
	}
	ctx, cancel := context.WithCancel(e.Context())
	book = &ledger{hook: func(int) { cancel() }}
	attach.Owe = book.owe
	if _, err := e.Driver.Attach(ctx, attach); fault.KindOf(err) != fault.Canceled {
		e.Errorf("canceled attach: %v", err)
	}
	e.cleanAll(book)
	if left := e.attachedNow(); left != 0 {
		e.Errorf("%d disks are attached after the clean-up of a canceled attach", left)
	}
	e.release(f)
}

// attachedNow counts the disks of this run that Leftovers finds in the mover.
func (e *env) attachedNow() int {
	e.Helper()
	return len(slices.DeleteFunc(e.leftovers(), func(o hypervisors.Owed) bool { return o.VM != e.Mover }))
}

// cleanAll does what a manager does with a journal after a crash: the newest entry first, and all of it twice.
func (e *env) cleanAll(book *ledger) {
	e.Helper()
	for range 2 {
		for _, o := range slices.Backward(book.items) {
			e.ok(e.Driver.CleanUp(e.cleanup(), o), "clean up "+string(o.Kind)+" "+o.Name)
		}
	}
}

// testAttachCleanUp forgets what was made, as a manager does that is killed between attach and detach.
func testAttachCleanUp(e *env) {
	e.hotadd()
	for _, from := range []string{"journal", "leftovers", "the freeze first"} {
		book := &ledger{}
		req := e.request(e.Running)
		req.Owe = book.owe
		f, err := e.Driver.Freeze(e.Context(), req)
		e.ok(err, "freeze")
		attach := e.attachRequest(req.Tag, f.Info().Disks[0].Export)
		attach.Owe = book.owe
		_, err = e.Driver.Attach(e.Context(), attach)
		e.ok(err, "attach")
		if n := e.attachedNow(); n != 1 {
			e.Errorf("Leftovers finds %d attached disks, want 1", n)
		}
		switch from {
		case "leftovers":
			book.items = e.leftovers()
		case "the freeze first":
			slices.Reverse(book.items)
		}
		e.cleanAll(book)
		e.clean("after a clean-up from " + from)
		e.forget()
	}
	f := e.freeze(e.request(e.Running)) // nothing is in the way
	e.release(f)
}

func testAttachRefused(e *env) {
	e.hotadd()
	req := e.request(e.Running)
	f := e.freeze(req)
	good := e.attachRequest(req.Tag, f.Info().Disks[0].Export)
	for name, tt := range map[string]struct {
		change func(*hypervisors.AttachRequest)
		want   fault.Kind
	}{
		"no such mover":      {func(r *hypervisors.AttachRequest) { r.Mover = e.NoSuchVM }, fault.NotFound},
		"a user's VM":        {func(r *hypervisors.AttachRequest) { r.Mover = e.Running }, fault.Denied},
		"one that is off":    {func(r *hypervisors.AttachRequest) { r.Mover = e.Stopped }, fault.Denied},
		"no serial":          {func(r *hypervisors.AttachRequest) { r.Serial = "" }, fault.Invalid},
		"a long serial":      {func(r *hypervisors.AttachRequest) { r.Serial += "x" }, fault.Invalid},
		"a serial with <":    {func(r *hypervisors.AttachRequest) { r.Serial = "a<b" }, fault.Invalid},
		"a tag that is none": {func(r *hypervisors.AttachRequest) { r.Tag = "../x" }, fault.Invalid},
		"attached already":   {func(r *hypervisors.AttachRequest) { r.Export.Transport = hypervisors.TransportHotadd }, fault.Invalid},
	} {
		bad := good
		tt.change(&bad)
		_, err := e.Driver.Attach(e.Context(), bad)
		e.kind(err, tt.want, name)
	}
	a := e.attach(req.Tag, good.Export)
	again := good
	switch disks := f.Info().Disks; {
	case e.OwnSerials: // the same disk once more
		again.Export = disks[0].Export
	case len(disks) > 1:
		again.Serial, again.Export = a.Export().Serial, disks[1].Export
	default:
		again.Serial = a.Export().Serial
	}
	_, err := e.Driver.Attach(e.Context(), again)
	e.kind(err, fault.Exists, "a serial that is in the mover")
	if n := e.attachedNow(); n != 1 {
		e.Errorf("%d disks are attached, want the one that was not refused", n)
	}
	e.detach(a)
	e.release(f)
}
