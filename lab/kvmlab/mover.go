package kvmlab

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	nbdtransport "github.com/cairn-backup/cairn/datamover/transport/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// appearTimeout is how long a mover's guest waits for a disk.
const appearTimeout = 30 * time.Second

// OpenSource opens a frozen disk that is hot-plugged into the VM, which must be one of Spec.Mover, and reads it there.
// The VM has one disk open at a time.
func (v *VM) OpenSource(ctx context.Context, e hypervisors.Export) (hypervisors.FrozenDisk, error) {
	inside, err := v.openInside(ctx, e)
	if err != nil {
		return nil, err
	}
	if !e.Writable {
		inside.DirtyContext = "qemu:dirty-bitmap:mover"
	}
	d, err := nbdtransport.OpenSource(ctx, inside)
	if err != nil {
		return nil, err
	}
	return &moverSource{FrozenDisk: d, vm: v}, nil
}

// OpenTarget opens a new disk that is hot-plugged into the VM and writes it there.
func (v *VM) OpenTarget(ctx context.Context, e hypervisors.Export) (hypervisors.TargetDisk, error) {
	inside, err := v.openInside(ctx, e)
	if err != nil {
		return nil, err
	}
	d, err := nbdtransport.OpenTarget(ctx, inside)
	if err != nil {
		return nil, err
	}
	return &moverTarget{TargetDisk: d, vm: v}, nil
}

// openInside makes the guest open a disk and returns the way to it. The guest waits for the disk as long as ctx has
// time. The guest's error keeps its kind and words.
func (v *VM) openInside(ctx context.Context, e hypervisors.Export) (hypervisors.Export, error) {
	inside := hypervisors.Export{Transport: hypervisors.TransportNBD, Network: "unix", Name: "disk", SizeBytes: e.SizeBytes, Writable: e.Writable}
	text, err := json.Marshal(e)
	if err != nil {
		return inside, err
	}
	wait := appearTimeout
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(end))
	}
	st, err := v.command(context.WithoutCancel(ctx), fmt.Sprintf("open %s %d", text, wait.Milliseconds()))
	if err != nil {
		return inside, err
	}
	if st.Fault != "" {
		kind, _ := fault.KindNamed(st.Kind)
		return inside, fault.New(kind, "open disk in the guest of", v.Name, "%s", st.Fault).Explain(st.Meaning, st.Advice)
	}
	inside.Address, err = v.port(ctx, "cairn.mover.0")
	return inside, err
}

// Mount makes the guest mount the ext4 file system of the virtio disk with a serial; NotFound if it does not see it yet.
func (v *VM) Mount(ctx context.Context, serial string) error {
	return v.mountCommand(ctx, "mount "+serial)
}

// Unmount takes that mount away.
func (v *VM) Unmount(ctx context.Context) error { return v.mountCommand(ctx, "unmount") }

func (v *VM) mountCommand(ctx context.Context, command string) error {
	st, err := v.command(ctx, command)
	if err == nil && st.Fault != "" {
		kind, _ := fault.KindNamed(st.Kind)
		err = fault.New(kind, command, v.Name, "%s", st.Fault)
	}
	return err
}

// letGo makes the guest close its disk.
func (v *VM) letGo() error {
	ctx, cancel := context.WithTimeout(context.Background(), guestTimeout)
	defer cancel()
	_, err := v.command(ctx, "close")
	return err
}

type moverSource struct {
	hypervisors.FrozenDisk
	vm *VM
}

func (s *moverSource) Close() error {
	_ = s.FrozenDisk.Close()
	return s.vm.letGo()
}

type moverTarget struct {
	hypervisors.TargetDisk
	vm *VM
}

func (t *moverTarget) Close() error {
	_ = t.TargetDisk.Close()
	return t.vm.letGo()
}
