package kvm

import (
	"context"
	"fmt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// A helper is a transient domain of ours that is created paused and never runs: a QEMU that opens images under
// libvirt's own rules (ownership, labels, locks, backing chains) and serves them over NBD. qemu-nbd beside libvirt
// would have none of that, and could not be started on another host.

// helperDisk is one disk of a helper.
type helperDisk struct {
	id       string
	source   *libvirtxml.DomainDiskSource
	format   hypervisors.DiskFormat
	writable bool
}

func helperName(tag string) string { return marker + tag }

func alias(i int) string { return fmt.Sprintf("ua-cairn%d", i) }

func helperXML(tag, arch string, disks []helperDisk) (string, error) {
	zero := uint(0)
	x := libvirtxml.Domain{
		Type: "qemu", Name: helperName(tag), Title: "Cairn helper, serves disks and runs no guest",
		Metadata: &libvirtxml.DomainMetadata{XML: helperMetadata(tag)},
		Memory:   &libvirtxml.DomainMemory{Value: 32, Unit: "MiB"},
		VCPU:     &libvirtxml.DomainVCPU{Value: 1},
		OS:       &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Type: "hvm", Arch: arch}},
		OnReboot: "destroy", OnPoweroff: "destroy", OnCrash: "destroy",
		Devices: &libvirtxml.DomainDeviceList{
			Controllers: []libvirtxml.DomainController{
				{Type: "scsi", Index: &zero, Model: "virtio-scsi"},
				{Type: "usb", Model: "none"},
			},
			MemBalloon: &libvirtxml.DomainMemBalloon{Model: "none"},
		},
		// The frontend never writes; without this it would keep the NBD export from writing.
		QEMUCommandline: &libvirtxml.DomainQEMUCommandline{
			Args: []libvirtxml.DomainQEMUCommandlineArg{{Value: "-global"}, {Value: "scsi-hd.share-rw=on"}},
		},
	}
	for i, disk := range disks {
		unit := uint(i)
		d := libvirtxml.DomainDisk{
			Device: "disk", Source: disk.source,
			Driver:  &libvirtxml.DomainDiskDriver{Name: "qemu", Type: string(disk.format), Discard: "unmap", DetectZeros: "unmap"},
			Target:  &libvirtxml.DomainDiskTarget{Dev: "sd" + letters(i), Bus: "scsi"},
			Alias:   &libvirtxml.DomainAlias{Name: alias(i)},
			Address: &libvirtxml.DomainAddress{Drive: &libvirtxml.DomainAddressDrive{Controller: &zero, Bus: &zero, Target: &zero, Unit: &unit}},
		}
		if !disk.writable {
			d.ReadOnly, d.Driver.Discard, d.Driver.DetectZeros = &libvirtxml.DomainDiskReadOnly{}, "", ""
		}
		x.Devices.Disks = append(x.Devices.Disks, d)
	}
	return x.Marshal()
}

// letters returns a, b, … z, aa, …
func letters(i int) string {
	name := ""
	for i++; i > 0; i = (i - 1) / 26 {
		name = string(rune('a'+(i-1)%26)) + name
	}
	return name
}

// startHelper creates the domain of a helper, paused. What it makes must be owed already.
func (d *Driver) startHelper(ctx context.Context, tag, arch string, disks []helperDisk) error {
	doc, err := helperXML(tag, arch, disks)
	if err != nil {
		return fault.Wrap(fault.Internal, "describe helper", helperName(tag), err)
	}
	_, err = making(ctx, d, tag, "start helper", helperName(tag), func(lv *libvirt.Connect) (none, error) {
		dom, err := lv.DomainCreateXML(doc, libvirt.DOMAIN_START_PAUSED)
		if err != nil {
			return none{}, err
		}
		return none{}, dom.Free()
	})
	return err
}

// onHelper runs fn with the monitor of a helper.
func onHelper[T any](ctx context.Context, d *Driver, tag, op string, fn func(monitor) (T, error)) (T, error) {
	return call(ctx, d.conn, op, helperName(tag), func(lv *libvirt.Connect) (T, error) {
		dom, err := lv.LookupDomainByName(helperName(tag))
		if err != nil {
			var zero T
			return zero, err
		}
		defer dom.Free()
		return fn(monitor{dom})
	})
}

// serve starts the helper's NBD server and exports its disks. bitmaps holds the name of the bitmap to export with
// a disk, by disk id.
func (d *Driver) serve(ctx context.Context, tag string, disks []helperDisk, at nbdAddress, bitmaps map[string]string) (nbdAddress, error) {
	return onHelper(ctx, d, tag, "export disks of", func(m monitor) (nbdAddress, error) {
		nodes, err := formatNodes(m)
		if err != nil {
			return at, err
		}
		if err := startNBD(m, &at); err != nil {
			return at, err
		}
		for i, disk := range disks {
			node, ok := nodes[alias(i)]
			if !ok {
				return at, fault.New(fault.Internal, "find disk", disk.id, "the helper does not have it")
			}
			if err := addExport(m, node, disk.id, disk.writable, bitmaps[disk.id]); err != nil {
				return at, err
			}
		}
		return at, nil
	})
}

// stopHelper ends a helper gracefully: QEMU flushes and closes the images. A helper that is gone is fine. It never
// kills: a killed QEMU may leave a qcow2 image that is not whole.
func (d *Driver) stopHelper(ctx context.Context, tag string) error {
	if err := d.waitMade(ctx, helperName(tag)); err != nil {
		return err
	}
	_, err := call(ctx, d.conn, "stop helper", helperName(tag), func(lv *libvirt.Connect) (none, error) {
		dom, err := lv.LookupDomainByName(helperName(tag))
		if number(err) == libvirt.ERR_NO_DOMAIN {
			return none{}, nil
		}
		if err != nil {
			return none{}, err
		}
		defer dom.Free()
		x, err := domainXML(dom, 0)
		if number(err) == libvirt.ERR_NO_DOMAIN {
			return none{}, nil
		}
		if err != nil {
			return none{}, err
		}
		if !isHelper(x) {
			return none{}, nil // a user's VM of that name
		}
		err = dom.DestroyFlags(libvirt.DOMAIN_DESTROY_GRACEFUL)
		if n := number(err); n == libvirt.ERR_NO_DOMAIN || n == libvirt.ERR_OPERATION_INVALID {
			return none{}, nil // it ended by itself
		}
		return none{}, err
	})
	return err
}
