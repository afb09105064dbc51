package recover

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// intoOf reads the VM that is to get the disks.
func (r *Recoverer) intoOf(ctx context.Context, spec Spec) (catalog.VM, error) {
	if spec.IntoVMID == "" {
		return catalog.VM{}, fault.New(fault.Invalid, "restore", spec.RestorePointID, "the VM that gets the disks is not named")
	}
	vm, err := r.catalog.VM(ctx, spec.IntoVMID)
	if err != nil {
		return vm, err
	}
	if spec.ConnectionID != "" && spec.ConnectionID != vm.ConnectionID {
		return vm, fault.New(fault.Invalid, "restore", spec.RestorePointID, "VM %s is on another connection", vm.Name).
			Explain("Disks are restored to where the VM is that gets them.", "Leave the connection out.")
	}
	return vm, nil
}

// nameDisks says what disks are called that are restored alone, or into a VM: by whose they were and of when they are, or by the VM that gets
// them, the source's disk and the end of the restore point's id.
func (o *order) nameDisks(req *hypervisors.RestoreRequest) {
	for i := range req.Disks {
		disk := &req.Disks[i]
		was := sourceName(req.VM, disk.ID)
		switch {
		case req.Mode == hypervisors.RestoreInto:
			id := o.point.ID
			disk.Name = plain(fmt.Sprintf("%s_%s_%s", o.into.Name, was, id[max(0, len(id)-8):]))
		case req.Mode != hypervisors.RestoreDisks:
		case o.spec.Name == "":
			disk.Name = plain(fmt.Sprintf("%s_%s_%s", req.VM.Name, was, o.point.Time.UTC().Format("20060102T150405Z")))
		case len(req.Disks) == 1:
			disk.Name = o.spec.Name
		default:
			disk.Name = o.spec.Name + "_" + plain(was)
		}
	}
}

// sourceName is what a disk of a VM is called, without the VM's name where platforms put that before it.
func sourceName(vm hypervisors.VM, id string) string {
	i := slices.IndexFunc(vm.Disks, func(d hypervisors.Disk) bool { return d.ID == id })
	if i < 0 {
		return id
	}
	name := strings.TrimPrefix(vm.Disks[i].Name, vm.Name+"_")
	return cmp.Or(name, id)
}

// plain keeps of a name what disks may be called on every platform.
func plain(name string) string {
	out := []rune(strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("._-", r) {
			return r
		}
		return '_'
	}, name))
	return string(out[:min(len(out), 200)])
}
