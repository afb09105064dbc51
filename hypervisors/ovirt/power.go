package ovirt

import (
	"context"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
)

// Start starts a VM and waits until it runs.
func (d *Driver) Start(ctx context.Context, vm string) error {
	return d.power(ctx, vm, "start", hypervisors.PowerOn)
}

// Stop switches a VM off; without force its guest is asked to shut down.
func (d *Driver) Stop(ctx context.Context, vm string, force bool) error {
	verb := "shutdown"
	if force {
		verb = "stop"
	}
	return d.power(ctx, vm, verb, hypervisors.PowerOff)
}

func (d *Driver) power(ctx context.Context, id, verb string, want hypervisors.Power) error {
	vm, _, err := d.find(ctx, id)
	if err != nil {
		return err
	}
	if reached(vm, want) {
		return nil
	}
	err = d.pace.unlessBusy(ctx, verb+" VM", func() error { return d.conn.Act(ctx, verb+" VM", val(vm.Name()), "/vms/"+id+"/"+verb, nil) })
	if err != nil {
		return err
	}
	return d.pace.poll(ctx, d.pace.create, "VM "+val(vm.Name())+" is "+string(want), func() (bool, error) {
		vm, err := d.read(ctx, id)
		return err == nil && reached(vm, want), err
	})
}

func reached(vm *sdk.Vm, want hypervisors.Power) bool {
	switch val(vm.Status()) {
	case sdk.VMSTATUS_UP:
		return want == hypervisors.PowerOn
	case sdk.VMSTATUS_DOWN:
		return want == hypervisors.PowerOff
	}
	return false
}
