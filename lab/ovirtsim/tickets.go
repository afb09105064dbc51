package ovirtsim

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/ovirtsim/imageio"
	"github.com/cairn-backup/cairn/lab/ovirtsim/storage"
)

// images is the imageio daemon of all hosts, and the engine's proxy to it on another port.
type images struct {
	server      *imageio.Server
	host, proxy net.Listener
	done        chan error
}

// serveImages starts the daemon. Its certificates are of the internal CA, whatever the API's are.
func (e *Engine) serveImages() (err error) {
	cert, err := e.ca.issue("127.0.0.1")
	if err != nil {
		return err
	}
	i := &e.images
	if i.host, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	if i.proxy, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return errors.Join(err, i.host.Close())
	}
	i.server = imageio.NewServer(imageio.Options{Certificate: cert, Now: e.clock.Now})
	i.done = make(chan error, 2)
	for _, l := range []net.Listener{i.host, i.proxy} {
		go func() { i.done <- i.server.Serve(l) }()
	}
	return nil
}

func (i *images) close() error {
	err := i.server.Close()
	for range 2 {
		if e := <-i.done; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// Images is the imageio daemon, for its faults and figures.
func (e *Engine) Images() *imageio.Server { return e.images.server }

// ticket lets a client use the image of a transfer.
type ticket struct {
	e          *Engine
	id         string
	url, proxy string
	backend    imageio.Backend
	export     *storage.Export // nil for a file
	upload     *upload         // nil unless a qcow2 file is sent as it is
}

// ticketLife is how long a ticket lives after it was used last.
const ticketLife = 300 * time.Second

// openTicket opens the image of a transfer and hands out a ticket for it.
func (e *Engine) openTicket(ctx context.Context, t *transfer) (*ticket, error) {
	e.mu.Lock()
	d, volume, b, size, initial, raw := t.disk, t.volume, t.backup, t.disk.size, t.disk.initial, t.format == "raw"
	asIs := t.upload() && t.format == "cow" && d.active.format == "cow"
	k := &ticket{e: e, id: e.newID()}
	spec := imageio.Ticket{ID: k.id, TransferID: t.id, Write: t.upload(), Timeout: ticketLife, InactivityTimeout: time.Duration(t.inactive) * time.Second, Volatile: t.upload()}
	owners := e.owners(d)
	var running *storage.Backup
	if b != nil {
		running = b.running
	}
	e.mu.Unlock()
	if len(owners) > 0 {
		if err := e.fill(ctx, owners[0]); err != nil {
			return nil, err
		}
	}
	s, err := e.stored(ctx, d)
	if err != nil {
		return nil, err
	}
	switch {
	case b != nil && running == nil:
		return nil, fault.New(fault.Conflict, "open image", d.id, "the backup has ended")
	case b != nil:
		k.export, err = running.Export(ctx, d.id)
	case asIs:
		k.upload, k.backend, size, err = e.openUpload(d, size, initial, k.id)
	case raw:
		k.export, err = s.ExportVolume(ctx, volume, t.upload())
	default:
		k.backend, size, err = openFile(s, d.id, volume, t.upload())
	}
	if err != nil {
		return nil, err
	}
	if k.export != nil {
		spec.Dirty = k.export.DirtyContext != ""
		if k.backend, err = imageio.OpenNBD(ctx, k.export.Socket, k.export.Name, k.export.DirtyContext); err != nil {
			return nil, errors.Join(err, k.export.Close(ctx))
		}
	}
	spec.Backend, spec.SizeBytes = k.backend, size
	if err := e.images.server.AddTicket(spec); err != nil {
		return nil, errors.Join(err, k.close(ctx))
	}
	k.url = "https://" + e.images.host.Addr().String() + "/images/" + k.id
	k.proxy = "https://" + e.images.proxy.Addr().String() + "/images/" + k.id
	return k, nil
}

// openFile opens a volume's file itself.
func openFile(s *storage.Site, disk, volume string, writing bool) (imageio.Backend, int64, error) {
	info, err := s.Disk(disk)
	if err != nil {
		return nil, 0, err
	}
	for _, v := range info.Volumes {
		if v.ID == volume {
			b, err := imageio.OpenFile(v.Path, writing)
			if err != nil {
				return nil, 0, err
			}
			return b, b.Size(), nil
		}
	}
	return nil, 0, fault.New(fault.NotFound, "open volume", volume, "there is none")
}

// use is what the daemon knows of a ticket.
type use struct {
	transferred int64
	busy        bool
	idle        time.Duration
}

func (k *ticket) state() use {
	info, _ := k.e.images.server.Ticket(k.id)
	return use{info.Transferred, info.Active, info.IdleTime}
}

// extend keeps a ticket alive although nobody uses it.
func (k *ticket) extend() {
	if err := k.e.images.server.ExtendTicket(k.id, ticketLife); err != nil {
		k.e.log.Warn("extend ticket", "err", err)
	}
}

// closeWait is how long the engine waits for requests under way.
const closeWait = 60 * time.Second

// finish closes a ticket whose transfer is complete.
func (k *ticket) finish(ctx context.Context) error {
	if k.upload == nil {
		return k.close(ctx)
	}
	// The client is shut out first.
	err := k.shut(ctx)
	if err == nil {
		var s *storage.Site
		if s, err = k.e.storage(ctx); err == nil {
			err = k.upload.install(ctx, s)
		}
	}
	return errors.Join(err, k.close(ctx))
}

// shut takes the ticket back and waits for requests under way.
func (k *ticket) shut(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWait)
	defer cancel()
	return k.e.images.server.RemoveTicket(ctx, k.id)
}

// close takes the ticket back, waits for requests under way and closes the image.
func (k *ticket) close(ctx context.Context) error {
	errs := []error{k.shut(ctx), k.backend.Close()}
	if k.export != nil {
		errs = append(errs, k.export.Close(context.WithoutCancel(ctx)))
	}
	if k.upload != nil {
		errs = append(errs, os.Remove(k.upload.path))
	}
	return errors.Join(errs...)
}
