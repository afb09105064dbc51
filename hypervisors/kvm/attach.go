package kvm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// A disk is attached to a mover VM as the NBD export that Freeze or BeginRestore has opened on the host: the mover's
// QEMU is one more client of it. So image locks, labels and backing chains stay with the QEMU that has the image
// open, and nothing has to be merged or switched when the mover lets go. Tried and refused by QEMU's locks: the active
// image itself, in any combination of read-only and shareable.

// detachLimit is how long a guest may take to let go of a disk.
const detachLimit = time.Minute

// attached is a disk in a mover VM.
type attached struct {
	d      *Driver
	owed   hypervisors.Owed
	export hypervisors.Export
}

// Export is what the mover opens.
func (a *attached) Export() hypervisors.Export { return a.export }

// Detach unplugs the disk and waits until it is gone.
func (a *attached) Detach(ctx context.Context) error { return a.d.CleanUp(ctx, a.owed) }

// Attach hot-plugs a disk of a freeze or a restore into a mover VM on the same host.
func (d *Driver) Attach(ctx context.Context, req hypervisors.AttachRequest) (_ hypervisors.Attached, err error) {
	if d.access == accessTLS {
		return d.Unsupported.Attach(ctx, req) // QEMU as a client would need a certificate of its own there
	}
	if err := checkTag(req.Tag); err != nil {
		return nil, err
	}
	if err := checkUUID(req.Mover); err != nil {
		return nil, err
	}
	if req.Export.Transport != hypervisors.TransportNBD || !goodDisk(req.Export.Name) || !hypervisors.GoodSerial(req.Serial) {
		return nil, fault.New(fault.Invalid, "attach disk", req.Export.Name, "transport %q, serial %q", req.Export.Transport, req.Serial)
	}
	a := &attached{d: d,
		owed: hypervisors.Owed{
			Kind: hypervisors.OwedAttached, VM: req.Mover, Name: marker + req.Tag + "-" + req.Export.Name, Args: map[string]string{"serial": req.Serial},
		},
		export: hypervisors.Export{
			Transport: hypervisors.TransportHotadd, Name: req.Export.Name, Serial: req.Serial,
			SizeBytes: req.Export.SizeBytes, Writable: req.Export.Writable,
		},
	}
	if err := req.Owe(ctx, a.owed); err != nil {
		return nil, fault.Context("record owed clean-up", a.owed.Name, err)
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limitAfter(ctx))
			defer cancel()
			if e := a.Detach(ctx); e != nil {
				d.log.Warn("clean-up after a failed attach is left owed", "mover", req.Mover, "disk", req.Export.Name, "err", e)
			}
		}
	}()
	if err := d.plug(ctx, req, a.owed.Name); err != nil {
		return nil, err
	}
	return a, nil
}

// limitAfter is how long a clean-up may take after an error: little when somebody waits for the end of what he has
// cancelled.
func limitAfter(ctx context.Context) time.Duration {
	if ctx.Err() != nil {
		return 4 * time.Second
	}
	return releaseLimit
}

func goodDisk(id string) bool { return goodTag.MatchString(id) }

// plug attaches the disk, one at a time: two would choose the same place in the mover. Somebody else may still take it in the
// same moment; then it looks for another one.
func (d *Driver) plug(ctx context.Context, req hypervisors.AttachRequest, name string) error {
	_, err := making(ctx, d, req.Tag, "attach disk "+req.Export.Name+" to mover", req.Mover, func(lv *libvirt.Connect) (none, error) {
		dom, err := lv.LookupDomainByUUIDString(req.Mover)
		if err != nil {
			return none{}, err
		}
		defer dom.Free()
		d.plugging.Lock()
		defer d.plugging.Unlock()
		for try := 1; ; try++ {
			doc, err := attachXML(dom, &d.addresses, req, name, d.socketPath(req.Tag))
			if err != nil {
				return none{}, err
			}
			err = dom.AttachDeviceFlags(doc, libvirt.DOMAIN_DEVICE_MODIFY_LIVE)
			if err == nil || try == 10 || !placeTaken(err) {
				return none{}, explainAttach(err)
			}
		}
	})
	return err
}

// placeTaken says whether a disk was refused because of its target or its address.
func placeTaken(err error) bool {
	return strings.Contains(err.Error(), "already") || strings.Contains(err.Error(), "duplicated")
}

// attachXML describes the disk in a free place of the mover as it is now.
func attachXML(dom *libvirt.Domain, addresses *scsiAddresses, req hypervisors.AttachRequest, name, socket string) (string, error) {
	active, err := dom.IsActive()
	if err != nil {
		return "", err
	}
	x, err := domainXML(dom, 0)
	if err != nil {
		return "", err
	}
	if !isMover(x) {
		return "", fault.New(fault.Denied, "", "", "the VM %s is not marked as a mover", x.Name).Explain(
			"Disks of other VMs are plugged only into VMs that Cairn itself has made as movers.",
			"Deploy a mover on this host with `cairn mover deploy`, or let the transfer go over the network.")
	}
	if !active {
		return "", fault.New(fault.Conflict, "", "", "the mover's VM is not running").
			Explain("Disks can be plugged only into a mover that runs.", "Start the mover's VM, or let the transfer go over the network.")
	}
	if slices.ContainsFunc(x.Devices.Disks, func(disk libvirtxml.DomainDisk) bool { return disk.Serial == req.Serial }) {
		return "", fault.New(fault.Exists, "", "", "the mover has a disk with the serial %s already", req.Serial)
	}
	disk := libvirtxml.DomainDisk{
		Device: "disk",
		// The guest is told of errors; without this a full datastore would stop the mover's VM.
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "raw", Cache: "none", ErrorPolicy: "report", RErrorPolicy: "report"},
		Source: &libvirtxml.DomainDiskSource{Network: &libvirtxml.DomainDiskSourceNetwork{
			Protocol: "nbd", Name: req.Export.Name, Hosts: []libvirtxml.DomainDiskSourceHost{{Transport: "unix", Socket: socket}},
		}},
		Serial: req.Serial,
		Alias:  &libvirtxml.DomainAlias{Name: aliasOf(name)},
	}
	if req.Export.Writable {
		disk.Driver.Discard = "unmap"
	} else {
		disk.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
	}
	place(addresses, x, &disk)
	return disk.Marshal()
}

// place gives the disk a target and, on a virtio-scsi controller, an address of its own: libvirt's choice would be the
// one that has just become free, and on another controller for every eighth name. Without such a controller it becomes a PCI device, if there is a slot.
func place(addresses *scsiAddresses, x *libvirtxml.Domain, disk *libvirtxml.DomainDisk) {
	taken := map[string]bool{}
	for i := range x.Devices.Disks {
		if t := x.Devices.Disks[i].Target; t != nil {
			taken[t.Dev] = true
		}
	}
	free := func(prefix string) string {
		for i := 0; ; i++ {
			if name := prefix + letters(i); !taken[name] {
				return name
			}
		}
	}
	for _, c := range x.Devices.Controllers {
		if c.Type != "scsi" || !strings.HasPrefix(c.Model, "virtio") || c.Index == nil {
			continue
		}
		if at, ok := addresses.next(x.UUID, takenAddresses(x, *c.Index)); ok {
			zero := uint(0)
			disk.Target = &libvirtxml.DomainDiskTarget{Dev: free("sd"), Bus: "scsi"}
			disk.Address = &libvirtxml.DomainAddress{Drive: &libvirtxml.DomainAddressDrive{Controller: c.Index, Bus: &zero, Target: &at.target, Unit: &at.unit}}
			return
		}
	}
	disk.Target = &libvirtxml.DomainDiskTarget{Dev: free("vd"), Bus: "virtio"}
}

func explainAttach(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	switch {
	case strings.Contains(text, "No more available PCI slots"):
		return fault.New(fault.Conflict, "", "", "the mover's VM has no virtio-scsi controller and no free PCI slot").Explain(
			"There is no place in the mover's VM where a disk could be plugged in.",
			"Add a virtio-scsi controller to it (virsh edit: <controller type='scsi' model='virtio-scsi'/>), or free PCIe root ports, or let the transfer go over the network.")
	case strings.Contains(text, "Failed to connect to"):
		kind := fault.Conflict
		if strings.Contains(text, "Permission denied") {
			kind = fault.Denied
		}
		return fault.Wrap(kind, "", "", platformError(text)).Explain(
			"The mover's QEMU could not open the disk that another QEMU of this host offers.",
			"If the host confines QEMU (SELinux, AppArmor), look into its audit log; let the transfer go over the network until that is allowed.")
	}
	return err
}

func aliasOf(name string) string { return "ua-" + name }

// attachedName is the name under which a disk of a running VM is owed; "" for disks that are not attached by us.
func attachedName(disk *libvirtxml.DomainDisk) string {
	if disk.Alias == nil || !strings.HasPrefix(disk.Alias.Name, aliasOf(marker)) {
		return ""
	}
	return strings.TrimPrefix(disk.Alias.Name, aliasOf(""))
}

// unplug detaches a disk and waits until libvirt shows it no more, which is when QEMU has said that the guest let go
// of it. A guest that does not listen is asked again; a VM that is off or gone has no such disk.
func (d *Driver) unplug(ctx context.Context, o hypervisors.Owed) error {
	var asked time.Time
	err := poll(ctx, detachLimit, "the mover has let go of disk "+o.Name, func() (bool, error) {
		gone, err := onDomain(ctx, d.conn, "detach disk "+o.Name+" from mover", o.VM, func(_ *libvirt.Connect, dom *libvirt.Domain) (bool, error) {
			x, err := domainXML(dom, 0)
			if err != nil {
				return false, err
			}
			if !slices.ContainsFunc(x.Devices.Disks, func(disk libvirtxml.DomainDisk) bool { return attachedName(&disk) == o.Name }) {
				return true, nil
			}
			if time.Since(asked) < 10*time.Second {
				return false, nil
			}
			asked = time.Now()
			err = dom.DetachDeviceAlias(aliasOf(o.Name), libvirt.DOMAIN_DEVICE_MODIFY_LIVE)
			switch n := number(err); {
			case n == libvirt.ERR_DEVICE_MISSING, n == libvirt.ERR_OPERATION_INVALID:
				return false, nil // it has gone, or the VM stopped, a moment ago: the next look tells
			case err != nil && strings.Contains(err.Error(), "in the process of unplug"):
				return false, nil
			}
			return false, err
		})
		if err != nil && fault.KindOf(err) == fault.NotFound {
			return true, nil
		}
		return gone, err
	})
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Op == "wait until" && !errors.Is(ctx.Err(), context.Canceled) {
		return e.Explain("The mover's guest does not answer the request to let go of a disk, so that the disk is still plugged in.",
			fmt.Sprintf("This is tried again. If it does not help, restart the mover's VM: virsh destroy %s, then virsh start %s.", o.VM, o.VM))
	}
	return err
}
