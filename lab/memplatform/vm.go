package memplatform

import (
	"fmt"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// vm is a virtual machine. Platform.mu guards it.
type vm struct {
	hypervisors.VM
	disks       map[string]*disk // by disk id
	checkpoints []checkpoint
	restoredBy  string // tag of the restore that made it, until it is finished
	thaws       int
}

// checkpoint is a mark in the history of some disks of a VM.
type checkpoint struct {
	hypervisors.Checkpoint
	broken bool // the history is not known to be whole
}

// VMSpec says what VM to add.
type VMSpec struct {
	Name  string
	Disks []int64 // sizes in bytes; ids are "disk0", "disk1", …
	Off   bool
	Agent bool // the guest can be quiesced
	CDROM bool // one more disk, "cdrom0", that cannot be backed up

	Unprotectable string // as in hypervisors.VM
	LUNs          bool   // none of the disks can be backed up
}

// AddVM makes a VM with blank disks.
func (p *Platform) AddVM(s VMSpec) hypervisors.VM {
	v := &vm{disks: map[string]*disk{}, VM: hypervisors.VM{
		ID: randomID(), Name: s.Name, Power: hypervisors.PowerOn, Arch: "x86_64", Machine: "memory", Firmware: hypervisors.BIOS,
		CPUs: 1, MemoryBytes: 256 << 20, Agent: s.Agent, Unprotectable: s.Unprotectable,
		NICs: []hypervisors.NIC{{ID: "nic0", MAC: randomMAC(), Network: "memory:one"}},
	}}
	if s.Off {
		v.Power = hypervisors.PowerOff
	}
	for i, size := range s.Disks {
		id := fmt.Sprintf("disk%d", i)
		v.disks[id] = newDisk(size)
		v.Disks = append(v.Disks, hypervisors.Disk{
			ID: id, Kind: hypervisors.KindDisk, Bus: "memory", Format: hypervisors.Raw, SizeBytes: size, Datastore: "memory", Path: s.Name + "/" + id,
		})
	}
	if s.LUNs {
		for i := range v.Disks {
			v.Disks[i].Kind, v.Disks[i].Unprotectable = hypervisors.KindLUN, "It is a direct LUN."
		}
	}
	if s.CDROM {
		v.Disks = append(v.Disks, hypervisors.Disk{
			ID: "cdrom0", Kind: hypervisors.KindCDROM, SizeBytes: 1 << 20, ReadOnly: true, Unprotectable: "It is a CD-ROM drive.",
		})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.vms[v.ID] = v
	p.changed(v.ID)
	return v.describe()
}

// RemoveVM removes a VM with its disks, as an admin would.
func (p *Platform) RemoveVM(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.vms, id)
	p.changed(id)
}

// describe returns a copy of the VM's description. The caller holds mu.
func (v *vm) describe() hypervisors.VM {
	out := v.VM
	out.Disks = slices.Clone(v.Disks)
	out.NICs = slices.Clone(v.NICs)
	for i, d := range out.Disks {
		if disk := v.disks[d.ID]; disk != nil {
			out.Disks[i].SizeBytes, out.Disks[i].UsedBytes = disk.size, disk.used()
		}
	}
	return out
}

// find returns a VM. The caller holds mu.
func (p *Platform) find(op, id string) (*vm, error) {
	v, ok := p.vms[id]
	if !ok {
		return nil, fault.New(fault.NotFound, op, id, "there is no such VM").
			Explain("The VM is not on this platform any more.", "Look whether it was removed or moved.")
	}
	return v, nil
}

func (p *Platform) disk(id, diskID string) (*vm, *disk, error) {
	v, err := p.find("find disk", id)
	if err != nil {
		return nil, nil, err
	}
	d := v.disks[diskID]
	if d == nil {
		return nil, nil, fault.New(fault.NotFound, "find disk", diskID, "VM %s has no such disk", v.Name)
	}
	return v, d, nil
}

// Write writes to a disk as the VM's guest would.
func (p *Platform) Write(id, diskID string, data []byte, off int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, d, err := p.disk(id, diskID)
	if err != nil {
		return err
	}
	if _, err := d.WriteAt(data, off); err != nil {
		return err
	}
	d.touch(off, int64(len(data)))
	return nil
}

// Content returns a disk as it is now.
func (p *Platform) Content(id, diskID string) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.alone[diskID]
	if id != "" || d == nil {
		var err error
		if _, d, err = p.disk(id, diskID); err != nil {
			return nil, err
		}
	}
	out := make([]byte, d.size)
	_, err := d.ReadAt(out, 0)
	return out, err
}

// RemoveDisk removes a disk that no VM has.
func (p *Platform) RemoveDisk(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.alone, name)
}

// Resize changes a disk's size, which ends its history.
func (p *Platform) Resize(id, diskID string, size int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, d, err := p.disk(id, diskID)
	if err != nil {
		return err
	}
	d.resize(size)
	return nil
}

// Crash is a power failure of the host: the VM is off and no checkpoint's history is known to be whole.
func (p *Platform) Crash(id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, err := p.find("crash VM", id)
	if err != nil {
		return err
	}
	v.Power = hypervisors.PowerOff
	for i := range v.checkpoints {
		v.checkpoints[i].broken = true
	}
	return nil
}

// AddCheckpoint makes a checkpoint as another tool would.
func (p *Platform) AddCheckpoint(id, name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, err := p.find("make checkpoint", id)
	if err == nil {
		v.mark(name, slices.Collect(v.protectable()))
	}
	return err
}

// HasCheckpoint says whether a VM has a checkpoint, whoever made it.
func (p *Platform) HasCheckpoint(id, name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.vms[id]
	return v != nil && slices.ContainsFunc(v.checkpoints, func(c checkpoint) bool { return c.Name == name })
}

// Thaws returns how often the guest was frozen and thawed again.
func (p *Platform) Thaws(id string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v := p.vms[id]; v != nil {
		return v.thaws
	}
	return 0
}

// mark makes a checkpoint on disks. The caller holds mu.
func (v *vm) mark(name string, disks []string) {
	parent := ""
	if n := len(v.checkpoints); n > 0 {
		parent = v.checkpoints[n-1].Name
	}
	for _, d := range disks {
		v.disks[d].dirty[name] = map[int64]bool{}
	}
	v.checkpoints = append(v.checkpoints, checkpoint{Checkpoint: hypervisors.Checkpoint{Name: name, Parent: parent, Created: time.Now(), Disks: disks}})
}

// unmark removes a checkpoint. The caller holds mu.
func (v *vm) unmark(name string) {
	for _, d := range v.disks {
		delete(d.dirty, name)
	}
	v.checkpoints = slices.DeleteFunc(v.checkpoints, func(c checkpoint) bool { return c.Name == name })
}

// protectable yields the ids of the disks that can be backed up. The caller holds mu.
func (v *vm) protectable() func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for _, d := range v.Disks {
			if v.disks[d.ID] != nil && !yield(d.ID) {
				return
			}
		}
	}
}
