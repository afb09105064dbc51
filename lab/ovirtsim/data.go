package ovirtsim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"sync"

	"github.com/cairn-backup/cairn/lab/kvmlab/pattern"
	"github.com/cairn-backup/cairn/lab/ovirtsim/storage"
)

// errInjected stands for a failure of the platform's own.
var errInjected = errors.New("it was made to fail")

// data is what lies in the storage. Disks are made when something needs their content for the first time.
type data struct {
	mu   sync.Mutex // held while disks are made and unmade; Engine.mu may be taken under it, never the other way round
	dir  string     // of ours, to be removed; "" is Config.Dir's
	site *storage.Site
}

// storage returns the site's storage, which is started when it is needed first.
func (e *Engine) storage(ctx context.Context) (*storage.Site, error) {
	e.data.mu.Lock()
	defer e.data.mu.Unlock()
	return e.startStorage(ctx)
}

func (e *Engine) startStorage(ctx context.Context) (*storage.Site, error) {
	d := &e.data
	if d.site != nil {
		return d.site, nil
	}
	dir := e.cfg.Dir
	if dir == "" {
		made, err := os.MkdirTemp("", "ovirtsim-")
		if err != nil {
			return nil, err
		}
		d.dir, dir = made, made
	}
	site, err := storage.Start(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("start the storage: %w", err)
	}
	d.site = site
	return site, nil
}

// dir is where the storage lies, once it runs.
func (e *Engine) dir() string { return cmp.Or(e.cfg.Dir, e.data.dir) }

func (d *data) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	if d.site != nil {
		errs = append(errs, d.site.Close())
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}

// stored makes sure that disks are in the storage.
func (e *Engine) stored(ctx context.Context, disks ...*disk) (*storage.Site, error) {
	e.data.mu.Lock()
	defer e.data.mu.Unlock()
	s, err := e.startStorage(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		if d.stored.Load() || d.lun {
			continue
		}
		e.mu.Lock()
		spec := d.spec(d.active)
		e.mu.Unlock()
		if err := s.CreateDisk(ctx, spec); err != nil {
			return nil, err
		}
		d.stored.Store(true)
	}
	return s, nil
}

// patternArea is how much of each disk guests of the site write.
const patternArea = 1 << 20

// fill makes a VM's disks, with content if it is one of the site's, and starts its guest if it runs.
func (e *Engine) fill(ctx context.Context, v *vm) error {
	v.filling.Lock()
	defer v.filling.Unlock()
	e.mu.Lock()
	disks, filled, starts := v.ownDisks(), v.filled, v.runs() && !v.idle && v.guest == nil
	e.mu.Unlock()
	if _, err := e.stored(ctx, disks...); err != nil {
		return err
	}
	if !filled {
		if err := e.format(ctx, v, disks); err != nil {
			return fmt.Errorf("fill the disks of %s: %w", v.name, err)
		}
		e.mu.Lock()
		v.filled = true
		e.mu.Unlock()
	}
	if starts {
		return e.startGuest(ctx, v, disks)
	}
	return nil
}

// ownDisks are those that a VM's guest could write.
func (v *vm) ownDisks() (out []*disk) {
	for _, a := range v.attached.all() {
		if a.snapshot == "" && !a.disk.lun && !a.disk.shareable {
			out = append(out, a.disk)
		}
	}
	return out
}

// format writes the first rounds of the pattern to new disks.
func (e *Engine) format(ctx context.Context, v *vm, disks []*disk) error {
	devices, closeAll, err := e.open(ctx, disks)
	if err != nil || len(devices) == 0 {
		return err
	}
	defer closeAll()
	var id pattern.ID
	copy(id[:], v.id)
	w, err := pattern.Format(id, patternArea, devices...)
	if err != nil {
		return err
	}
	for range v.rounds {
		if err := w.WriteRound(); err != nil {
			return err
		}
	}
	return nil
}

// guestDisk is a disk as its guest has it.
type guestDisk struct{ *storage.Image }

func (g guestDisk) Sync() error { return g.Flush(context.Background()) }

// open opens disks as their guest does.
func (e *Engine) open(ctx context.Context, disks []*disk) (out []pattern.Device, closeAll func(), err error) {
	s, err := e.stored(ctx, disks...)
	if err != nil {
		return nil, nil, err
	}
	var images []*storage.Image
	closeAll = func() {
		for _, i := range images {
			if err := i.Close(); err != nil {
				e.log.Warn("close disk", "err", err)
			}
		}
	}
	for _, d := range disks {
		i, err := s.Guest(ctx, d.id)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		images, out = append(images, i), append(out, guestDisk{i})
	}
	return out, closeAll, nil
}

// freezeDisks puts new volumes on disks at one instant, between two rounds of the guest if it is quiesced.
func (e *Engine) freezeDisks(ctx context.Context, v *vm, disks []*disk, layers []storage.NewVolume, quiesced bool) error {
	if err := e.fill(ctx, v); err != nil {
		return err
	}
	s, err := e.stored(ctx, disks...)
	if err != nil || len(layers) == 0 {
		return err
	}
	if quiesced {
		defer e.quiesce(v)()
	}
	return s.Snapshot(ctx, layers...)
}

func (e *Engine) mergeDisk(ctx context.Context, d *disk, layer volume) error {
	s, err := e.stored(ctx)
	if err != nil {
		return err
	}
	return s.Merge(ctx, d.id, layer.id)
}

// rewrite copies a disk to a new volume of another format, which replaces the old one.
func (e *Engine) rewrite(ctx context.Context, d *disk, next volume) error {
	e.data.mu.Lock()
	defer e.data.mu.Unlock()
	if !d.stored.Load() {
		return nil // it is made in the new format when it is needed
	}
	s := e.data.site
	from, err := s.OpenVolume(ctx, d.active.id)
	if err != nil {
		return err
	}
	content, err := io.ReadAll(io.NewSectionReader(from, 0, d.size))
	if err != nil {
		return errors.Join(err, from.Close())
	}
	if err := errors.Join(from.Close(), s.DeleteDisk(ctx, d.id), s.CreateDisk(ctx, d.spec(next))); err != nil {
		return err
	}
	to, err := s.Guest(ctx, d.id)
	if err != nil {
		return err
	}
	_, err = to.WriteAt(content, 0)
	return errors.Join(err, to.Flush(ctx), to.Close())
}

// refreshSizes looks what disks have allocated. The caller holds mu.
func (e *Engine) refreshSizes(disks []*disk) {
	sizes := map[*disk]int64{}
	e.work(func(ctx context.Context) error {
		s, err := e.stored(ctx)
		if err != nil {
			return err
		}
		for _, d := range disks {
			info, err := s.Disk(d.id)
			if err != nil {
				return err
			}
			for _, v := range info.Volumes {
				sizes[d] += v.ActualBytes
			}
		}
		return nil
	}, func(error) {
		for d, n := range sizes {
			d.actual = n
		}
	})
}

func mapKeys(m map[string]string) func(func(string) bool) { return maps.Keys(m) }

// ReadVolume returns the whole content of a volume: that of a snapshot's disk, whose image_id it is, or of a disk as it is now.
func (e *Engine) ReadVolume(ctx context.Context, volume string) (content []byte, err error) {
	s, err := e.storage(ctx)
	if err != nil {
		return nil, err
	}
	i, err := s.OpenVolume(ctx, volume)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, i.Close()) }()
	return io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
}

// ActiveVolume returns the volume that a disk's guest writes; its content is made now if nothing has needed it yet.
func (e *Engine) ActiveVolume(ctx context.Context, diskID string) (string, error) {
	e.mu.Lock()
	d, err := e.disk(diskID)
	var owner *vm
	if err == nil && len(e.owners(d)) > 0 {
		owner = e.owners(d)[0]
	}
	e.mu.Unlock()
	if err != nil {
		return "", err
	}
	if owner != nil {
		err = e.fill(ctx, owner)
	} else {
		_, err = e.stored(ctx, d)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return d.active.id, err
}
