package storage

import (
	"context"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Export is a volume, or a disk of a backup, that is offered over NBD.
type Export struct {
	Socket    string // path of the Unix socket
	Name      string // of the export
	SizeBytes int64
	Writable  bool
	// DirtyContext is the NBD metadata context that marks what changed since the backup's checkpoint; "" if nothing does.
	DirtyContext string

	site   *Site
	daemon *daemon
}

// ExportVolume offers a volume over NBD. Only the active volume can be written; whoever writes it is not the only one if the
// guest runs. A reader of the active volume sees what the guest writes.
func (s *Site) ExportVolume(ctx context.Context, volume string, writable bool) (*Export, error) {
	d, v, unlock, err := s.lockVolume(volume)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if writable && v != d.active() {
		return nil, fault.New(fault.Conflict, "export volume", volume, "it is frozen")
	}
	return s.exportNode(ctx, v.node, d.size, writable, "")
}

func (s *Site) exportNode(ctx context.Context, node string, size int64, writable bool, bitmap string) (*Export, error) {
	d := s.current()
	e := &Export{Socket: d.socket, Name: s.name("e"), SizeBytes: size, Writable: writable, site: s, daemon: d}
	o := object{"type": "nbd", "id": e.Name, "node-name": node, "name": e.Name, "writable": writable}
	if bitmap != "" {
		o["bitmaps"], e.DirtyContext = []string{bitmap}, "qemu:dirty-bitmap:"+bitmap
	}
	if err := d.do(ctx, "block-export-add", o, nil); err != nil {
		return nil, err
	}
	return e, nil
}

// Close ends the export; its clients are disconnected. It may be repeated.
func (e *Export) Close(ctx context.Context) error { return e.site.endExport(ctx, e) }

func (s *Site) endExport(ctx context.Context, e *Export) error {
	if e == nil || e.daemon != s.current() {
		return nil // it went with its daemon
	}
	return s.endExportNamed(ctx, e.daemon, e.Name)
}

// endExportNamed takes an export away and waits until nothing uses its node any more.
func (s *Site) endExportNamed(ctx context.Context, d *daemon, name string) error {
	var list []struct{ ID string }
	if err := d.do(ctx, "query-block-exports", nil, &list); err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(e struct{ ID string }) bool { return e.ID == name }) {
		return nil
	}
	w := d.watch(name)
	defer d.forget(name)
	if err := d.do(ctx, "block-export-del", object{"id": name, "mode": "hard"}, nil); err != nil {
		return err
	}
	return w.until(ctx, exportDeleted)
}
