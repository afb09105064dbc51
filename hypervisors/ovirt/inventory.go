package ovirt

import (
	"cmp"
	"context"
	"slices"
	"strings"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// withParts are the collections of a VM that come with it in one reply.
const withParts = "disk_attachments.disk,nics,tags"

// moverComment begins the comment of a VM that is a mover.
const moverComment = "cairn-mover"

// isMover says whether a VM is marked as a mover.
func isMover(vm *sdk.Vm) bool { return strings.HasPrefix(val(vm.Comment()), moverComment) }

// isUnfinished says whether a VM is one that a restore has not completed.
func isUnfinished(vm *sdk.Vm) bool { return strings.HasPrefix(val(vm.Comment()), restoreComment) }

// VMs lists the engine's VMs, except movers and those of restores under way.
func (d *Driver) VMs(ctx context.Context) ([]hypervisors.VM, error) {
	if err := d.conn.Confirm(ctx); err != nil { // what an inventory does not find counts as gone
		return nil, err
	}
	p, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	all, err := d.list(ctx)
	if err != nil {
		return nil, err
	}
	out := []hypervisors.VM{}
	for _, vm := range all {
		if !isMover(vm) && !isUnfinished(vm) {
			out = append(out, describe(vm, p))
		}
	}
	sortVMs(out)
	return out, nil
}

func sortVMs(vms []hypervisors.VM) {
	slices.SortFunc(vms, func(a, b hypervisors.VM) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
}

// list reads all VMs with their parts, each once: one that changes its name meanwhile may come twice.
func (d *Driver) list(ctx context.Context) ([]*sdk.Vm, error) {
	all, err := engine.Pages[*sdk.Vm](ctx, d.conn, engine.Request{Op: "list VMs", Path: "/vms", Query: engine.Query("follow", withParts)}, "vms", "name", sdk.XMLVmReadMany)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(all, func(vm *sdk.Vm) bool {
		id := val(vm.Id())
		again := seen[id]
		seen[id] = true
		return again || !goodID.MatchString(id)
	}), nil
}

// VM returns one VM.
func (d *Driver) VM(ctx context.Context, id string) (hypervisors.VM, error) {
	vm, p, err := d.find(ctx, id)
	if err != nil {
		return hypervisors.VM{}, err
	}
	return describe(vm, p), nil
}

// find reads one VM of the user's with its parts, and what it refers to.
func (d *Driver) find(ctx context.Context, id string) (*sdk.Vm, *places, error) {
	vm, err := d.read(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if isMover(vm) {
		return nil, nil, fault.New(fault.NotFound, "look up VM", id, "it is a mover of this product").
			Explain("Movers are no VMs to back up or to restore to.", "List the VMs of the connection.")
	}
	p, err := d.look(ctx)
	return vm, p, err
}

// read reads one VM, whatever it is, with its parts.
func (d *Driver) read(ctx context.Context, id string) (*sdk.Vm, error) {
	if err := checkID("VM", id); err != nil {
		return nil, err
	}
	return engine.One(ctx, d.conn, engine.Request{Op: "look up VM", Subject: id, Path: "/vms/" + id, Query: engine.Query("follow", withParts)}, "vm", sdk.XMLVmReadOne)
}
