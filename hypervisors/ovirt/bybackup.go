package ovirt

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// byBackup freezes a VM by the engine's backup, which makes a checkpoint besides.
func (f *frozen) byBackup(ctx context.Context, req hypervisors.FreezeRequest, s survey, p plan) error {
	d, name := f.d, marker+f.tag
	if req.Track {
		f.info.Checkpoint = name
	}
	for _, kind := range []hypervisors.OwedKind{hypervisors.OwedCheckpoint, kindBackup} {
		if err := f.owe(ctx, req, hypervisors.Owed{Kind: kind, VM: f.vm, Name: name}); err != nil {
			return err
		}
	}
	f.info.Time = time.Now().UTC()
	b, err := f.start(ctx, req, s, &p)
	if err != nil {
		return err
	}
	if err := f.addVMOVF(ctx); err != nil {
		return err
	}
	changed := map[string]bool{}
	if p.from != "" {
		modes, err := d.backupModes(ctx, f.vm, val(b.Id()))
		if err != nil {
			return err
		}
		for _, disk := range p.disks {
			if changed[disk.ID] = modes[disk.ID] && p.full[disk.ID] == ""; !changed[disk.ID] && p.full[disk.ID] == "" {
				p.full[disk.ID] = "the engine gives the whole disk: the host has lost the checkpoint of the last restore point, or never had it"
			}
		}
	}
	if err := f.named(ctx, req, b); err != nil {
		return err
	}
	return f.offerAll(ctx, req, p, func(disk string) (transferSpec, error) {
		return transferSpec{disk: disk, backup: val(b.Id())}, nil
	}, changed)
}

// addVMOVF keeps the OVF of the VM itself: a backup has none.
func (f *frozen) addVMOVF(ctx context.Context) error {
	x, err := apixml.DecodeOne(f.info.Documents[0].Data, "vm", sdk.XMLVmReadOne)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fault.Wrap(fault.KindOf(ctx.Err()), "freeze VM", f.info.VM.Name, ctx.Err())
	}
	f.addOVF(ovfOf(x.Initialization()))
	return nil
}

// attempt is one way to start a backup.
type attempt struct {
	from       string
	consistent bool
}

// attempts are the ways to start a backup, the best first. The engine says only that one has failed, not whether the
// guest's file systems or the checkpoint was the reason.
func attempts(quiesce hypervisors.Quiesce, asks bool, from string) (out []attempt) {
	for _, start := range slices.Compact([]string{from, ""}) {
		if asks {
			out = append(out, attempt{start, true})
		}
		if !asks || quiesce != hypervisors.QuiesceRequire {
			out = append(out, attempt{start, false})
		}
	}
	return out
}

// start starts the backup, if not from the checkpoint then as a whole, and if not with frozen file systems then without.
func (f *frozen) start(ctx context.Context, req hypervisors.FreezeRequest, s survey, p *plan) (*sdk.Backup, error) {
	asks := !f.settled(req, s)
	spec := backupSpec{vm: f.vm, name: s.vm.Name, tag: f.tag, disks: idsOf(p.disks)}
	var first error
	for _, a := range attempts(req.Quiesce, asks, p.from) {
		spec.from, spec.consistent = a.from, a.consistent
		b, err := f.patiently(ctx, spec)
		if err == nil {
			f.started(a, asks, first, p)
			return b, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil || !another(err) {
			return nil, err
		}
		if err := f.d.endBackup(ctx, f.vm, marker+f.tag); err != nil {
			return nil, err
		}
		f.d.log.InfoContext(ctx, "a backup is started in another way", "vm", f.vm, "err", err)
	}
	return nil, first
}

// patiently starts a backup when the VM is free: the engine may still merge the snapshot of one that has failed.
func (f *frozen) patiently(ctx context.Context, spec backupSpec) (b *sdk.Backup, err error) {
	locked := f.d.pace.unlessBusy(ctx, "start backup", func() error {
		if b, err = f.d.startBackup(ctx, spec); err != nil && engine.DetailHas(err, "locked") {
			return err
		}
		return nil
	})
	return b, cmp.Or(err, locked)
}

// another says whether an engine that refused a backup may take it in another way.
func another(err error) bool {
	if _, started := errors.AsType[*backupFailed](err); started {
		return true
	}
	switch fault.KindOf(err) {
	case fault.Conflict, fault.NotFound, fault.Invalid:
		return !engine.DetailHas(err, "during a backup", "backup already", "in progress")
	}
	return false
}

// started records what the way in which a backup could be started means.
func (f *frozen) started(a attempt, asked bool, first error, p *plan) {
	switch {
	case a.consistent:
		f.info.Consistency = hypervisors.FilesystemConsistent
	case asked:
		f.info.ConsistencyNote = "the engine could not freeze the guest's file systems"
	}
	if p.from == "" || a.from != "" {
		return
	}
	p.from = ""
	for _, disk := range p.disks {
		if p.full[disk.ID] == "" {
			p.full[disk.ID] = "the engine could not start from the checkpoint of the last restore point: " + first.Error()
		}
	}
}

// named makes sure that the new checkpoint can be found again. A backup of raw disks alone has none.
func (f *frozen) named(ctx context.Context, req hypervisors.FreezeRequest, b *sdk.Backup) error {
	if !req.Track {
		return nil
	}
	all, err := f.d.marks(ctx, f.vm)
	if err != nil {
		return err
	}
	made := val(b.ToCheckpointId())
	if slices.ContainsFunc(all, func(m mark) bool { return m.id == made && m.description == marker+f.tag }) {
		return nil
	}
	f.info.Checkpoint = ""
	f.info.Warnings = append(f.info.Warnings, "The engine made no checkpoint that can be found again, so the next backup reads the disks as a whole.")
	return nil
}
