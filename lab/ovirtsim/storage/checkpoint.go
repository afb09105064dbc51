package storage

import (
	"context"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Checkpoint is a mark in a disk's history of changes.
type Checkpoint struct {
	Name string
	// Inconsistent is set after a crash: what changed since then is not known, and no incremental backup can start there.
	Inconsistent bool
}

// Checkpoints lists those of a disk's active volume.
func (s *Site) Checkpoints(ctx context.Context, disk string) ([]Checkpoint, error) {
	d, unlock, err := s.lock(disk)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return s.bitmaps(ctx, d.active())
}

// DeleteCheckpoint removes a checkpoint from all volumes of a disk that have it.
func (s *Site) DeleteCheckpoint(ctx context.Context, disk, name string) error {
	d, unlock, err := s.lock(disk)
	if err != nil {
		return err
	}
	defer unlock()
	found, backing := false, ""
	for i, v := range d.chain {
		have, err := s.bitmaps(ctx, v)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(have, func(c Checkpoint) bool { return c.Name == name }) {
			found = true
			if err := s.removeBitmap(ctx, v, backing, name, i < len(d.chain)-1); err != nil {
				return fault.Context("delete checkpoint", name, err)
			}
		}
		backing = v.node
	}
	if !found {
		return fault.New(fault.NotFound, "delete checkpoint", name, "disk %s has none of that name", disk)
	}
	return nil
}

// removeBitmap removes a bitmap from a volume, which is opened for writing meanwhile if it is frozen.
func (s *Site) removeBitmap(ctx context.Context, v *volume, backing, name string, frozen bool) error {
	if frozen {
		if err := s.reopen(ctx, v, backing, false); err != nil {
			return err
		}
	}
	if err := s.do(ctx, "block-dirty-bitmap-remove", object{"node": v.node, "name": name}, nil); err != nil || !frozen {
		return err
	}
	return s.reopen(ctx, v, backing, true)
}

// bitmaps lists a volume's persistent bitmaps.
func (s *Site) bitmaps(ctx context.Context, v *volume) ([]Checkpoint, error) {
	var nodes []struct {
		Name    string `json:"node-name"`
		Bitmaps []struct {
			Name         string `json:"name"`
			Persistent   bool   `json:"persistent"`
			Inconsistent bool   `json:"inconsistent"`
		} `json:"dirty-bitmaps"`
	}
	if err := s.do(ctx, "query-named-block-nodes", object{"flat": true}, &nodes); err != nil {
		return nil, err
	}
	var out []Checkpoint
	for _, n := range nodes {
		for _, b := range n.Bitmaps {
			if n.Name == v.node && b.Persistent {
				out = append(out, Checkpoint{b.Name, b.Inconsistent})
			}
		}
	}
	return out, nil
}
