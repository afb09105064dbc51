package ovirt

import (
	"context"
	"fmt"
	"time"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// outcome is what a look at something that takes its time says.
type outcome int

const (
	pending outcome = iota
	ready
	failed
)

// judgeSnapshot looks at a snapshot that is being made. The engine gives a new snapshot the id that the VM's active one had
// until then, and gives it back when the snapshot fails: then a look at the id shows a snapshot that is ok and not ours.
func judgeSnapshot(s *sdk.Snapshot, description string) (outcome, string) {
	kind, status := val(s.SnapshotType()), val(s.SnapshotStatus())
	switch {
	case status == sdk.SNAPSHOTSTATUS_LOCKED:
		return pending, ""
	case kind == sdk.SNAPSHOTTYPE_ACTIVE:
		return failed, "the engine took it back: its id is that of the running VM again"
	case val(s.Description()) != description:
		return failed, "its description is not ours"
	case kind != sdk.SNAPSHOTTYPE_REGULAR:
		return failed, fmt.Sprintf("it is of the type %q", kind)
	case status != sdk.SNAPSHOTSTATUS_OK:
		return failed, fmt.Sprintf("its status is %q", status)
	}
	return ready, ""
}

// removalLooks is how often a snapshot whose removal was taken may look as before, about three seconds long: then the removal
// has begun or failed.
const removalLooks = 8

// judgeRemoval looks at a snapshot that is being removed. What becomes ok again was not removed: the engine has no other
// way to say so. locked says that the removal was seen under way, looks how often the snapshot was looked at.
func judgeRemoval(s *sdk.Snapshot, locked bool, looks int) (outcome, string) {
	switch val(s.SnapshotStatus()) {
	case sdk.SNAPSHOTSTATUS_LOCKED:
		return pending, ""
	case sdk.SNAPSHOTSTATUS_OK:
		if locked || looks >= removalLooks {
			return failed, "the engine could not remove it: its status is ok again"
		}
		return pending, ""
	}
	return failed, fmt.Sprintf("its status is %q", val(s.SnapshotStatus()))
}

func snapshotPath(vm, snapshot string) string { return "/vms/" + vm + "/snapshots/" + snapshot }

func (d *Driver) snapshots(ctx context.Context, vm string) ([]*sdk.Snapshot, error) {
	return engine.All[*sdk.Snapshot](ctx, d.conn, engine.Request{Op: "list snapshots of VM", Subject: vm, Path: "/vms/" + vm + "/snapshots"}, "snapshots", sdk.XMLSnapshotReadMany)
}

func (d *Driver) snapshot(ctx context.Context, vm, id string, content bool) (*sdk.Snapshot, error) {
	r := engine.Request{Op: "look at snapshot of VM", Subject: vm, Path: snapshotPath(vm, id), Content: content}
	if content {
		r.Query = engine.Query("all_content", "true")
	}
	return engine.One(ctx, d.conn, r, "snapshot", sdk.XMLSnapshotReadOne)
}

// findSnapshot returns the snapshot of a VM with a description, or nil.
func (d *Driver) findSnapshot(ctx context.Context, vm, description string) (*sdk.Snapshot, error) {
	all, err := d.snapshots(ctx, vm)
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if val(s.Description()) == description && val(s.SnapshotType()) != sdk.SNAPSHOTTYPE_ACTIVE {
			return s, nil
		}
	}
	return nil, nil
}

// mergeTime bounds the waiting for a merge; whoever calls has a shorter patience.
const mergeTime = 24 * time.Hour

// makeSnapshot makes a snapshot that is owed already, and waits until it can be read. It returns its id.
func (d *Driver) makeSnapshot(ctx context.Context, vm, name, tag string, disks []string) (string, error) {
	const op = "make snapshot of VM"
	description := marker + tag
	doc, err := snapshotDocument(description, disks)
	if err != nil {
		return "", err
	}
	id, err := makeFor(ctx, d, tag, op, name, func(ctx context.Context) (string, error) {
		out, err := d.conn.Post(ctx, op, name, "/vms/"+vm+"/snapshots", doc, correlation(tag, "snapshot"))
		if err != nil && fault.KindOf(err) == fault.Transient {
			// The reply may be what was lost.
			if s, e := d.findSnapshot(ctx, vm, description); e == nil && s != nil {
				return val(s.Id()), nil
			}
		}
		if err != nil {
			return "", err
		}
		s, err := apixml.DecodeOne(out, "snapshot", sdk.XMLSnapshotReadOne)
		if err != nil {
			return "", fault.Context(op, name, err)
		}
		return val(s.Id()), checkID("snapshot", val(s.Id()))
	})
	if err != nil {
		return "", err
	}
	err = d.pace.poll(ctx, d.pace.create, "the snapshot of VM "+name+" is made", func() (bool, error) {
		s, err := d.snapshot(ctx, vm, id, false)
		if err != nil && !engine.Gone(err) {
			return false, err
		}
		state, why := failed, "it is gone"
		if err == nil {
			state, why = judgeSnapshot(s, description)
		}
		if state == failed {
			return false, fault.New(fault.Transient, op, name, "%s", why).Explain(
				"The engine could not make the snapshot.", "Look at the VM's events in the engine: storage that is full, or a host that does not answer, shows there.")
		}
		return state == ready, nil
	})
	return id, err
}

// removeSnapshot removes the snapshot of ours with a description and waits until the engine has merged it. Merging may
// take hours; a later call goes on waiting.
func (d *Driver) removeSnapshot(ctx context.Context, vm, description string) error {
	const op = "remove snapshot of VM"
	s, err := d.settledSnapshot(ctx, vm, description)
	if s == nil || err != nil {
		return err
	}
	id := val(s.Id())
	// Refused while another snapshot is removed, or a disk is still plugged into a mover for a moment.
	err = d.pace.unlessBusy(ctx, "remove snapshot", func() error { return d.conn.Remove(ctx, op, vm, snapshotPath(vm, id)) })
	if err != nil {
		return err
	}
	locked, looks := false, 0
	return d.pace.poll(ctx, mergeTime, "the snapshot of VM "+vm+" is merged", func() (bool, error) {
		s, err := d.snapshot(ctx, vm, id, false)
		if engine.Gone(err) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if val(s.SnapshotType()) == sdk.SNAPSHOTTYPE_ACTIVE || val(s.Description()) != description {
			return true, nil // the id is the active one's again: ours is gone
		}
		looks++
		state, why := judgeRemoval(s, locked, looks)
		locked = locked || state == pending
		if state == failed {
			return false, fault.New(fault.Transient, op, vm, "%s", why).Explain(
				"The engine could not merge the snapshot. The VM goes on running, on one layer more.",
				"It is tried again. If it fails each time, look at the VM's events in the engine: storage that is full is the usual reason.")
		}
		return false, nil
	})
}

// settledSnapshot finds a snapshot of ours and waits until the engine has finished making it; nil is none.
func (d *Driver) settledSnapshot(ctx context.Context, vm, description string) (found *sdk.Snapshot, err error) {
	s, err := d.findSnapshot(ctx, vm, description)
	if engine.Gone(err) {
		return nil, nil // the VM is gone, and its snapshots with it
	}
	if s == nil || err != nil || val(s.SnapshotStatus()) != sdk.SNAPSHOTSTATUS_LOCKED {
		return s, err
	}
	// Locked says either that it is being made or that it is being removed; both end.
	err = d.pace.poll(ctx, mergeTime, "the engine has finished with a snapshot of VM "+vm, func() (bool, error) {
		found, err = d.findSnapshot(ctx, vm, description)
		if engine.Gone(err) {
			found, err = nil, nil
		}
		return found == nil || val(found.SnapshotStatus()) != sdk.SNAPSHOTSTATUS_LOCKED, err
	})
	return found, err
}
