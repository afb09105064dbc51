package hypervisors

import (
	"context"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Unsupported implements all of Driver except Capabilities, Check and Close, by errors that match
// errors.ErrUnsupported. Drivers embed it, so that a new method does not break them.
type Unsupported struct{ Platform Platform }

func (u Unsupported) no(op string) error {
	return fault.New(fault.Unsupported, op, string(u.Platform), "this driver cannot do that")
}

// VMs is not supported.
func (u Unsupported) VMs(context.Context) ([]VM, error) { return nil, u.no("list VMs") }

// VM is not supported.
func (u Unsupported) VM(context.Context, string) (VM, error) { return VM{}, u.no("look up VM") }

// Datastores is not supported.
func (u Unsupported) Datastores(context.Context) ([]Datastore, error) {
	return nil, u.no("list datastores")
}

// Networks is not supported.
func (u Unsupported) Networks(context.Context) ([]Network, error) { return nil, u.no("list networks") }

// Watch is not supported.
func (u Unsupported) Watch(context.Context, func(string)) error { return u.no("watch VMs") }

// Freeze is not supported.
func (u Unsupported) Freeze(context.Context, FreezeRequest) (Frozen, error) {
	return nil, u.no("freeze VM")
}

// Refreeze is not supported.
func (u Unsupported) Refreeze(context.Context, Standing) (Frozen, error) {
	return nil, u.no("take up freeze of VM")
}

// Checkpoints is not supported.
func (u Unsupported) Checkpoints(context.Context, string) ([]Checkpoint, error) {
	return nil, u.no("list checkpoints")
}

// KeepCheckpoint is not supported.
func (u Unsupported) KeepCheckpoint(context.Context, string, string) error {
	return u.no("remove checkpoints")
}

// CheckRestore is not supported.
func (u Unsupported) CheckRestore(context.Context, RestoreRequest) error { return u.no("restore VM") }

// BeginRestore is not supported.
func (u Unsupported) BeginRestore(context.Context, RestoreRequest) (Restoring, error) {
	return nil, u.no("restore VM")
}

// Attach is not supported.
func (u Unsupported) Attach(context.Context, AttachRequest) (Attached, error) {
	return nil, u.no("attach disk to mover")
}

// CheckMover is not supported.
func (u Unsupported) CheckMover(context.Context, MoverRequest) error { return u.no("make a mover VM") }

// DeployMover is not supported.
func (u Unsupported) DeployMover(context.Context, MoverRequest) (VM, error) {
	return VM{}, u.no("make a mover VM")
}

// Movers is not supported.
func (u Unsupported) Movers(context.Context) ([]VM, error) { return nil, u.no("list mover VMs") }

// RemoveMover is not supported.
func (u Unsupported) RemoveMover(context.Context, string) error { return u.no("remove a mover VM") }

// Start is not supported.
func (u Unsupported) Start(context.Context, string) error { return u.no("start VM") }

// Stop is not supported.
func (u Unsupported) Stop(context.Context, string, bool) error { return u.no("stop VM") }

// CleanUp is not supported.
func (u Unsupported) CleanUp(context.Context, Owed) error { return u.no("clean up") }

// Leftovers is not supported.
func (u Unsupported) Leftovers(context.Context) ([]Owed, error) {
	return nil, u.no("look for leftovers")
}
