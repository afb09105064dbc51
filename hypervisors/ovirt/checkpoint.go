package ovirt

import (
	"context"
	"slices"
	"strings"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// mark is a checkpoint of the engine. The engine makes up its id and gives it the description of its backup, so ours
// are known by that: it is what this product calls a checkpoint's name.
type mark struct {
	id, parent, description string
	valid                   bool
	checkpoint              hypervisors.Checkpoint
}

func (m mark) ours() bool { return strings.HasPrefix(m.description, marker) }

func checkpointsPath(vm string) string { return "/vms/" + vm + "/checkpoints" }

// marks lists the checkpoints of a VM, whoever made them, the oldest first.
func (d *Driver) marks(ctx context.Context, vm string) ([]mark, error) {
	all, err := engine.All[*sdk.Checkpoint](ctx, d.conn, engine.Request{
		Op: "list checkpoints of VM", Subject: vm, Path: checkpointsPath(vm), Query: engine.Query("follow", "disks"),
	}, "checkpoints", sdk.XMLCheckpointReadMany)
	if err != nil {
		return nil, err
	}
	byID := map[string]string{}
	for _, c := range all {
		byID[val(c.Id())] = val(c.Description())
	}
	var out []mark
	for _, c := range all {
		m := mark{id: val(c.Id()), parent: val(c.ParentId()), description: val(c.Description()), valid: val(c.State()) != sdk.CHECKPOINTSTATE_INVALID}
		m.checkpoint = hypervisors.Checkpoint{Name: m.description, Parent: byID[m.parent], Created: val(c.CreationDate())}
		disks := items(c.Disks())
		if len(disks) == 0 {
			disks, err = engine.All[*sdk.Disk](ctx, d.conn, engine.Request{
				Op: "list disks of checkpoint of VM", Subject: vm, Path: checkpointsPath(vm) + "/" + m.id + "/disks",
			}, "disks", sdk.XMLDiskReadMany)
			if err != nil && !engine.Gone(err) {
				return nil, err
			}
		}
		for _, disk := range disks {
			m.checkpoint.Disks = append(m.checkpoint.Disks, val(disk.Id()))
		}
		slices.Sort(m.checkpoint.Disks)
		out = append(out, m)
	}
	return inOrder(out), nil
}

// inOrder sorts checkpoints from the root on: their dates may be equal, and say nothing when a clock was set.
func inOrder(marks []mark) []mark {
	depth := func(m mark) (n int) {
		for m.parent != "" && n <= len(marks) {
			i := slices.IndexFunc(marks, func(o mark) bool { return o.id == m.parent })
			if i < 0 {
				break
			}
			m = marks[i]
			n++
		}
		return n
	}
	slices.SortStableFunc(marks, func(a, b mark) int { return depth(a) - depth(b) })
	return marks
}

// Checkpoints lists the checkpoints of ours on a VM, oldest first.
func (d *Driver) Checkpoints(ctx context.Context, vm string) ([]hypervisors.Checkpoint, error) {
	if err := checkID("VM", vm); err != nil {
		return nil, err
	}
	all, err := d.marks(ctx, vm)
	if err != nil {
		return nil, err
	}
	out := []hypervisors.Checkpoint{}
	for _, m := range all {
		if m.ours() {
			out = append(out, m.checkpoint)
		}
	}
	return out, nil
}

// KeepCheckpoint removes the checkpoints of ours on a VM except keep.
func (d *Driver) KeepCheckpoint(ctx context.Context, vm, keep string) error {
	if err := checkID("VM", vm); err != nil {
		return err
	}
	all, err := d.marks(ctx, vm)
	if err != nil {
		if engine.Gone(err) {
			return nil
		}
		return err
	}
	if slices.ContainsFunc(all, func(m mark) bool { return m.ours() && m.description != keep }) {
		if err := d.noBackup(ctx, vm); err != nil {
			return err
		}
	}
	below := true // nothing that stays is older
	for _, m := range all {
		if !m.ours() || m.description == keep {
			below = false
			continue
		}
		err := d.removeMark(ctx, vm, m)
		if err != nil && !below && notRoot(err) {
			// Some engines remove the oldest one only. It goes when those before it have gone.
			d.log.InfoContext(ctx, "a checkpoint stays until an older one goes", "vm", vm, "checkpoint", m.description)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// noBackup refuses what the engine refuses as long as a VM is in a backup: waiting for its end is the caller's, who may be the
// one to end it.
func (d *Driver) noBackup(ctx context.Context, vm string) error {
	all, err := d.backups(ctx, vm)
	if err != nil {
		return err
	}
	for _, b := range all {
		if !backupOver(val(b.Phase())) {
			return fault.New(fault.Conflict, "remove checkpoints of VM", vm, "the VM is in the backup %q", val(b.Description())).
				Explain("The engine removes no checkpoint while a VM is being backed up.", "It is done when the backup has ended.")
		}
	}
	return nil
}

// notRoot recognises an engine that removes the oldest checkpoint only.
func notRoot(err error) bool {
	return fault.KindOf(err) == fault.Conflict && engine.DetailHas(err, "root", "oldest")
}

func (d *Driver) removeMark(ctx context.Context, vm string, m mark) error {
	const op = "remove checkpoint of VM"
	path := checkpointsPath(vm) + "/" + m.id
	// Refused for a moment after a backup has ended.
	err := d.pace.unlessBusy(ctx, "remove checkpoint", func() error { return d.conn.Remove(ctx, op, vm, path) })
	if err != nil {
		return err
	}
	return d.pace.poll(ctx, d.pace.create, "the checkpoint of VM "+vm+" is gone", func() (bool, error) {
		_, err := engine.One(ctx, d.conn, engine.Request{Op: op, Subject: vm, Path: path}, "checkpoint", sdk.XMLCheckpointReadOne)
		if engine.Gone(err) {
			return true, nil
		}
		return false, err
	})
}

// cleanMark removes the checkpoint of ours with a name.
func (d *Driver) cleanMark(ctx context.Context, vm, name string) error {
	if err := checkID("VM", vm); err != nil {
		return err
	}
	all, err := d.marks(ctx, vm)
	if engine.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.description == name {
			return d.removeMark(ctx, vm, m)
		}
	}
	return nil
}
