package kvm

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
)

// shutdownLimit is how long a guest is given to shut down.
const shutdownLimit = time.Minute

// Start switches a VM on.
func (d *Driver) Start(ctx context.Context, vm string) error {
	if err := checkUUID(vm); err != nil {
		return err
	}
	_, err := onDomain(ctx, d.conn, "start", vm, func(_ *libvirt.Connect, dom *libvirt.Domain) (none, error) {
		active, err := dom.IsActive()
		if err == nil && active {
			err = fault.New(fault.Conflict, "", "", "it runs already").Explain("The VM is on already.", "Nothing has to be done.")
		}
		if err != nil {
			return none{}, err
		}
		return none{}, dom.Create()
	})
	return err
}

// Stop switches a VM off. A VM that is off is fine.
func (d *Driver) Stop(ctx context.Context, vm string, force bool) error {
	if err := checkUUID(vm); err != nil {
		return err
	}
	off, err := onDomain(ctx, d.conn, "stop", vm, func(_ *libvirt.Connect, dom *libvirt.Domain) (bool, error) {
		active, err := dom.IsActive()
		if err != nil || !active {
			return true, err
		}
		if force {
			return true, switchOff(dom)
		}
		return false, dom.Shutdown()
	})
	if err != nil || off {
		return err
	}
	err = poll(ctx, shutdownLimit, "the VM is off", func() (bool, error) {
		active, err := onDomain(ctx, d.conn, "stop", vm, func(_ *libvirt.Connect, dom *libvirt.Domain) (bool, error) { return dom.IsActive() })
		return !active, err
	})
	if err != nil && ctx.Err() == nil && fault.KindOf(err) == fault.Transient {
		return fault.New(fault.Conflict, "stop", "VM "+vm, "its guest did not shut down within %s", shutdownLimit).
			Explain("The guest was asked to shut down and did not.", "Shut it down from inside, or switch it off by force.")
	}
	return err
}

// switchOff ends QEMU gently first: it then closes the images, and their records of changes stay usable.
func switchOff(dom *libvirt.Domain) error {
	err := dom.DestroyFlags(libvirt.DOMAIN_DESTROY_GRACEFUL)
	if err != nil && number(err) != libvirt.ERR_OPERATION_INVALID {
		err = dom.Destroy()
	}
	if number(err) == libvirt.ERR_OPERATION_INVALID {
		return nil // it went off by itself meanwhile
	}
	return err
}
