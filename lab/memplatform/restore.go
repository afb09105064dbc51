package memplatform

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// restoring is a restore under way. Its volumes are on the platform under names with its tag.
type restoring struct {
	d       *driver
	req     hypervisors.RestoreRequest
	name    string
	job     *job
	volumes []string
	targets []hypervisors.TargetInfo
}

func (d *driver) CheckRestore(ctx context.Context, req hypervisors.RestoreRequest) error {
	can := map[hypervisors.RestoreMode]bool{
		hypervisors.RestoreInPlace: d.p.caps.RestoreInPlace, hypervisors.RestoreDisks: d.p.caps.RestoreDisks, hypervisors.RestoreInto: d.p.caps.RestoreInto,
	}
	if has, special := can[req.Mode]; !d.p.caps.Restore || special && !has {
		return d.Unsupported.CheckRestore(ctx, req)
	}
	if err := d.enter(ctx, OpCheckRestore, req.VM.Name); err != nil {
		return err
	}
	return d.mayRestore(req)
}

// mayRestore looks at a request and changes nothing.
func (d *driver) mayRestore(req hypervisors.RestoreRequest) error {
	const op = "restore VM"
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	if len(req.Disks) == 0 {
		return fault.New(fault.Invalid, op, req.VM.Name, "no disk is asked for")
	}
	for _, x := range req.Disks {
		if x.Datastore != "" && x.Datastore != "memory" {
			return fault.New(fault.NotFound, op, req.VM.Name, "there is no datastore %q", x.Datastore)
		}
		if x.Format != "" && !slices.Contains(d.p.caps.Formats, x.Format) {
			return fault.New(fault.Invalid, op, req.VM.Name, "disks of format %q cannot be made here", x.Format)
		}
		if !slices.ContainsFunc(req.VM.Disks, func(s hypervisors.Disk) bool { return s.ID == x.ID }) {
			return fault.New(fault.Invalid, op, req.VM.Name, "the VM has no disk %q", x.ID)
		}
	}
	switch req.Mode {
	case hypervisors.RestoreNew:
		if req.Name == "" {
			return fault.New(fault.Invalid, op, req.VM.Name, "the new VM needs a name")
		}
		for _, v := range d.p.vms {
			if v.Name == req.Name {
				return fault.New(fault.Exists, op, req.Name, "there is a VM of that name").
					Explain("A VM with the name you chose is there already.", "Choose another name.")
			}
		}
	case hypervisors.RestoreInPlace:
		v, err := d.p.find(op, req.VM.ID)
		if err != nil {
			return err
		}
		if v.Power != hypervisors.PowerOff {
			return fault.New(fault.Conflict, op, v.Name, "the VM is %s", v.Power).
				Explain("A VM gets its disks back only while it is off.", "Switch it off and try again.")
		}
		for _, x := range req.Disks {
			if v.disks[x.ID] == nil {
				return fault.New(fault.Conflict, op, v.Name, "the VM has no disk %q any more", x.ID)
			}
		}
	case hypervisors.RestoreDisks:
		for _, x := range req.Disks {
			if d.p.alone[nameOf(x)] != nil {
				return fault.New(fault.Exists, op, req.VM.Name, "there is a disk of the name %q", nameOf(x))
			}
		}
	case hypervisors.RestoreInto:
		_, err := d.p.find(op, req.Into)
		return err
	default:
		return fault.New(fault.Invalid, op, req.VM.Name, "there is no restore mode %q", req.Mode)
	}
	return nil
}

func (d *driver) BeginRestore(ctx context.Context, req hypervisors.RestoreRequest) (hypervisors.Restoring, error) {
	if err := d.CheckRestore(ctx, req); err != nil {
		return nil, err
	}
	if err := d.enter(ctx, OpBeginRestore, req.VM.Name); err != nil {
		return nil, err
	}
	r := &restoring{d: d, req: req, name: marker + req.Tag}
	if err := r.begin(ctx); err != nil {
		return nil, errors.Join(err, r.remove())
	}
	return r, nil
}

func (r *restoring) begin(ctx context.Context) error {
	p := r.d.p
	var exports []nbd.Export
	if r.req.Mode == hypervisors.RestoreNew {
		if err := owe(ctx, r.req.Owe, hypervisors.Owed{Kind: owedVM, Name: r.name}); err != nil {
			return err
		}
	}
	for _, x := range r.req.Disks {
		name := r.name + "-" + x.ID
		if err := owe(ctx, r.req.Owe, hypervisors.Owed{Kind: owedVolume, Name: name}); err != nil {
			return err
		}
		if err := r.d.enter(ctx, OpBeginVolume, name); err != nil {
			return err
		}
		volume := newDisk(r.size(x))
		p.mu.Lock()
		p.volumes[name] = volume
		p.mu.Unlock()
		r.volumes = append(r.volumes, name)
		exports = append(exports, nbd.Export{Name: x.ID, Backend: volume, Contexts: []string{nbd.BaseAllocation}})
	}
	if err := owe(ctx, r.req.Owe, hypervisors.Owed{Kind: owedRestore, Name: r.name}); err != nil {
		return err
	}
	j, err := p.serve(r.name, r.req.VM.ID, r.req.Tag, exports)
	if err != nil {
		return err
	}
	r.job = j
	for i, x := range r.req.Disks {
		r.targets = append(r.targets, hypervisors.TargetInfo{DiskID: x.ID, Export: j.export(x.ID, exports[i].Backend.Size(), true)})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writers[r.name] = j
	return nil
}

// size is that of the request, or else of the source.
func (r *restoring) size(x hypervisors.RestoreDisk) int64 {
	if x.SizeBytes > 0 {
		return x.SizeBytes
	}
	for _, s := range r.req.VM.Disks {
		if s.ID == x.ID {
			return s.SizeBytes
		}
	}
	return 0
}

func (r *restoring) Disks() []hypervisors.TargetInfo { return r.targets }

func (r *restoring) Finish(ctx context.Context) (hypervisors.VM, error) {
	if err := r.d.enter(ctx, OpFinish, r.req.VM.Name); err != nil {
		return hypervisors.VM{}, err
	}
	if err := r.d.mayRestore(r.req); err != nil {
		return hypervisors.VM{}, err // what was possible at the beginning may not be so any more
	}
	p := r.d.p
	p.endJob(p.writers, r.name)
	p.mu.Lock()
	defer p.mu.Unlock()
	disks := map[string]*disk{}
	for i, x := range r.req.Disks {
		d := p.volumes[r.volumes[i]]
		if d == nil {
			return hypervisors.VM{}, fault.New(fault.Conflict, "finish restore", r.req.VM.Name, "volume %s is gone", r.volumes[i])
		}
		disks[x.ID] = d
	}
	var v *vm
	switch r.req.Mode {
	case hypervisors.RestoreInPlace:
		v = p.vms[r.req.VM.ID]
		for id, d := range disks {
			v.disks[id] = d
		}
	case hypervisors.RestoreInto:
		v = p.vms[r.req.Into]
		r.give(v, disks)
	case hypervisors.RestoreDisks:
		v = r.leave(disks)
	default:
		v = r.newVM(disks)
		p.vms[v.ID] = v
	}
	for _, name := range r.volumes {
		delete(p.volumes, name)
	}
	return v.describe(), nil
}

// nameOf is what a disk is called that is restored alone or into a VM.
func nameOf(x hypervisors.RestoreDisk) string { return cmp.Or(x.Name, "restored-"+x.ID) }

// made describes a disk that is like its source, but for its identity.
func (r *restoring) made(x hypervisors.RestoreDisk, id, path string) hypervisors.Disk {
	i := slices.IndexFunc(r.req.VM.Disks, func(d hypervisors.Disk) bool { return d.ID == x.ID })
	out := r.req.VM.Disks[i]
	out.ID, out.Name, out.Path, out.BootOrder = id, nameOf(x), path, 0
	return out
}

// give gives a VM the disks beside its own.
func (r *restoring) give(v *vm, disks map[string]*disk) {
	for _, x := range r.req.Disks {
		id := ""
		for i := 0; id == "" || v.disks[id] != nil; i++ {
			id = fmt.Sprintf("disk%d", i)
		}
		v.disks[id] = disks[x.ID]
		v.Disks = append(v.Disks, r.made(x, id, v.Name+"/"+id))
	}
}

// leave keeps the disks without a VM.
func (r *restoring) leave(disks map[string]*disk) *vm {
	out := &vm{VM: hypervisors.VM{Name: r.req.VM.Name}, disks: map[string]*disk{}}
	for _, x := range r.req.Disks {
		name := nameOf(x)
		r.d.p.alone[name], out.disks[name] = disks[x.ID], disks[x.ID]
		out.Disks = append(out.Disks, r.made(x, name, name))
	}
	return out
}

// newVM makes the description of a new VM from the source's.
func (r *restoring) newVM(disks map[string]*disk) *vm {
	v := &vm{VM: r.req.VM, disks: disks, restoredBy: r.name}
	v.ID, v.Name, v.Power = randomID(), r.req.Name, hypervisors.PowerOff
	v.Disks, v.NICs = nil, slices.Clone(r.req.VM.NICs)
	for _, d := range r.req.VM.Disks {
		if disks[d.ID] != nil {
			d.Path = strings.Join([]string{v.Name, d.ID}, "/")
			v.Disks = append(v.Disks, d)
		}
	}
	for i := range v.NICs {
		if !r.req.KeepMACs {
			v.NICs[i].MAC = randomMAC()
		}
		if to, ok := r.req.Networks[v.NICs[i].Network]; ok {
			v.NICs[i].Network = to
		}
	}
	return v
}

func (r *restoring) Abandon(ctx context.Context) error {
	if err := r.d.enter(ctx, OpAbandon, r.req.VM.Name); err != nil {
		return err
	}
	return r.remove()
}

// remove takes away what the restore has made so far. It may be repeated.
func (r *restoring) remove() error {
	p := r.d.p
	p.endJob(p.writers, r.name)
	if r.job != nil {
		r.job.end()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range r.volumes {
		delete(p.volumes, name)
	}
	return nil
}
