package memplatform

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// driver is one connection to the platform; it remembers nothing.
type driver struct {
	hypervisors.Unsupported
	p *Platform

	confirm   hypervisors.ConfirmHost // nil takes any host
	confirmed atomic.Value            // the identity for which confirm was asked last, without an error
}

// Driver returns a new connection to the platform.
func (p *Platform) Driver() hypervisors.Driver {
	return &driver{Unsupported: hypervisors.Unsupported{Platform: PlatformName}, p: p}
}

// Confirmed returns a new connection to the platform that has its host confirmed at its first operation, and after Reinstall.
func (p *Platform) Confirmed(confirm hypervisors.ConfirmHost) hypervisors.Driver {
	return &driver{Unsupported: hypervisors.Unsupported{Platform: PlatformName}, p: p, confirm: confirm}
}

// Reinstall gives the host another identity; "" is none.
func (p *Platform) Reinstall(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.id = id
}

// ID is the host's identity.
func (p *Platform) ID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.id
}

// enter lets an operation meet its faults and gives their errors the driver's shape.
func (d *driver) enter(ctx context.Context, op, subject string) error {
	if id := d.p.ID(); d.confirm != nil && d.confirmed.Load() != id {
		if err := d.confirm(ctx, "memory", id); err != nil {
			return fault.Context(strings.ToLower(op), subject, err)
		}
		d.confirmed.Store(id)
	}
	err := d.p.meet(ctx, op)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	return fault.Context(strings.ToLower(op), subject, err)
}

func (d *driver) Capabilities() hypervisors.Capabilities { return d.p.caps }

func (d *driver) Close() error { return nil }

func (d *driver) Check(ctx context.Context) (hypervisors.Health, error) {
	if err := d.enter(ctx, OpCheck, ""); err != nil {
		return hypervisors.Health{}, err
	}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	return hypervisors.Health{Product: "platform in memory", Host: "memory", HostID: d.p.id, VMs: len(d.p.vms)}, nil
}

func (d *driver) VMs(ctx context.Context) ([]hypervisors.VM, error) {
	if err := d.enter(ctx, OpVMs, ""); err != nil {
		return nil, err
	}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	var out []hypervisors.VM
	for _, v := range d.p.vms {
		out = append(out, v.describe())
	}
	slices.SortFunc(out, func(a, b hypervisors.VM) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (d *driver) VM(ctx context.Context, id string) (hypervisors.VM, error) {
	if err := d.enter(ctx, OpVM, id); err != nil {
		return hypervisors.VM{}, err
	}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	v, err := d.p.find("look up VM", id)
	if err != nil {
		return hypervisors.VM{}, err
	}
	return v.describe(), nil
}

func (d *driver) Datastores(ctx context.Context) ([]hypervisors.Datastore, error) {
	if err := d.enter(ctx, OpDatastores, ""); err != nil {
		return nil, err
	}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	const capacity = 1 << 40
	free := d.p.free
	if free < 0 {
		free = capacity
	}
	return []hypervisors.Datastore{{ID: "memory", Name: "memory", Kind: "memory", CapacityBytes: capacity, FreeBytes: free, Active: true}}, nil
}

func (d *driver) Networks(ctx context.Context) ([]hypervisors.Network, error) {
	if err := d.enter(ctx, OpNetworks, ""); err != nil {
		return nil, err
	}
	return []hypervisors.Network{{Name: "memory:one", Kind: "memory", Active: true}, {Name: "memory:two", Kind: "memory", Active: true}}, nil
}

func (d *driver) Checkpoints(ctx context.Context, id string) ([]hypervisors.Checkpoint, error) {
	if !d.p.caps.ChangeTracking {
		return d.Unsupported.Checkpoints(ctx, id)
	}
	if err := d.enter(ctx, OpCheckpoints, id); err != nil {
		return nil, err
	}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	v, err := d.p.find("list checkpoints", id)
	if err != nil {
		return nil, err
	}
	var out []hypervisors.Checkpoint
	for _, c := range v.checkpoints {
		if strings.HasPrefix(c.Name, marker) {
			out = append(out, c.Checkpoint)
		}
	}
	return out, nil
}

func (d *driver) KeepCheckpoint(ctx context.Context, id, keep string) error {
	if !d.p.caps.ChangeTracking {
		return d.Unsupported.KeepCheckpoint(ctx, id, keep)
	}
	if err := d.enter(ctx, OpKeepCheckpoint, id); err != nil {
		return err
	}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	v, err := d.p.find("remove checkpoints", id)
	if err != nil {
		return err
	}
	for _, c := range slices.Clone(v.checkpoints) {
		if strings.HasPrefix(c.Name, marker) && c.Name != keep {
			v.unmark(c.Name)
		}
	}
	return nil
}

func (d *driver) Start(ctx context.Context, id string) error {
	if !d.p.caps.Power {
		return d.Unsupported.Start(ctx, id)
	}
	if err := d.enter(ctx, OpStart, id); err != nil {
		return err
	}
	return d.power(id, hypervisors.PowerOff, hypervisors.PowerOn)
}

func (d *driver) Stop(ctx context.Context, id string, force bool) error {
	if !d.p.caps.Power {
		return d.Unsupported.Stop(ctx, id, force)
	}
	if err := d.enter(ctx, OpStop, id); err != nil {
		return err
	}
	return d.power(id, hypervisors.PowerOn, hypervisors.PowerOff)
}

// power switches a VM, and does nothing when it is in the wanted state already.
func (d *driver) power(id string, from, to hypervisors.Power) error {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	v, err := d.p.find("switch VM "+string(to), id)
	if err != nil {
		return err
	}
	if v.Power != from && v.Power != to {
		return fault.New(fault.Conflict, "switch VM "+string(to), v.Name, "it is %s", v.Power)
	}
	v.Power = to
	d.p.changed(id)
	return nil
}

// The kinds of owed clean-up of this platform.
const (
	owedJob     hypervisors.OwedKind = "job"
	owedRestore hypervisors.OwedKind = "restore"
	owedVolume  hypervisors.OwedKind = "volume"
	owedVM      hypervisors.OwedKind = "vm"
)

func (d *driver) CleanUp(ctx context.Context, o hypervisors.Owed) error {
	if err := d.enter(ctx, OpCleanUp, o.Name); err != nil {
		return err
	}
	if !strings.HasPrefix(o.Name, marker) {
		return fault.New(fault.Invalid, "clean up", o.Name, "its name does not begin with %q: it is not ours", marker)
	}
	switch o.Kind {
	case hypervisors.OwedCheckpoint:
		d.p.mu.Lock()
		defer d.p.mu.Unlock()
		if v := d.p.vms[o.VM]; v != nil {
			v.unmark(o.Name)
		}
	case owedJob:
		d.p.endJob(d.p.jobs, o.Name)
	case owedRestore:
		d.p.endJob(d.p.writers, o.Name)
	case owedVolume:
		d.p.mu.Lock()
		defer d.p.mu.Unlock()
		delete(d.p.volumes, o.Name)
	case owedVM:
		d.p.mu.Lock()
		defer d.p.mu.Unlock()
		maps.DeleteFunc(d.p.vms, func(_ string, v *vm) bool { return v.restoredBy == o.Name })
	default:
		return fault.New(fault.Invalid, "clean up", o.Name, "this platform makes nothing of kind %q", o.Kind)
	}
	return nil
}

// endJob ends a job if it is there and forgets it.
func (p *Platform) endJob(jobs map[string]*job, name string) {
	p.mu.Lock()
	j := jobs[name]
	p.mu.Unlock()
	if j == nil {
		return
	}
	j.end() // without mu: what is ended may be waiting for it
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(jobs, name)
}

func (d *driver) Leftovers(ctx context.Context) ([]hypervisors.Owed, error) {
	if err := d.enter(ctx, OpLeftovers, ""); err != nil {
		return nil, err
	}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	var out []hypervisors.Owed
	for name, j := range d.p.jobs {
		out = append(out, hypervisors.Owed{Kind: owedJob, VM: j.vm, Name: name})
	}
	for name := range d.p.writers {
		out = append(out, hypervisors.Owed{Kind: owedRestore, Name: name})
	}
	for name := range d.p.volumes {
		out = append(out, hypervisors.Owed{Kind: owedVolume, Name: name})
	}
	for id, v := range d.p.vms {
		for _, c := range v.checkpoints {
			if strings.HasPrefix(c.Name, marker) {
				out = append(out, hypervisors.Owed{Kind: hypervisors.OwedCheckpoint, VM: id, Name: c.Name})
			}
		}
	}
	slices.SortFunc(out, func(a, b hypervisors.Owed) int { return strings.Compare(string(a.Kind)+a.Name, string(b.Kind)+b.Name) })
	return out, nil
}
