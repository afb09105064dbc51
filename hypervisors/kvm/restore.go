package kvm

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// restoring is a restore under way.
type restoring struct {
	d    *Driver
	req  hypervisors.RestoreRequest
	plan *restorePlan

	mu       sync.Mutex
	finished bool
	owed     []hypervisors.Owed
	fwd      *forward
	targets  []hypervisors.TargetInfo
}

// Disks returns the exports to write to.
func (r *restoring) Disks() []hypervisors.TargetInfo { return r.targets }

func (r *restoring) owe(ctx context.Context, o hypervisors.Owed) error {
	if err := r.req.Owe(ctx, o); err != nil {
		return fault.Context("record owed clean-up", o.Name, err)
	}
	r.owed = append(r.owed, o)
	return nil
}

// CheckRestore says whether the request could be carried out now.
func (d *Driver) CheckRestore(ctx context.Context, req hypervisors.RestoreRequest) error {
	_, err := d.planRestore(ctx, req)
	return err
}

// BeginRestore makes the volumes and opens them for writing through a helper.
func (d *Driver) BeginRestore(ctx context.Context, req hypervisors.RestoreRequest) (_ hypervisors.Restoring, err error) {
	plan, err := d.planRestore(ctx, req)
	if err != nil {
		return nil, err
	}
	r := &restoring{d: d, req: req, plan: plan}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limitAfter(ctx))
			defer cancel()
			if e := r.Abandon(ctx); e != nil {
				d.log.Warn("clean-up after a failed restore is left owed", "vm", req.VM.Name, "err", e)
			}
		}
	}()
	if len(plan.disks) == 0 {
		return r, nil
	}
	if err := r.createVolumes(ctx); err != nil {
		return nil, err
	}
	if err := r.openVolumes(ctx); err != nil {
		return nil, err
	}
	fault.Point("restore.exports-open")
	return r, nil
}

func (r *restoring) createVolumes(ctx context.Context) error {
	for i := range r.plan.disks {
		disk := &r.plan.disks[i]
		if err := r.owe(ctx, hypervisors.Owed{
			Kind: kindVolume, VM: r.plan.uuid, Name: disk.volume, Args: map[string]string{"pool": disk.pool.Name},
		}); err != nil {
			return err
		}
		path, err := making(ctx, r.d, r.req.Tag, "create volume", disk.volume, func(lv *libvirt.Connect) (string, error) {
			return createVolume(lv, disk)
		})
		if err != nil {
			return err
		}
		disk.path = path
		if i == 0 {
			fault.Point("restore.volume-created")
		}
	}
	return nil
}

// createVolume makes an empty volume, sparse where the pool can.
func createVolume(lv *libvirt.Connect, disk *plannedDisk) (string, error) {
	p, err := lv.LookupStoragePoolByName(disk.pool.Name)
	if err != nil {
		return "", err
	}
	defer p.Free()
	x := libvirtxml.StorageVolume{
		Name:     disk.volume,
		Capacity: &libvirtxml.StorageVolumeSize{Value: uint64(disk.size), Unit: "bytes"},
		Target:   &libvirtxml.StorageVolumeTarget{Format: &libvirtxml.StorageVolumeTargetFormat{Type: string(disk.format)}},
	}
	if fileBased(disk.pool.Kind) {
		x.Allocation = &libvirtxml.StorageVolumeSize{Value: 0, Unit: "bytes"}
		if disk.format == hypervisors.QCOW2 {
			x.Target.Compat = "1.1" // older ones cannot record changes
		}
	} else {
		x.Target.Format = nil
	}
	doc, err := x.Marshal()
	if err != nil {
		return "", err
	}
	v, err := p.StorageVolCreateXML(doc, 0)
	if err != nil {
		return "", err
	}
	defer v.Free()
	return v.GetPath()
}

func (disk *plannedDisk) source() *libvirtxml.DomainDiskSource {
	if fileBased(disk.pool.Kind) {
		return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: disk.path}}
	}
	return &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: disk.path}}
}

func (r *restoring) openVolumes(ctx context.Context) error {
	at, err := r.d.listenAt(r.req.Tag)
	if err != nil {
		return err
	}
	if at.network == "unix" {
		if err := r.owe(ctx, hypervisors.Owed{Kind: kindSocket, VM: r.plan.uuid, Name: at.path}); err != nil {
			return err
		}
	}
	if err := r.owe(ctx, hypervisors.Owed{Kind: kindHelper, VM: r.plan.uuid, Name: helperName(r.req.Tag)}); err != nil {
		return err
	}
	disks := make([]helperDisk, len(r.plan.disks))
	for i := range r.plan.disks {
		p := &r.plan.disks[i]
		disks[i] = helperDisk{id: p.id, source: p.source(), format: p.format, writable: true}
	}
	if err := r.d.startHelper(ctx, r.req.Tag, r.plan.arch(), disks); err != nil {
		return err
	}
	if at, err = r.d.serve(ctx, r.req.Tag, disks, at, nil); err != nil {
		return err
	}
	base, fwd, err := r.d.exportBase(ctx, r.req.Tag, at)
	if err != nil {
		return err
	}
	r.fwd = fwd
	for i := range r.plan.disks {
		e := base
		e.Name, e.SizeBytes, e.Writable = r.plan.disks[i].id, r.plan.disks[i].size, true
		r.targets = append(r.targets, hypervisors.TargetInfo{DiskID: r.plan.disks[i].id, Export: e})
	}
	return nil
}

// Finish closes the disks and makes the VM, or switches the original to its new disks.
func (r *restoring) Finish(ctx context.Context) (hypervisors.VM, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.finished {
		return hypervisors.VM{}, fault.New(fault.Conflict, "finish restore of", r.req.VM.Name, "it is finished already")
	}
	if err := r.closeDisks(ctx); err != nil {
		return hypervisors.VM{}, err
	}
	var notes []string
	var err error
	switch r.req.Mode {
	case hypervisors.RestoreInPlace:
		notes, err = r.switchOriginal(ctx)
	case hypervisors.RestoreInto:
		notes, err = r.handOver(ctx)
	default:
		notes, err = r.defineNew(ctx)
	}
	if err != nil {
		return hypervisors.VM{}, err
	}
	r.finished = true
	vm, err := r.d.VM(ctx, r.plan.uuid)
	if err != nil {
		// The VM is there; only looking at it failed.
		vm = r.req.VM
		vm.ID, vm.Name = r.plan.uuid, r.plan.domain.Name
		notes = append(notes, "The VM was restored, but could not be looked at: "+err.Error()+".")
	}
	vm.Notes = append(vm.Notes, notes...)
	return vm, nil
}

// closeDisks ends the helper, which flushes, and takes away its socket.
func (r *restoring) closeDisks(ctx context.Context) error {
	if r.fwd != nil {
		r.fwd.end()
		r.fwd = nil
	}
	for _, o := range slices.Backward(r.owed) {
		if o.Kind == kindHelper || o.Kind == kindSocket {
			if err := r.d.CleanUp(ctx, o); err != nil {
				return err
			}
		}
	}
	_, err := call(ctx, r.d.conn, "look at the disks of", r.req.VM.Name, func(lv *libvirt.Connect) (none, error) {
		for i := range r.plan.disks {
			if err := verifyVolume(lv, &r.plan.disks[i]); err != nil {
				return none{}, err
			}
		}
		return none{}, nil
	})
	return err
}

// verifyVolume makes the pool see a volume as it is now, and sees that it is what the VM is to get. Somebody may have
// cleaned it up meanwhile; an original must not lose its disk for one that is not there.
func verifyVolume(lv *libvirt.Connect, disk *plannedDisk) error {
	p, err := lv.LookupStoragePoolByName(disk.pool.Name)
	if err != nil {
		return err
	}
	defer p.Free()
	_ = p.Refresh(0) // fails while another volume is being made; then what it knows is new enough
	v, err := p.LookupStorageVolByName(disk.volume)
	if err != nil {
		return err
	}
	defer v.Free()
	if info, err := v.GetInfo(); err != nil || int64(info.Capacity) < disk.size {
		if err == nil {
			err = fault.New(fault.Conflict, "look at volume", disk.volume, "it has %d bytes, want %d", info.Capacity, disk.size)
		}
		return err
	}
	path, err := v.GetPath()
	if err == nil && path != disk.path {
		err = fault.New(fault.Conflict, "look at volume", disk.volume, "it is at %s, was at %s", path, disk.path)
	}
	return err
}

// defineNew makes the new VM.
func (r *restoring) defineNew(ctx context.Context) ([]string, error) {
	if err := r.writeNVRAM(ctx); err != nil {
		return nil, err
	}
	doc, notes, err := r.plan.newDomain(r.req)
	if err != nil {
		return nil, err
	}
	if err := r.owe(ctx, hypervisors.Owed{
		Kind: kindDomain, VM: r.plan.uuid, Name: r.req.Name, Args: map[string]string{"tag": r.req.Tag},
	}); err != nil {
		return nil, err
	}
	return notes, r.define(ctx, doc)
}

func (r *restoring) define(ctx context.Context, doc string) error {
	_, err := making(ctx, r.d, r.req.Tag, "define VM", r.plan.domain.Name, func(lv *libvirt.Connect) (none, error) {
		dom, err := lv.DomainDefineXML(doc)
		if err != nil {
			return none{}, err
		}
		return none{}, dom.Free()
	})
	return err
}

// writeNVRAM makes the file with the UEFI variables, when the restore point has them.
func (r *restoring) writeNVRAM(ctx context.Context) error {
	if r.plan.nvram == "" {
		return nil
	}
	if err := r.owe(ctx, hypervisors.Owed{Kind: kindNVRAM, VM: r.plan.uuid, Name: r.plan.nvram}); err != nil {
		return err
	}
	return r.d.writeFile(ctx, r.plan.nvram, r.req.Document(docNVRAM))
}

// switchOriginal points the original VM at its new disks and then removes the old ones.
func (r *restoring) switchOriginal(ctx context.Context) ([]string, error) {
	if err := r.writeNVRAM(ctx); err != nil {
		return nil, err
	}
	old, doc, err := r.plan.switched(r.req)
	if err != nil {
		return nil, err
	}
	for _, o := range old {
		if err := r.owe(ctx, o); err != nil {
			return nil, err
		}
	}
	off, err := onDomain(ctx, r.d.conn, "look at", r.plan.uuid, func(_ *libvirt.Connect, dom *libvirt.Domain) (bool, error) {
		active, err := dom.IsActive()
		return !active, err
	})
	if err != nil {
		return nil, err
	}
	if !off {
		return nil, mustBeOff(r.req.VM.Name)
	}
	if err := r.define(ctx, doc); err != nil {
		return nil, err
	}
	// From here on the VM has its new disks; what fails now is a note, and stays owed.
	notes := append([]string{}, r.plan.notes...)
	drop := r.dropCheckpointMetadata
	if !r.plan.replacesAll() { // what stays has bitmaps
		drop = func(ctx context.Context) error { return r.d.KeepCheckpoint(ctx, r.plan.uuid, "") }
	}
	if err := drop(ctx); err != nil {
		notes = append(notes, "The checkpoints of the replaced disks could not be removed: "+err.Error()+".")
	}
	for _, o := range old {
		if err := r.d.CleanUp(ctx, o); err != nil {
			notes = append(notes, "The replaced disk "+o.Name+" could not be removed: "+err.Error()+".")
		}
	}
	fault.Point("restore.original-removed")
	return notes, nil
}

// dropCheckpointMetadata removes libvirt's records of our checkpoints: their bitmaps are in the replaced images.
func (r *restoring) dropCheckpointMetadata(ctx context.Context) error {
	_, err := onDomain(ctx, r.d.conn, "remove checkpoints of", r.plan.uuid, func(_ *libvirt.Connect, dom *libvirt.Domain) (none, error) {
		all, err := listCheckpoints(dom)
		if err != nil {
			return none{}, err
		}
		for _, c := range slices.Backward(all) {
			if !strings.HasPrefix(c.Name, marker) {
				continue
			}
			cp, err := dom.CheckpointLookupByName(c.Name, 0)
			if err != nil {
				return none{}, err
			}
			err = cp.Delete(libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
			_ = cp.Free()
			if err != nil {
				return none{}, err
			}
		}
		return none{}, nil
	})
	return err
}

// Abandon removes all that BeginRestore made.
func (r *restoring) Abandon(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.finished {
		return nil
	}
	if r.fwd != nil {
		r.fwd.end()
		r.fwd = nil
	}
	var errs []error
	for _, o := range slices.Backward(r.owed) {
		if o.Kind == kindHanded {
			errs = append(errs, r.d.takeBack(ctx, o))
			continue
		}
		errs = append(errs, r.d.CleanUp(ctx, o))
	}
	return errors.Join(errs...)
}

func mustBeOff(name string) error {
	return fault.New(fault.Conflict, "restore VM in place", name, "it is not off").
		Explain("The disks of a VM cannot be replaced while it runs.", "Shut the VM down and start the restore again, or restore it as a new VM.")
}
