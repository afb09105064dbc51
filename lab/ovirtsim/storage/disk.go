package storage

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/cairn-backup/cairn/internal/fault"
)

// DiskSpec says what disk to create.
type DiskSpec struct {
	ID     string // oVirt's disk id
	Volume string // the id of its first volume
	// SizeBytes is the virtual size, a multiple of 512.
	SizeBytes int64
	Format    Format
	// Preallocated allocates a raw disk's blocks at once; they read as zeros.
	Preallocated bool
}

// DiskInfo is what is known of a disk.
type DiskInfo struct {
	ID        string
	SizeBytes int64
	Volumes   []VolumeInfo // the base first, the active one last
}

// Active is the volume that the guest writes.
func (d DiskInfo) Active() VolumeInfo { return d.Volumes[len(d.Volumes)-1] }

// VolumeInfo is what is known of a volume.
type VolumeInfo struct {
	ID          string
	Format      Format
	Path        string // of its file
	ActualBytes int64  // allocated in the file system
}

// CreateDisk makes a disk of one volume that reads as zeros.
func (s *Site) CreateDisk(ctx context.Context, spec DiskSpec) error {
	if !goodID(spec.ID) || !goodID(spec.Volume) || spec.SizeBytes <= 0 || spec.SizeBytes%512 != 0 || spec.Format != Raw && spec.Format != Cow {
		return fault.New(fault.Invalid, "create disk", spec.ID, "%+v", spec)
	}
	d := &disk{id: spec.ID, size: spec.SizeBytes}
	v := &volume{id: spec.Volume, path: s.path(spec.ID, spec.Volume), format: spec.Format}
	d.chain = []*volume{v}
	d.op.Lock()
	defer d.op.Unlock()
	s.mu.Lock()
	_, exists := s.disks[spec.ID]
	if !exists {
		s.disks[spec.ID] = d
	}
	s.mu.Unlock()
	if exists {
		return fault.New(fault.Exists, "create disk", spec.ID, "there is one")
	}
	err := s.createVolume(ctx, v, spec.SizeBytes, spec.Preallocated)
	if err == nil {
		err = s.openNode(ctx, v, "", false)
	}
	if err != nil {
		d.gone = true
		s.forget(d)
		_ = os.RemoveAll(filepath.Dir(v.path))
	}
	return err
}

func goodID(id string) bool { return id != "" && id != "." && id != ".." && filepath.Base(id) == id }

func (s *Site) createVolume(ctx context.Context, v *volume, size int64, preallocated bool) error {
	if err := os.MkdirAll(filepath.Dir(v.path), 0o700); err != nil {
		return fault.Context("create volume", v.id, err)
	}
	args := []string{"create", "-q", "-f", v.format.driver()}
	if preallocated && v.format == Raw {
		args = append(args, "-o", "preallocation=falloc")
	}
	return image(ctx, append(args, v.path, strconv.FormatInt(size, 10))...)
}

func (s *Site) forget(d *disk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.disks, d.id)
}

// DeleteDisk removes a disk with all its volumes. Images of it that are open break.
func (s *Site) DeleteDisk(ctx context.Context, id string) error {
	d, unlock, err := s.lock(id)
	if err != nil {
		return err
	}
	defer unlock()
	if b := s.backupOf(id); b != "" {
		return fault.New(fault.Conflict, "delete disk", id, "backup %s uses it", b)
	}
	s.mu.Lock()
	guests := d.guests
	d.guests = nil
	s.mu.Unlock()
	for _, g := range guests {
		g.hangUp()
		if err := s.endExport(ctx, g.export); err != nil {
			return err
		}
	}
	for i := len(d.chain) - 1; i >= 0; i-- {
		if err := s.do(ctx, "blockdev-del", object{"node-name": d.chain[i].node}, nil); err != nil {
			return fault.Wrap(fault.Conflict, "delete disk", id, err) // somebody has it exported
		}
		s.mu.Lock()
		d.chain = d.chain[:i]
		s.mu.Unlock()
	}
	d.gone = true
	s.forget(d)
	return os.RemoveAll(filepath.Join(s.dir, "images", id))
}

// Resize makes a disk larger; what is new reads as zeros. It is a Conflict while the active volume is exported or open by OpenVolume.
func (s *Site) Resize(ctx context.Context, id string, size int64) error {
	d, unlock, err := s.lock(id)
	if err != nil {
		return err
	}
	defer unlock()
	if size < d.size || size%512 != 0 {
		return fault.New(fault.Invalid, "resize disk", id, "from %d to %d bytes", d.size, size)
	}
	s.mu.Lock()
	guests := slices.DeleteFunc(slices.Clone(d.guests), func(g *Image) bool { return !g.guest })
	s.mu.Unlock()
	// QEMU does not resize what is exported by NBD.
	for _, g := range guests {
		g.suspend()
		defer g.goOn()
		if err := s.endExport(ctx, g.export); err != nil {
			return err
		}
	}
	if err := s.do(ctx, "block_resize", object{"node-name": d.active().node, "size": size}, nil); err != nil {
		return fault.Wrap(fault.Conflict, "resize disk", id, err)
	}
	d.size = size
	for _, g := range guests {
		if err := g.connect(ctx, d, d.active()); err != nil {
			return err
		}
	}
	return nil
}

// Disk returns what is known of a disk.
func (s *Site) Disk(id string) (DiskInfo, error) {
	d, unlock, err := s.lock(id)
	if err != nil {
		return DiskInfo{}, err
	}
	defer unlock()
	info := DiskInfo{ID: id, SizeBytes: d.size}
	for _, v := range d.chain {
		st, err := os.Stat(v.path)
		if err != nil {
			return DiskInfo{}, fault.Context("look at volume", v.id, err)
		}
		allocated := st.Size()
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			allocated = sys.Blocks * 512
		}
		info.Volumes = append(info.Volumes, VolumeInfo{ID: v.id, Format: v.format, Path: v.path, ActualBytes: allocated})
	}
	return info, nil
}
