package jobs

import (
	"context"
	"slices"

	"github.com/cairn-backup/cairn/hypervisors"
)

// Plugs is what a task can plug disks into: the mover VMs of its connection.
type Plugs struct {
	// Machines are the movers' VMs that are on, by their ids. Without any, None says why.
	Machines map[string]hypervisors.VM
	None     string
	// Plug plugs a disk of the task's freeze or restore into one of them; the clean-up is owed. Whoever plugs it in
	// detaches it, and Journal.Unplug confirms that before the freeze or restore ends.
	Plug func(ctx context.Context, machine string, e hypervisors.Export) (hypervisors.Attached, error)
}

// Plugs looks what a task can plug disks into now. That the platform cannot be asked is no error here: the disks can be
// had otherwise.
func (t *Task) Plugs(ctx context.Context, driver hypervisors.Driver, connectionID string) Plugs {
	if !slices.Contains(driver.Capabilities().Transports, hypervisors.TransportHotadd) {
		return Plugs{None: "this connection cannot plug disks into movers"}
	}
	movers, err := driver.Movers(ctx)
	if err != nil {
		return Plugs{None: "the platform does not say which of its VMs are movers: " + err.Error()}
	}
	p := Plugs{Machines: map[string]hypervisors.VM{}}
	for _, vm := range movers {
		if vm.Power == hypervisors.PowerOn {
			p.Machines[vm.ID] = vm
		}
	}
	if len(p.Machines) == 0 {
		p.None = "the connection has no mover VM that is on"
	}
	owe := t.Journal().Owe(connectionID, t.ID)
	p.Plug = func(ctx context.Context, machine string, e hypervisors.Export) (hypervisors.Attached, error) {
		return driver.Attach(ctx, hypervisors.AttachRequest{Mover: machine, Tag: Tag(t.ID), Export: e, Serial: hypervisors.NewSerial(), Owe: owe})
	}
	return p
}
