package storage

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

// NewVolume names the volume that a snapshot puts on top of a disk.
type NewVolume struct{ Disk, Volume string }

// Snapshot freezes the active volumes of several disks at one instant and puts new ones, qcow2, on top. Guests go on on the new
// ones. Either all disks have a new volume or none.
func (s *Site) Snapshot(ctx context.Context, disks ...NewVolume) error {
	disks = slices.Clone(disks)
	slices.SortFunc(disks, func(a, b NewVolume) int { return strings.Compare(a.Disk, b.Disk) })
	var locked []*disk
	var tops []*volume
	var actions []object
	done := false
	defer func() {
		for _, v := range tops {
			if done {
				break
			}
			_ = s.do(context.WithoutCancel(ctx), "blockdev-del", object{"node-name": v.node}, nil)
			_ = remove(v.path)
		}
	}()
	for _, n := range disks {
		d, unlock, err := s.lock(n.Disk)
		if err != nil {
			return err
		}
		defer unlock()
		top, err := s.overlay(ctx, d, n.Volume)
		if err != nil {
			return fault.Context("snapshot disk", n.Disk, err)
		}
		locked, tops = append(locked, d), append(tops, top)
		actions = append(actions, action("blockdev-snapshot", object{"node": d.active().node, "overlay": top.node}))
	}
	if err := s.do(ctx, "transaction", object{"actions": actions}, nil); err != nil {
		return err
	}
	done = true
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, d := range locked {
		d.chain = append(d.chain, tops[i])
	}
	return nil
}

func action(kind string, data object) object { return object{"type": kind, "data": data} }

// overlay makes a volume that is to lie on a disk's active one, with the same checkpoints.
func (s *Site) overlay(ctx context.Context, d *disk, id string) (*volume, error) {
	below := d.active()
	v := &volume{id: id, path: s.path(d.id, id), format: Cow}
	if _, err := s.find(id); err == nil || !goodID(id) {
		return nil, fault.New(fault.Exists, "create volume", id, "there is one, or its id cannot be a file's name")
	}
	// oVirt's volumes name the one below by its id alone.
	err := image(ctx, "create", "-q", "-u", "-f", "qcow2", "-F", below.format.driver(), "-b", below.id, v.path, strconv.FormatInt(d.size, 10))
	if err != nil {
		return nil, err
	}
	if err := s.openNode(ctx, v, "", false); err != nil {
		_ = remove(v.path)
		return nil, err
	}
	bitmaps, err := s.bitmaps(ctx, below)
	for _, b := range bitmaps {
		if err == nil && !b.Inconsistent {
			err = s.do(ctx, "block-dirty-bitmap-add", object{"node": v.node, "name": b.Name, "persistent": true}, nil)
		}
	}
	if err != nil {
		_ = s.do(ctx, "blockdev-del", object{"node-name": v.node}, nil)
		_ = remove(v.path)
		return nil, err
	}
	return v, nil
}

// Merge moves the content of the volume above a frozen one into the frozen one, which takes its place, and removes it. The guest
// goes on while that happens. Checkpoints of the removed volume live on in the one that stays.
func (s *Site) Merge(ctx context.Context, disk, frozen string) error {
	d, unlock, err := s.lock(disk)
	if err != nil {
		return err
	}
	defer unlock()
	i := d.index(frozen)
	switch {
	case i < 0:
		return fault.New(fault.NotFound, "merge volume", frozen, "disk %s has no such volume", disk)
	case i == len(d.chain)-1:
		return fault.New(fault.Conflict, "merge volume", frozen, "it is the active one of disk %s", disk)
	}
	if b := s.backupOf(disk); b != "" {
		return fault.New(fault.Conflict, "merge volume", frozen, "backup %s uses its disk", b)
	}
	base, top := d.chain[i], d.chain[i+1]
	if top == d.active() {
		err = s.commitActive(ctx, base, top)
	} else {
		err = s.commitFrozen(ctx, d, i)
	}
	if err != nil {
		return fault.Context("merge volume", frozen, err)
	}
	if err := s.do(ctx, "blockdev-del", object{"node-name": top.node}, nil); err != nil {
		return err
	}
	s.mu.Lock()
	d.chain = slices.Delete(d.chain, i+1, i+2)
	s.mu.Unlock()
	return remove(top.path)
}

// commitActive merges the volume that the guest writes. Its checkpoints are copied when both volumes hold the same: from then on
// whatever the guest writes is written, and marked, in both.
func (s *Site) commitActive(ctx context.Context, base, top *volume) error {
	j, err := s.commit(ctx, object{"device": top.node, "base-node": base.node})
	if err != nil {
		return err
	}
	if err := j.until(ctx, "ready"); err != nil {
		return err
	}
	if err := s.copyBitmaps(ctx, base, top); err != nil {
		_ = s.do(ctx, "job-cancel", object{"id": j.id}, nil)
		return cmpErr(err, j.finish(ctx))
	}
	if err := s.do(ctx, "job-complete", object{"id": j.id}, nil); err != nil {
		return err
	}
	return j.finish(ctx)
}

// commitFrozen merges the volume above the one at i into it; nobody writes either. The job leaves the lower one read-only, as it
// was, so it is opened for writing around it.
func (s *Site) commitFrozen(ctx context.Context, d *disk, i int) error {
	base, top := d.chain[i], d.chain[i+1]
	backing := ""
	if i > 0 {
		backing = d.chain[i-1].node
	}
	if err := s.reopen(ctx, base, backing, false); err != nil {
		return err
	}
	j, err := s.commit(ctx, object{"device": d.active().node, "top-node": top.node, "base-node": base.node, "backing-file": base.id})
	if err != nil {
		return err
	}
	if err := j.finish(ctx); err != nil {
		return err
	}
	if err := s.copyBitmaps(ctx, base, top); err != nil {
		return err
	}
	return s.reopen(ctx, base, backing, true)
}

func (s *Site) commit(ctx context.Context, arguments object) (*job, error) {
	id := s.name("commit")
	arguments["job-id"], arguments["auto-dismiss"] = id, false
	return s.current().job(ctx, id, "block-commit", arguments)
}

// reopen changes whether a volume can be written.
func (s *Site) reopen(ctx context.Context, v *volume, backing string, readOnly bool) error {
	o := v.options(backing, readOnly)
	o["file"] = v.node + "-file"
	return s.do(ctx, "blockdev-reopen", object{"options": []object{o}}, nil)
}

// copyBitmaps adds what is marked in a volume's checkpoints to those of the one below.
func (s *Site) copyBitmaps(ctx context.Context, base, top *volume) error {
	if base.format != Cow {
		return nil // as on oVirt, a raw volume loses them
	}
	have, err := s.bitmaps(ctx, base)
	if err != nil {
		return err
	}
	add, err := s.bitmaps(ctx, top)
	if err != nil {
		return err
	}
	var actions []object
	for _, b := range add {
		i := slices.IndexFunc(have, func(h Checkpoint) bool { return h.Name == b.Name })
		if b.Inconsistent || i >= 0 && have[i].Inconsistent {
			continue
		}
		if i < 0 {
			actions = append(actions, action("block-dirty-bitmap-add", object{"node": base.node, "name": b.Name, "persistent": true}))
		}
		actions = append(actions, action("block-dirty-bitmap-merge", object{
			"node": base.node, "target": b.Name, "bitmaps": []object{{"node": top.node, "name": b.Name}},
		}))
	}
	if len(actions) == 0 {
		return nil
	}
	return s.do(ctx, "transaction", object{"actions": actions}, nil)
}
