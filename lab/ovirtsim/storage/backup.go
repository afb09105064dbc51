package storage

import (
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

// BackupSpec asks for a backup: several disks at one instant.
type BackupSpec struct {
	ID    string
	Disks []BackupDisk
	// Checkpoint is the name of the checkpoint to make at that instant; "" makes none. Disks whose active volume is raw get none.
	Checkpoint string
}

// BackupDisk is a disk of a backup.
type BackupDisk struct {
	ID string
	// From is the checkpoint since which changes are to be known; "" is a full backup.
	From string
}

// Backup is a backup under way. What it shows of its disks stays as it was, whatever the guests write.
type Backup struct {
	ID   string
	site *Site

	disks []*scratch // nobody changes them; those that are stopped are nil
}

// scratch is where QEMU keeps the old content of what guests overwrite.
type scratch struct {
	disk, from, checkpoint string
	size                   int64
	path, node             string
	job                    *job
}

// StartBackup starts a backup of several disks. It is NotFound if a disk has not the checkpoint it is to start from, in all the
// volumes that were made since, and Conflict if that checkpoint is inconsistent or the disk is in a backup already.
func (s *Site) StartBackup(ctx context.Context, spec BackupSpec) (*Backup, error) {
	b := &Backup{ID: spec.ID, site: s}
	ordered := slices.Clone(spec.Disks)
	slices.SortFunc(ordered, func(x, y BackupDisk) int { return strings.Compare(x.ID, y.ID) })
	var actions []object
	for _, want := range ordered {
		d, unlock, err := s.lock(want.ID)
		if err != nil {
			b.undo(ctx)
			return nil, err
		}
		defer unlock()
		more, err := b.prepare(ctx, d, want, spec.Checkpoint)
		if err != nil {
			b.undo(ctx)
			return nil, fault.Context("back up disk", want.ID, err)
		}
		actions = append(actions, more...)
	}
	if err := s.do(ctx, "transaction", object{"actions": actions}, nil); err != nil {
		b.undo(ctx)
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backups[spec.ID] = b
	return b, nil
}

// prepare makes a disk's scratch image and returns what belongs into the transaction.
func (b *Backup) prepare(ctx context.Context, d *disk, want BackupDisk, checkpoint string) ([]object, error) {
	s := b.site
	if other := s.backupOf(d.id); other != "" {
		return nil, fault.New(fault.Conflict, "start backup", b.ID, "disk %s is in backup %s", d.id, other)
	}
	changed, err := s.changed(ctx, d, want.From)
	if err != nil {
		return nil, err
	}
	x := &scratch{disk: d.id, from: want.From, size: d.size, node: s.name("b")}
	x.path = filepath.Join(s.dir, x.node+".scratch")
	if err := image(ctx, "create", "-q", "-f", "qcow2", x.path, strconv.FormatInt(d.size, 10)); err != nil {
		return nil, err
	}
	err = s.do(ctx, "blockdev-add", object{
		"driver": "qcow2", "node-name": x.node, "backing": d.active().node, "file": object{"driver": "file", "filename": x.path},
	}, nil)
	if err != nil {
		_ = remove(x.path)
		return nil, err
	}
	b.disks = append(b.disks, x)
	var actions []object
	if want.From != "" {
		actions = append(actions,
			action("block-dirty-bitmap-add", object{"node": x.node, "name": want.From, "disabled": true}),
			action("block-dirty-bitmap-merge", object{"node": x.node, "target": want.From, "bitmaps": changed}))
	}
	if checkpoint != "" && d.active().format == Cow {
		x.checkpoint = checkpoint
		actions = append(actions, action("block-dirty-bitmap-add", object{"node": d.active().node, "name": checkpoint, "persistent": true}))
	}
	id := s.name("backup")
	x.job = s.current().watch(id)
	return append(actions, action("blockdev-backup", object{
		"job-id": id, "device": d.active().node, "target": x.node, "sync": "none", "auto-dismiss": false,
	})), nil
}

// changed names the bitmaps that together hold what changed since a checkpoint: that of the volume which was active then, and
// those of all above.
func (s *Site) changed(ctx context.Context, d *disk, from string) ([]object, error) {
	var out []object
	for i := len(d.chain) - 1; i >= 0 && from != ""; i-- {
		have, err := s.bitmaps(ctx, d.chain[i])
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(have, func(c Checkpoint) bool { return c.Name == from })
		if at < 0 {
			break
		}
		if have[at].Inconsistent {
			return nil, fault.New(fault.Conflict, "use checkpoint", from, "it is inconsistent in volume %s", d.chain[i].id)
		}
		out = append(out, object{"node": d.chain[i].node, "name": from})
	}
	if from != "" && len(out) == 0 {
		return nil, fault.New(fault.NotFound, "use checkpoint", from, "disk %s has none of that name", d.id)
	}
	return out, nil
}

// Incremental says whether a disk's changes are known.
func (b *Backup) Incremental(disk string) bool {
	x := b.find(disk)
	return x != nil && x.from != ""
}

// Checkpointed says whether a disk got the backup's checkpoint.
func (b *Backup) Checkpointed(disk string) bool {
	x := b.find(disk)
	return x != nil && x.checkpoint != ""
}

func (b *Backup) find(disk string) *scratch {
	for _, x := range b.disks {
		if x.disk == disk {
			return x
		}
	}
	return nil
}

// Export offers a disk of the backup over NBD, read-only; with the changes since its checkpoint if it has one.
func (b *Backup) Export(ctx context.Context, disk string) (*Export, error) {
	x := b.find(disk)
	if x == nil {
		return nil, fault.New(fault.NotFound, "export disk", disk, "it is not in backup %s", b.ID)
	}
	return b.site.exportNode(ctx, x.node, x.size, false, x.from)
}

// Stop ends the backup; its exports must be closed before. Its checkpoint stays.
func (b *Backup) Stop(ctx context.Context) error {
	for _, x := range b.disks {
		if err := b.site.stop(ctx, x, true); err != nil {
			return fault.Context("stop backup", b.ID, err)
		}
	}
	b.site.mu.Lock()
	defer b.site.mu.Unlock()
	delete(b.site.backups, b.ID)
	return nil
}

// undo removes what was prepared for a backup that did not start.
func (b *Backup) undo(ctx context.Context) {
	for _, x := range b.disks {
		_ = b.site.stop(context.WithoutCancel(ctx), x, false)
	}
}

func (s *Site) stop(ctx context.Context, x *scratch, running bool) error {
	if running {
		if err := s.do(ctx, "job-cancel", object{"id": x.job.id}, nil); err != nil {
			return err
		}
		if err := x.job.finish(ctx); err != nil && !strings.Contains(err.Error(), "ancel") { // QEMU calls that an error
			return err
		}
	} else {
		s.current().forget(x.job.id)
	}
	if err := s.do(ctx, "blockdev-del", object{"node-name": x.node}, nil); err != nil {
		return err
	}
	return remove(x.path)
}

// backupOf returns the id of the backup that a disk is in, "" if none.
func (s *Site) backupOf(disk string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, b := range s.backups {
		if b.find(disk) != nil {
			return id
		}
	}
	return ""
}
