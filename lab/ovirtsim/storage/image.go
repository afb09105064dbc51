package storage

import (
	"context"
	"io"
	"sync"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Image is a volume that is open in this process: the disk of a guest that runs, or a frozen volume whose content is to be looked
// at. Its methods may be called from several goroutines.
type Image struct {
	site  *Site
	disk  string
	guest bool

	mu     sync.RWMutex // held for writing while there is no client
	export *Export      // the disk's op
	client *nbd.Client  // nil after Close
}

// Guest opens a disk as its guest has it: it goes on on the new volume after a snapshot and on the merged one after a merge.
func (s *Site) Guest(ctx context.Context, disk string) (*Image, error) {
	d, unlock, err := s.lock(disk)
	if err != nil {
		return nil, err
	}
	defer unlock()
	g := &Image{site: s, disk: disk, guest: true}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.connect(ctx, d, d.active()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.guests = append(d.guests, g)
	return g, nil
}

// OpenVolume opens a volume for reading.
func (s *Site) OpenVolume(ctx context.Context, volume string) (*Image, error) {
	d, v, unlock, err := s.lockVolume(volume)
	if err != nil {
		return nil, err
	}
	defer unlock()
	g := &Image{site: s, disk: d.id}
	if err := g.connect(ctx, d, v); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.guests = append(d.guests, g)
	return g, nil
}

// connect exports a volume and opens it; the disk is locked, and g.mu is held or nobody else has g.
func (g *Image) connect(ctx context.Context, d *disk, v *volume) error {
	e, err := g.site.exportNode(ctx, v.node, d.size, g.guest, "")
	if err != nil {
		return err
	}
	c, err := nbd.Dial(ctx, nbd.Config{Network: "unix", Address: e.Socket, Export: e.Name, Connections: 1})
	if err != nil {
		_ = g.site.endExport(context.WithoutCancel(ctx), e)
		return err
	}
	g.export, g.client = e, c
	return nil
}

// suspend ends the client until connect; goOn lets others use the image again.
func (g *Image) suspend() {
	g.mu.Lock()
	if g.client != nil {
		_ = g.client.Close()
	}
}

func (g *Image) goOn() { g.mu.Unlock() }

// hangUp ends the client for good.
func (g *Image) hangUp() {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.client != nil {
		_ = g.client.Close()
	}
}

// Size is the disk's in bytes.
func (g *Image) Size() int64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.client.Info().Size
}

// ReadAt implements io.ReaderAt.
func (g *Image) ReadAt(p []byte, off int64) (int, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	n := int(max(0, min(int64(len(p)), g.client.Info().Size-off)))
	if err := g.client.Read(context.Background(), p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (g *Image) WriteAt(p []byte, off int64) (int, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if err := g.client.Write(context.Background(), p, off, 0); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Zero makes a range read as zeros.
func (g *Image) Zero(ctx context.Context, off, n int64) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.client.Zero(ctx, off, n, 0)
}

// Flush makes what was written survive a crash.
func (g *Image) Flush(ctx context.Context) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.client.Flush(ctx)
}

// Close may be repeated.
func (g *Image) Close() error {
	g.hangUp()
	d, unlock, err := g.site.lock(g.disk)
	if fault.KindOf(err) == fault.NotFound {
		return nil // it went with its disk
	}
	defer unlock()
	if err := g.site.endExport(context.Background(), g.export); err != nil {
		return err
	}
	g.site.mu.Lock()
	defer g.site.mu.Unlock()
	for i, other := range d.guests {
		if other == g {
			d.guests = append(d.guests[:i:i], d.guests[i+1:]...)
			break
		}
	}
	return nil
}
