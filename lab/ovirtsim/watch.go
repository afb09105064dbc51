package ovirtsim

import (
	"context"
	"errors"
	"net/http"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/lab/ovirtsim/storage"
)

// Watch is what a test may see of an engine at work. Its functions are called from several goroutines, and what they are
// called for waits for them; nil ones are not called.
type Watch struct {
	// Frozen gets the content of the disks, by id, that a snapshot or backup of a VM holds, before the engine says that it is
	// ready. A hybrid backup is told twice, first its own snapshot: the last one counts.
	Frozen func(vm string, disks map[string][]byte)
	// Done is told of each request that changes something, "POST /vms/…/snapshots", when it was carried out or refused, before
	// its reply is sent.
	Done func(request string, status int)
}

// tellSnapshot tells of a snapshot that was made.
func (e *Engine) tellSnapshot(ctx context.Context, m *making) error {
	if e.cfg.Watch.Frozen == nil {
		return nil
	}
	content := map[string][]byte{}
	for id, v := range m.new.disks { // nobody changes it while the snapshot is locked
		var err error
		if content[id], err = e.ReadVolume(ctx, v.id); err != nil {
			return err
		}
	}
	e.cfg.Watch.Frozen(m.vm.id, content)
	return nil
}

// tellBackup tells of a backup that runs in the storage. It ends it where it cannot be read.
func (e *Engine) tellBackup(ctx context.Context, b *backup, running *storage.Backup) error {
	if e.cfg.Watch.Frozen == nil {
		return nil
	}
	content := map[string][]byte{}
	for _, d := range b.disks {
		x, err := running.Export(ctx, d.id)
		if err == nil {
			content[d.id], err = readExport(ctx, x)
		}
		if err != nil {
			return errors.Join(err, running.Stop(context.WithoutCancel(ctx)))
		}
	}
	e.cfg.Watch.Frozen(b.vm.id, content)
	return nil
}

// readExport reads all of an export and closes it.
func readExport(ctx context.Context, x *storage.Export) (content []byte, err error) {
	defer func() { err = errors.Join(err, x.Close(context.WithoutCancel(ctx))) }()
	c, err := nbd.Dial(ctx, nbd.Config{Network: "unix", Address: x.Socket, Export: x.Name, Connections: 1})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	content = make([]byte, x.SizeBytes)
	return content, c.Read(ctx, content, 0)
}

// tellDone tells of a request to the API.
func (e *Engine) tellDone(method, path string, status int) {
	if method != http.MethodGet && e.cfg.Watch.Done != nil {
		e.cfg.Watch.Done(method+" "+path, status)
	}
}

// OpenDisk opens a disk of an idle VM as a guest does: what is frozen of it stays as it is, whatever is written. It cannot be opened
// while it is in a backup, and stays open through one that begins later.
func (e *Engine) OpenDisk(ctx context.Context, diskID string) (*storage.Image, error) {
	if _, err := e.ActiveVolume(ctx, diskID); err != nil { // it has its content now
		return nil, err
	}
	s, err := e.storage(ctx)
	if err != nil {
		return nil, err
	}
	return s.Guest(ctx, diskID)
}
