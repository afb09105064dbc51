package protect

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// BackupSpec is what is wanted of a backup; it is the Spec of its task.
type BackupSpec struct {
	VMID         string              `json:"vm_id"`
	RepositoryID string              `json:"repository_id"`
	Quiesce      hypervisors.Quiesce `json:"quiesce,omitempty"` // "" is try
	Exclude      []string            `json:"exclude,omitempty"` // ids of disks
	Full         bool                `json:"full,omitempty"`    // read every disk whole
	Mover        string              `json:"mover,omitempty"`   // id or name; "" is chosen
	Transport    string              `json:"transport,omitempty"`
	Fallback     bool                `json:"fallback,omitempty"`  // to another transport when one fails
	PolicyID     string              `json:"policy_id,omitempty"` // whose retention follows; "" is none
}

// RequestBackup checks a request and makes the task for it, which it does not store.
func (p *Protector) RequestBackup(ctx context.Context, spec BackupSpec) (*catalog.Task, error) {
	vm, err := p.catalog.VM(ctx, spec.VMID)
	if err != nil {
		return nil, err
	}
	if vm.GoneAt != nil {
		return nil, fault.New(fault.Conflict, "back up VM", vm.Name, "the platform does not have it any more").Explain(
			"The last inventory of the connection did not find this VM.",
			"If it is there again, refresh the connection; its restore points can be restored as new VMs.")
	}
	if err := checkExclude(vm, spec.Exclude); err != nil {
		return nil, err
	}
	driver, err := p.drivers(ctx, vm.ConnectionID)
	if err != nil {
		return nil, err
	}
	if !driver.Capabilities().Backup {
		return nil, fault.New(fault.Unsupported, "back up VM", vm.Name, "this connection cannot be backed up").Explain(
			"The platform behind the connection, or its version, has no way to freeze disks that Cairn can use.",
			"Check the connection: what it says will not work names the reason.")
	}
	if err := p.usable(ctx, spec.RepositoryID); err != nil {
		return nil, err
	}
	if spec.Quiesce == "" {
		spec.Quiesce = hypervisors.QuiesceTry
	}
	return &catalog.Task{
		VMID: vm.ID, VMName: vm.Name, Subject: vm.ID, ConnectionID: vm.ConnectionID, RepositoryID: spec.RepositoryID,
		Spec: encode(spec),
	}, nil
}

func checkExclude(vm catalog.VM, exclude []string) error {
	left := 0
	if why := vm.Description.Unprotectable; why != "" {
		return fault.New(fault.Conflict, "back up VM", vm.Name, "%s", why).Explain(
			"This VM cannot be backed up by the platform's own means.", "Take it out of the policy, or exclude it with this reason.")
	}
	if !slices.ContainsFunc(vm.Description.Disks, func(d hypervisors.Disk) bool { return d.Kind == hypervisors.KindDisk || d.Kind == hypervisors.KindLUN }) {
		return fault.New(fault.Invalid, "back up VM", vm.Name, "it has no disk").Explain(
			"A backup is of a VM's disks, and this one has none.",
			"If it was given one just now, refresh the connection and try again; CD-ROM and floppy drives do not count.")
	}
	for _, d := range vm.Description.Disks {
		if d.Kind == hypervisors.KindDisk && d.Unprotectable == "" && !slices.Contains(exclude, d.ID) {
			left++
		}
	}
	for _, id := range exclude {
		if !slices.ContainsFunc(vm.Description.Disks, func(d hypervisors.Disk) bool { return d.ID == id }) {
			return fault.New(fault.Invalid, "exclude disk", id, "VM %s has no such disk", vm.Name).Explain(
				"A disk that is to be left out is not one of this VM's.", "Show the VM, and name one of its disks by its id.")
		}
	}
	if left == 0 {
		return fault.New(fault.Invalid, "back up VM", vm.Name, "no disk would be backed up").Explain(
			"All its disks are excluded, or none of them can be frozen.", whyNot(vm))
	}
	return nil
}

func whyNot(vm catalog.VM) string {
	var reasons []string
	for _, d := range vm.Description.Disks {
		if d.Unprotectable != "" {
			reasons = append(reasons, d.ID+": "+d.Unprotectable)
		}
	}
	if len(reasons) == 0 {
		return "Exclude fewer disks."
	}
	return "Disks that cannot be backed up: " + strings.Join(reasons, "; ") + "."
}

// RequestVerify makes the task that reads a restore point back.
func (p *Protector) RequestVerify(ctx context.Context, pointID string) (*catalog.Task, error) {
	point, err := p.catalog.RestorePoint(ctx, pointID)
	if err != nil {
		return nil, err
	}
	if err := p.usable(ctx, point.RepositoryID); err != nil {
		return nil, err
	}
	return &catalog.Task{
		VMID: point.VMID, VMName: point.VMName, Subject: point.ID, RepositoryID: point.RepositoryID, RestorePointID: point.ID,
	}, nil
}

// CollectSpec is what is wanted of a collect.
type CollectSpec struct {
	DryRun  bool    `json:"dry_run,omitempty"`
	Compact float64 `json:"compact,omitempty"` // as in store.CollectOptions
	Budget  int64   `json:"budget,omitempty"`  // the same
}

// RequestCollect makes the task that frees space in a repository.
func (p *Protector) RequestCollect(ctx context.Context, repositoryID string, spec CollectSpec) (*catalog.Task, error) {
	if err := p.usable(ctx, repositoryID); err != nil {
		return nil, err
	}
	return &catalog.Task{Subject: repositoryID, RepositoryID: repositoryID, Spec: encode(spec)}, nil
}

// usable looks whether a repository can be opened, if it is for this manager to open it: a task for another one's repository
// is that one's.
func (p *Protector) usable(ctx context.Context, repositoryID string) error {
	if _, err := p.repositories(ctx, repositoryID); err != nil && !errors.Is(err, catalog.ErrElsewhere) {
		return err
	}
	return nil
}

// encode marshals what always marshals: plain structs of this package.
func encode(v any) json.RawMessage {
	raw, _ := json.Marshal(v)
	return raw
}
