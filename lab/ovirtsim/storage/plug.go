package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Plugged is a volume as a file outside the daemon, as if it was plugged into a VM that is this machine.
type Plugged struct {
	Path      string // a regular file of the disk's size; reads and writes of it go to the volume
	SizeBytes int64

	site    *Site
	daemon  *daemon
	export  string
	overlay string // node; "" if there is none
	scratch string // its file
}

// Plug offers a volume as a file. A frozen volume gets a transient layer, as oVirt has it for a snapshot's disk in another VM:
// what is written to it never reaches the volume, and is gone with the layer. An active volume is written itself.
func (s *Site) Plug(ctx context.Context, volume string) (*Plugged, error) {
	d, v, unlock, err := s.lockVolume(volume)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p := &Plugged{SizeBytes: d.size, site: s, daemon: s.current(), export: s.name("e")}
	p.Path = filepath.Join(s.dir, p.export+".disk")
	node := v.node
	if v != d.active() {
		if err := p.addLayer(ctx, v); err != nil {
			return nil, err
		}
		node = p.overlay
	}
	if err = os.WriteFile(p.Path, nil, 0o600); err == nil {
		err = s.do(ctx, "block-export-add", object{
			"type": "fuse", "id": p.export, "node-name": node, "mountpoint": p.Path, "writable": true, "allow-other": "off",
		}, nil)
	}
	if err != nil {
		_ = p.Unplug(context.WithoutCancel(ctx))
		return nil, fault.Context("plug volume", volume, err)
	}
	return p, nil
}

// addLayer puts a transient layer on a frozen volume.
func (p *Plugged) addLayer(ctx context.Context, v *volume) error {
	node := p.site.name("t")
	p.scratch = filepath.Join(p.site.dir, node+".transient")
	if err := image(ctx, "create", "-q", "-f", "qcow2", p.scratch, strconv.FormatInt(p.SizeBytes, 10)); err != nil {
		return err
	}
	err := p.daemon.do(ctx, "blockdev-add", object{
		"driver": "qcow2", "node-name": node, "backing": v.node, "file": object{"driver": "file", "filename": p.scratch},
	}, nil)
	if err != nil {
		_ = os.Remove(p.scratch)
		return err
	}
	p.overlay = node
	return nil
}

// Unplug takes the file away. It may be repeated.
func (p *Plugged) Unplug(ctx context.Context) error {
	if p.daemon == p.site.current() {
		if err := p.site.endExportNamed(ctx, p.daemon, p.export); err != nil {
			return err
		}
		if p.overlay != "" {
			if err := p.daemon.do(ctx, "blockdev-del", object{"node-name": p.overlay}, nil); err != nil {
				return err
			}
			p.overlay = ""
		}
	} else {
		_ = syscall.Unmount(p.Path, syscall.MNT_DETACH) // what is left of a daemon that was killed
	}
	var errs []error
	for _, path := range []string{p.Path, p.scratch} {
		if err := os.Remove(path); path != "" && err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
