package ovirt

import (
	"context"
	"fmt"
	"net/http"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// The engine's backups: one for a VM at a time, which holds all its disks at one instant while the VM goes on.

// backupOver says whether a backup has ended.
func backupOver(p sdk.BackupPhase) bool {
	return p == sdk.BACKUPPHASE_SUCCEEDED || p == sdk.BACKUPPHASE_FAILED
}

// judgeBackup looks at a backup that is being started.
func judgeBackup(p sdk.BackupPhase) (outcome, string) {
	switch p {
	case sdk.BACKUPPHASE_READY:
		return ready, ""
	case sdk.BACKUPPHASE_SUCCEEDED, sdk.BACKUPPHASE_FAILED, sdk.BACKUPPHASE_FINALIZING:
		return failed, fmt.Sprintf("its phase is %q", p)
	}
	return pending, "" // newer engines have more phases before it is ready
}

func backupsPath(vm string) string { return "/vms/" + vm + "/backups" }

func (d *Driver) backups(ctx context.Context, vm string) ([]*sdk.Backup, error) {
	return engine.All[*sdk.Backup](ctx, d.conn, engine.Request{Op: "list backups of VM", Subject: vm, Path: backupsPath(vm)}, "backups", sdk.XMLBackupReadMany)
}

// standingBackup returns the backup of a VM with a description that has not ended, or nil.
func (d *Driver) standingBackup(ctx context.Context, vm, description string) (*sdk.Backup, error) {
	all, err := d.backups(ctx, vm)
	if engine.Gone(err) {
		return nil, nil // the VM is gone, or the engine is too old for backups
	}
	for _, b := range all {
		if val(b.Description()) == description && !backupOver(val(b.Phase())) {
			return b, nil
		}
	}
	return nil, err
}

// backupSpec is a backup to be made.
type backupSpec struct {
	vm, name, tag string
	disks         []string
	from          string // the checkpoint's id; "" is a full one
	consistent    bool   // it fails when the guest's file systems cannot be frozen
}

// startBackup starts a backup that is owed already, and waits until its disks can be read.
func (d *Driver) startBackup(ctx context.Context, s backupSpec) (*sdk.Backup, error) {
	const op = "start backup of VM"
	description := marker + s.tag
	doc, err := backupDocument(description, s.disks, s.from)
	if err != nil {
		return nil, err
	}
	id, err := makeFor(ctx, d, s.tag, op, s.name, func(ctx context.Context) (string, error) {
		r := engine.Request{Op: op, Subject: s.name, Method: http.MethodPost, Path: backupsPath(s.vm), Body: doc, Query: engine.Query("correlation_id", correlation(s.tag, "backup"))}
		if s.consistent {
			r.Query.Set("require_consistency", "true")
		}
		out, err := d.conn.Do(ctx, r)
		if err != nil {
			if fault.KindOf(err) == fault.Transient {
				if b, e := d.standingBackup(ctx, s.vm, description); e == nil && b != nil {
					return val(b.Id()), nil // only the reply was lost
				}
			}
			return "", err
		}
		b, err := apixml.DecodeOne(out, "backup", sdk.XMLBackupReadOne)
		if err != nil {
			return "", fault.Context(op, s.name, err)
		}
		return val(b.Id()), checkID("backup", val(b.Id()))
	})
	if err != nil {
		return nil, err
	}
	var b *sdk.Backup
	err = d.pace.poll(ctx, d.pace.create, "the backup of VM "+s.name+" is ready", func() (bool, error) {
		if b, err = d.backup(ctx, s.vm, id); err != nil && !engine.Gone(err) {
			return false, err
		}
		state, why := failed, "it is gone"
		if err == nil {
			state, why = judgeBackup(val(b.Phase()))
		}
		if state == failed {
			return false, fault.Wrap(fault.Transient, op, s.name, &backupFailed{why}).Explain(
				"The engine could not start the backup.", "Look at the VM's events in the engine: storage that is full, a host that does not answer, or checkpoints that the host has lost show there.")
		}
		return state == ready, nil
	})
	return b, err
}

// backupFailed says that the engine took a backup and could not start it, for a reason that only its events have.
type backupFailed struct{ why string }

func (e *backupFailed) Error() string { return "the engine could not start it: " + e.why }

func (d *Driver) backup(ctx context.Context, vm, id string) (*sdk.Backup, error) {
	return engine.One(ctx, d.conn, engine.Request{Op: "look at backup of VM", Subject: vm, Path: backupsPath(vm) + "/" + id}, "backup", sdk.XMLBackupReadOne)
}

// backupModes says of each disk of a backup whether it is incremental. The engine reads a disk as a whole without a word
// when its checkpoint does not have it.
func (d *Driver) backupModes(ctx context.Context, vm, id string) (map[string]bool, error) {
	all, err := engine.All[*sdk.Disk](ctx, d.conn, engine.Request{Op: "list disks of backup of VM", Subject: vm, Path: backupsPath(vm) + "/" + id + "/disks"}, "disks", sdk.XMLDiskReadMany)
	out := map[string]bool{}
	for _, disk := range all {
		out[val(disk.Id())] = val(disk.BackupMode()) == sdk.DISKBACKUPMODE_INCREMENTAL
	}
	return out, err
}

// endBackup ends the backup of ours with a description and waits until its disks are free again. Its transfers are ended
// first: the engine refuses it otherwise.
func (d *Driver) endBackup(ctx context.Context, vm, description string) error {
	const op = "end backup of VM"
	return d.pace.poll(ctx, d.pace.create, "the backup of VM "+vm+" has ended", func() (bool, error) {
		b, err := d.standingBackup(ctx, vm, description)
		if b == nil || err != nil {
			return err == nil, err
		}
		if err := d.endTransfersOf(ctx, val(b.Id())); err != nil {
			return false, err
		}
		if val(b.Phase()) != sdk.BACKUPPHASE_READY {
			return false, nil // it starts or ends; it can be finalized only in between
		}
		err = d.conn.Act(ctx, op, vm, backupsPath(vm)+"/"+val(b.Id())+"/finalize", nil)
		if err != nil && fault.KindOf(err) != fault.Conflict && !engine.Gone(err) {
			return false, err
		}
		return false, nil
	})
}

// endTransfersOf ends the transfers of a backup that is ours, whoever opened them.
func (d *Driver) endTransfersOf(ctx context.Context, backup string) error {
	all, err := d.transfers(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if idOf(t.Backup()) != backup || over(val(t.Phase())) {
			continue
		}
		if _, err := d.endTransfer(ctx, val(t.Id()), diskOf(t), verbFinalize); err != nil {
			return err
		}
	}
	return nil
}
