package memplatform

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// frozen is a freeze under way.
type frozen struct {
	d    *driver
	name string
	info hypervisors.FrozenInfo
}

func (f *frozen) Info() hypervisors.FrozenInfo { return f.info }

func (f *frozen) Release(ctx context.Context) error {
	if err := f.d.enter(ctx, OpRelease, f.info.VM.Name); err != nil {
		return err
	}
	f.d.p.endJob(f.d.p.jobs, f.name)
	return nil
}

func (d *driver) Freeze(ctx context.Context, req hypervisors.FreezeRequest) (hypervisors.Frozen, error) {
	if !d.p.caps.Backup {
		return d.Unsupported.Freeze(ctx, req)
	}
	if err := d.enter(ctx, OpFreeze, req.VM); err != nil {
		return nil, err
	}
	if err := d.mayFreeze(req); err != nil {
		return nil, err
	}
	f := &frozen{d: d, name: marker + req.Tag}
	track := req.Track && d.p.caps.ChangeTracking
	if track {
		if err := owe(ctx, req.Owe, hypervisors.Owed{Kind: hypervisors.OwedCheckpoint, VM: req.VM, Name: f.name}); err != nil {
			return nil, err
		}
	}
	if err := owe(ctx, req.Owe, hypervisors.Owed{Kind: owedJob, VM: req.VM, Name: f.name}); err != nil {
		return nil, err
	}
	if err := d.freeze(ctx, req, track, f); err != nil {
		d.p.mu.Lock()
		defer d.p.mu.Unlock()
		if v := d.p.vms[req.VM]; v != nil {
			v.unmark(f.name)
		}
		return nil, err
	}
	return f, nil
}

func (d *driver) Refreeze(ctx context.Context, s hypervisors.Standing) (hypervisors.Frozen, error) {
	if !d.p.caps.Backup {
		return d.Unsupported.Refreeze(ctx, s)
	}
	if err := d.enter(ctx, OpRefreeze, s.Info.VM.ID); err != nil {
		return nil, err
	}
	f := &frozen{d: d, name: marker + s.Tag, info: s.Info}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	if _, err := d.p.find("take up freeze of VM", s.Info.VM.ID); err != nil {
		return nil, err
	}
	if d.p.jobs[f.name] == nil {
		return nil, fault.New(fault.Conflict, "take up freeze of VM", s.Info.VM.Name, "it does not stand any more").
			Explain("Somebody has ended the job of the freeze.", "Run the backup again.")
	}
	return f, nil
}

func owe(ctx context.Context, record func(context.Context, hypervisors.Owed) error, o hypervisors.Owed) error {
	if record != nil {
		if err := record(ctx, o); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fault.Wrap(fault.Canceled, "freeze", o.Name, err)
	}
	return nil
}

// mayFreeze looks whether a freeze is possible at all.
func (d *driver) mayFreeze(req hypervisors.FreezeRequest) error {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	v, err := d.p.find("freeze VM", req.VM)
	if err != nil {
		return err
	}
	if v.Power == hypervisors.PowerOff && !d.p.caps.StoppedBackup {
		return fault.New(fault.Unsupported, "freeze VM", v.Name, "it is off")
	}
	for _, j := range d.p.jobs {
		if j.vm == req.VM {
			return fault.New(fault.Conflict, "freeze VM", v.Name, "job %s is under way", j.name).
				Explain("Something else backs this VM up at the moment.", "Wait until it is done.")
		}
	}
	if req.Quiesce == hypervisors.QuiesceRequire && !(v.Agent && v.Power == hypervisors.PowerOn && d.p.caps.Quiesce) {
		return fault.New(fault.Conflict, "freeze VM", v.Name, "the guest cannot be quiesced")
	}
	return nil
}

// freeze takes the snapshots and opens the exports.
func (d *driver) freeze(ctx context.Context, req hypervisors.FreezeRequest, track bool, f *frozen) error {
	exports, err := d.snapshot(req, track, f)
	if err != nil {
		return err
	}
	if err := d.enter(ctx, OpFreezeExport, req.VM); err != nil {
		return err
	}
	j, err := d.p.serve(f.name, req.VM, req.Tag, exports)
	if err != nil {
		return err
	}
	for i := range f.info.Disks {
		x := &f.info.Disks[i]
		dirty := x.Export.DirtyContext
		x.Export = j.export(x.Disk.ID, x.Disk.SizeBytes, false)
		x.Export.DirtyContext = dirty
	}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	d.p.jobs[f.name] = j
	return nil
}

// snapshot copies the disks at one instant and marks it.
func (d *driver) snapshot(req hypervisors.FreezeRequest, track bool, f *frozen) ([]nbd.Export, error) {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	v, err := d.p.find("freeze VM", req.VM)
	if err != nil {
		return nil, err
	}
	if v.Unprotectable != "" {
		return nil, fault.New(fault.Conflict, "freeze VM", v.Name, "%s", v.Unprotectable)
	}
	f.info = hypervisors.FrozenInfo{VM: v.describe(), Time: time.Now(), Consistency: hypervisors.CrashConsistent}
	switch {
	case req.Quiesce == hypervisors.QuiesceNever:
	case v.Agent && v.Power == hypervisors.PowerOn && d.p.caps.Quiesce:
		f.info.Consistency = hypervisors.FilesystemConsistent
		v.thaws++
	case v.Power == hypervisors.PowerOn:
		f.info.ConsistencyNote = "The VM has no guest agent."
	}
	var exports []nbd.Export
	var ids []string
	for _, dsk := range f.info.VM.Disks {
		if dsk.Unprotectable != "" || slices.Contains(req.Exclude, dsk.ID) {
			reason := dsk.Unprotectable
			if reason == "" {
				reason = "It is excluded."
			}
			f.info.Skipped = append(f.info.Skipped, hypervisors.SkippedDisk{Disk: dsk, Reason: reason})
			continue
		}
		info := hypervisors.FrozenDiskInfo{Disk: dsk}
		x := nbd.Export{Name: dsk.ID, Backend: v.disks[dsk.ID].snapshot(req.Since), ReadOnly: true, Contexts: []string{nbd.BaseAllocation}}
		if req.Since != "" {
			if info.FullReason = v.whyFull(req.Since, dsk.ID); info.FullReason == "" {
				info.Export.DirtyContext = "qemu:dirty-bitmap:backup-" + dsk.ID
				x.Contexts = append(x.Contexts, info.Export.DirtyContext)
			}
		}
		exports, ids = append(exports, x), append(ids, dsk.ID)
		f.info.Disks = append(f.info.Disks, info)
	}
	if len(ids) == 0 {
		return nil, fault.New(fault.Invalid, "freeze VM", v.Name, "it has no disk to back up")
	}
	if track {
		v.mark(f.name, ids)
		f.info.Checkpoint = f.name
	}
	data, err := json.Marshal(f.info.VM)
	f.info.Documents = []hypervisors.Document{{Name: "vm.json", MediaType: "application/json", Data: data}}
	return exports, err
}

// whyFull says why a disk's history since a checkpoint is not known; "" means it is. The caller holds mu.
func (v *vm) whyFull(since, diskID string) string {
	for _, c := range v.checkpoints {
		switch {
		case c.Name != since:
		case c.broken:
			return "The VM was not stopped properly since the last backup."
		case v.disks[diskID].dirty[since] == nil:
			return "The disk's changes were not tracked since the last backup."
		default:
			return ""
		}
	}
	return "The checkpoint of the last backup is gone."
}
