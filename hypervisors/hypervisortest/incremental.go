package hypervisortest

import (
	"maps"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

const rounds = 5

// track freezes Running with a new checkpoint.
func (e *env) track(since string) hypervisors.Frozen {
	e.Helper()
	req := e.request(e.Running)
	req.Since, req.Track = since, true
	f := e.freeze(req)
	if f.Info().Checkpoint == "" {
		e.Fatal("no checkpoint was made")
	}
	return f
}

// keep makes a checkpoint the only one.
func (e *env) keep(name string) {
	e.Helper()
	e.ok(e.Driver.KeepCheckpoint(e.Context(), e.Running, name), "keep checkpoint")
	list, err := e.Driver.Checkpoints(e.Context(), e.Running)
	e.ok(err, "list checkpoints")
	if len(list) != 1 || list[0].Name != name {
		e.Errorf("checkpoints %+v, want only %s", list, name)
	}
}

// incremental applies a freeze to copies of the disks and compares with the whole.
func (e *env) incremental(f hypervisors.Frozen, images map[string][]byte, what string) {
	e.Helper()
	for _, d := range f.Info().Disks {
		if d.Export.DirtyContext == "" || d.FullReason != "" {
			e.Errorf("%s: disk %s is read as a whole: %q", what, d.Disk.ID, d.FullReason)
		}
		unchanged := e.apply(images[d.Disk.ID], d.Export)
		if unchanged < d.Disk.SizeBytes/2 {
			e.Errorf("%s: only %d of %d bytes of disk %s are known to be unchanged", what, unchanged, d.Disk.SizeBytes, d.Disk.ID)
		}
		e.same(images[d.Disk.ID], e.read(d.Export), what+": disk "+d.Disk.ID+" by its changes")
	}
}

func testIncrementals(e *env) {
	e.need(e.caps.ChangeTracking, "change tracking")
	f := e.track("")
	images, last := e.content(f), f.Info().Checkpoint
	e.release(f)
	e.keep(last)
	for range rounds {
		e.Write(e.T)
		f := e.track(last)
		e.Write(e.T) // belongs to the next round
		e.incremental(f, images, "round")
		e.release(f)
		last = f.Info().Checkpoint
		e.keep(last)
	}
	f = e.track(last) // nothing but the write during the last freeze
	e.incremental(f, images, "last round")
	for id, image := range images {
		e.same(image, e.Content(e.T, e.Running, id), "disk "+id+" at the end")
	}
	e.release(f)
	e.forget()
}

// testAbandonedRun drops the checkpoint of a run that was not published: nothing written before it may be lost.
func testAbandonedRun(e *env) {
	e.need(e.caps.ChangeTracking, "change tracking")
	f := e.track("")
	images, good := e.content(f), f.Info().Checkpoint
	e.release(f)
	e.Write(e.T)
	before := maps.Clone(images)
	f = e.track(good)
	lost := f.Info().Checkpoint
	e.release(f)
	e.keep(good)
	if lost == good {
		e.Errorf("two freezes have the same checkpoint %s", good)
	}
	e.Write(e.T)
	f = e.track(good)
	e.incremental(f, before, "after an abandoned run")
	e.release(f)
	e.forget()
}

func testLostCheckpoint(e *env) {
	e.need(e.caps.ChangeTracking, "change tracking")
	req := e.request(e.Running)
	req.Since, req.Track = "cairn-"+e.tag(), true
	f := e.freeze(req)
	for _, d := range f.Info().Disks {
		if d.Export.DirtyContext != "" || d.FullReason == "" {
			e.Errorf("disk %s since a checkpoint that never was: dirty context %q, reason %q; want a full with a reason",
				d.Disk.ID, d.Export.DirtyContext, d.FullReason)
		}
		image := make([]byte, d.Disk.SizeBytes)
		if unchanged := e.apply(image, d.Export); unchanged != 0 {
			e.Errorf("disk %s: %d bytes are unchanged since nothing", d.Disk.ID, unchanged)
		}
		e.same(image, e.Content(e.T, e.Running, d.Disk.ID), "disk "+d.Disk.ID)
	}
	e.release(f)
	e.forget()
}

func testKeepCheckpoint(e *env) {
	e.need(e.caps.ChangeTracking, "change tracking")
	var made []string
	for range 3 {
		f := e.track("")
		e.release(f)
		made = append(made, f.Info().Checkpoint)
	}
	list, err := e.Driver.Checkpoints(e.Context(), e.Running)
	e.ok(err, "list checkpoints")
	if len(list) != len(made) {
		e.Fatalf("checkpoints %+v, want %v", list, made)
	}
	for i, c := range list {
		if c.Name != made[i] || len(c.Disks) == 0 {
			e.Errorf("checkpoint %d is %+v, want %s with its disks", i, c, made[i])
		}
	}
	for range 2 {
		e.keep(made[1])
	}
	e.Write(e.T)
	f := e.track(made[1])
	if d := f.Info().Disks[0]; d.FullReason != "" {
		e.Errorf("the checkpoint that was kept is of no use: %s", d.FullReason)
	}
	e.release(f)
	for range 2 {
		e.ok(e.Driver.KeepCheckpoint(e.Context(), e.Running, ""), "remove all checkpoints")
	}
}

func testForeign(e *env) {
	e.need(e.caps.ChangeTracking && e.Foreign != nil, "checkpoints of other tools")
	name, exists := e.Foreign(e.T)
	f := e.track("")
	images, last := e.content(f), f.Info().Checkpoint
	e.release(f)
	e.keep(last) // also: the list does not name what is not ours
	e.Write(e.T)
	f = e.track(last)
	e.incremental(f, images, "beside another tool's checkpoint")
	e.release(f)
	for range 2 {
		e.forget()
	}
	err := e.Driver.CleanUp(e.cleanup(), hypervisors.Owed{Kind: hypervisors.OwedCheckpoint, VM: e.Running, Name: name})
	if err == nil || fault.KindOf(err) == fault.Internal {
		e.Errorf("clean-up of a checkpoint that is not ours: %v, want a refusal with a kind", err)
	}
	if !exists() {
		e.Errorf("the other tool's checkpoint %s is gone", name)
	}
}
