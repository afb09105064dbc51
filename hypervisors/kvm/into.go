package kvm

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Disks that are restored into a VM that is there are attached to it one after the other, which is owed before. A manager that dies in
// the middle leaves them if the VM has got all, and takes them out again if not.

// kindHanded is a handover of disks to the VM of the Owed.
const kindHanded hypervisors.OwedKind = "handed-disks"

// argPaths are the paths of all volumes of a handover, a line each.
const argPaths = "paths"

// volumeName is what a volume of a restore is called: our mark, then what is asked for as far as every kind of pool takes it, or the source
// disk's id. No file has it, for a tag is used once. Of a long name the end stays, which tells the disks of a restore apart.
func volumeName(req hypervisors.RestoreRequest, want hypervisors.RestoreDisk) string {
	if req.Mode != hypervisors.RestoreInto || want.Name == "" {
		return marker + req.Tag + "-" + want.ID
	}
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && (r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("._+-", r)) {
			return r
		}
		return '_'
	}, want.Name)
	return marker + req.Tag + "-" + name[max(0, len(name)-80):]
}

// checkInto looks whether the VM that was named can get the disks.
func (p *restorePlan) checkInto(lv *libvirt.Connect) error {
	dom, err := lv.LookupDomainByUUIDString(p.uuid)
	if number(err) == libvirt.ERR_NO_DOMAIN {
		return fault.New(fault.NotFound, "restore disks into VM", p.uuid, "it does not exist").
			Explain("The host has no VM with this id.", "List the VMs of the connection, and name one of them.")
	}
	if err != nil {
		return err
	}
	defer dom.Free()
	for i := range p.disks {
		if _, err := p.disks[i].fit(dom, p.domain); err != nil {
			return err
		}
	}
	return nil
}

// fit says whether a VM can get a disk as it is now, and returns the disk as it is to be there: as the source had it, in a free place.
func (disk *plannedDisk) fit(dom *libvirt.Domain, source *libvirtxml.Domain) (*libvirtxml.DomainDisk, error) {
	running, err := dom.IsActive()
	if err != nil {
		return nil, err
	}
	saved, err := dom.HasManagedSaveImage(0) // asked last: a VM that is being saved runs until its memory is there
	if err != nil {
		return nil, err
	}
	now, err := domainXML(dom, 0)
	if err != nil {
		return nil, err
	}
	configured, err := domainXML(dom, libvirt.DOMAIN_XML_INACTIVE)
	if err != nil {
		return nil, err
	}
	out := disk.like(source)
	if err := disk.mayJoin(now, configured, out.Target.Bus, running, saved); err != nil {
		return nil, err
	}
	join(out, slices.Concat(now.Devices.Disks, configured.Devices.Disks))
	return out, nil
}

// like returns the disk as the source had it, but for what is the source VM's.
func (disk *plannedDisk) like(source *libvirtxml.Domain) *libvirtxml.DomainDisk {
	out := libvirtxml.DomainDisk{Target: &libvirtxml.DomainDiskTarget{Dev: disk.id, Bus: "virtio"}}
	if stored := diskOf(source, disk.id); stored != nil {
		out = *stored
	}
	disk.replace(&out)
	out.Address, out.Alias, out.Boot = nil, nil, nil
	out.Driver.IOThread = nil
	return &out
}

// mayJoin refuses a VM, as it is now and as it is configured, that cannot get a disk on a bus.
func (disk *plannedDisk) mayJoin(now, configured *libvirtxml.Domain, bus string, running, saved bool) error {
	no := func(what, meaning, advice string) error {
		return fault.New(fault.Conflict, "restore disks into VM", now.Name, "%s", what).Explain(meaning, advice)
	}
	lacksSCSI := func(x *libvirtxml.Domain) bool {
		return !slices.ContainsFunc(x.Devices.Controllers, func(c libvirtxml.DomainController) bool { return c.Type == "scsi" })
	}
	switch {
	case isHelper(now) || isMover(now):
		return no("it is one of Cairn's own", "What is plugged into a mover belongs to Cairn's own work.", "Choose another VM.")
	case saved:
		return no("its memory is saved", "The VM would resume without the disk.", "Start it, or discard the saved memory with: virsh managedsave-remove "+now.Name)
	case running && bus != "virtio" && bus != "scsi":
		return no("it runs, and disk "+disk.id+" is a disk of the bus "+bus, "QEMU plugs only virtio and SCSI disks into a VM that runs.",
			"Shut the VM down and start the restore again.")
	case bus == "scsi" && (lacksSCSI(now) || lacksSCSI(configured)):
		return no("it has no SCSI controller, and disk "+disk.id+" wants one", "The VM cannot take a disk of this bus.",
			"Add one (virsh edit: <controller type='scsi' model='virtio-scsi'/>), or choose another VM.")
	}
	return nil
}

// join gives a disk a name beside those that a VM has. Two disks of one serial number or WWN would be one to the guest.
func join(out *libvirtxml.DomainDisk, taken []libvirtxml.DomainDisk) {
	out.Target = &libvirtxml.DomainDiskTarget{Dev: freeTarget(out.Target.Bus, taken), Bus: out.Target.Bus}
	if slices.ContainsFunc(taken, func(d libvirtxml.DomainDisk) bool { return d.Serial == out.Serial }) {
		out.Serial = ""
	}
	if slices.ContainsFunc(taken, func(d libvirtxml.DomainDisk) bool { return d.WWN == out.WWN }) {
		out.WWN = ""
	}
}

// freeTarget is the first name of a bus that no disk has.
func freeTarget(bus string, taken []libvirtxml.DomainDisk) string {
	prefix := map[string]string{"virtio": "vd", "ide": "hd", "fdc": "fd", "xen": "xvd"}[bus]
	if prefix == "" {
		prefix = "sd"
	}
	for i := 0; ; i++ {
		name := prefix + letters(i)
		if !slices.ContainsFunc(taken, func(d libvirtxml.DomainDisk) bool { return d.Target != nil && d.Target.Dev == name }) {
			return name
		}
	}
}

// handOver gives the VM the disks.
func (r *restoring) handOver(ctx context.Context) ([]string, error) {
	paths := make([]string, len(r.plan.disks))
	for i, disk := range r.plan.disks {
		paths[i] = disk.path
	}
	err := r.owe(ctx, hypervisors.Owed{
		Kind: kindHanded, VM: r.plan.uuid, Name: marker + r.req.Tag, Args: map[string]string{argPaths: strings.Join(paths, "\n")},
	})
	if err != nil {
		return nil, err
	}
	var notes []string
	for i := range r.plan.disks {
		disk := &r.plan.disks[i]
		note, err := making(ctx, r.d, r.req.Tag, "attach disk "+disk.id+" to", r.plan.uuid, func(lv *libvirt.Connect) (string, error) {
			dom, err := lv.LookupDomainByUUIDString(r.plan.uuid)
			if err != nil {
				return "", err
			}
			defer dom.Free()
			return disk.attach(dom, r.plan.domain)
		})
		if err != nil {
			return nil, err
		}
		notes = append(notes, note)
	}
	return notes, nil
}

// attach attaches a volume to a VM, plugs it in if the VM runs, and says how.
func (disk *plannedDisk) attach(dom *libvirt.Domain, source *libvirtxml.Domain) (string, error) {
	x, err := disk.fit(dom, source)
	if err != nil {
		return "", err
	}
	doc, err := x.Marshal()
	if err != nil {
		return "", err
	}
	flags, how := libvirt.DOMAIN_DEVICE_MODIFY_CONFIG, "is attached to the VM"
	if active, err := dom.IsActive(); err != nil {
		return "", err
	} else if active {
		flags, how = flags|libvirt.DOMAIN_DEVICE_MODIFY_LIVE, "is plugged into the VM, which runs,"
	}
	if err := dom.AttachDeviceFlags(doc, flags); err != nil {
		if strings.Contains(err.Error(), "No more available PCI slots") {
			return "", fault.New(fault.Conflict, "", "", "it has no free PCI slot").Explain(
				"There is no place in the VM where a disk could be plugged in while it runs.", "Shut the VM down and start the restore again.")
		}
		return "", err
	}
	return fmt.Sprintf("Disk %s %s as %s, in the volume %s of pool %s.", disk.id, how, x.Target.Dev, disk.volume, disk.pool.Name), nil
}

// cleanHanded ends a handover that was cut off: what the VM has got as a whole it keeps.
func (d *Driver) cleanHanded(ctx context.Context, o hypervisors.Owed) error {
	whole, err := onDomain(ctx, d.conn, "look at", o.VM, func(lv *libvirt.Connect, dom *libvirt.Domain) (bool, error) {
		x, err := domainXML(dom, libvirt.DOMAIN_XML_INACTIVE)
		if err != nil {
			return false, err
		}
		for path := range strings.SplitSeq(o.Args[argPaths], "\n") {
			if diskAt(lv, x, path) == nil {
				return false, nil
			}
		}
		return true, nil
	})
	if fault.KindOf(err) == fault.NotFound {
		return nil
	}
	if err != nil || whole {
		return err
	}
	return d.takeBack(ctx, o)
}

func diskAt(lv *libvirt.Connect, x *libvirtxml.Domain, path string) *libvirtxml.DomainDisk {
	for i := range x.Devices.Disks {
		if path != "" && sourcePath(lv, x.Devices.Disks[i].Source) == path {
			return &x.Devices.Disks[i]
		}
	}
	return nil
}

// takeBack takes the disks of a handover out of the VM again; their volumes are owed themselves. Only volumes with our mark are.
func (d *Driver) takeBack(ctx context.Context, o hypervisors.Owed) error {
	for path := range strings.SplitSeq(o.Args[argPaths], "\n") {
		if !strings.HasPrefix(baseName(path), o.Name) {
			return fault.New(fault.Invalid, "clean up handover", o.Name, "%s does not carry its mark", path)
		}
		var asked time.Time
		err := poll(ctx, detachLimit, "the VM has let go of "+path, func() (bool, error) {
			gone, err := onDomain(ctx, d.conn, "detach disk from", o.VM, func(lv *libvirt.Connect, dom *libvirt.Domain) (bool, error) {
				if time.Since(asked) < 10*time.Second {
					return letGo(lv, dom, path)
				}
				asked = time.Now()
				return detachPath(lv, dom, path)
			})
			if fault.KindOf(err) == fault.NotFound {
				return true, nil
			}
			return gone, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// letGo answers whether a VM has no disk at a path any more, neither as it runs nor as it is configured.
func letGo(lv *libvirt.Connect, dom *libvirt.Domain, path string) (gone bool, err error) {
	for _, flags := range []libvirt.DomainXMLFlags{0, libvirt.DOMAIN_XML_INACTIVE} {
		x, err := domainXML(dom, flags)
		if err != nil || diskAt(lv, x, path) != nil {
			return false, err
		}
	}
	return true, nil
}

// detachPath asks for a disk to be taken out of a VM as it runs and as it is configured; what is gone already is fine.
func detachPath(lv *libvirt.Connect, dom *libvirt.Domain, path string) (gone bool, err error) {
	for _, at := range []struct {
		xml    libvirt.DomainXMLFlags
		device libvirt.DomainDeviceModifyFlags
	}{{libvirt.DOMAIN_XML_INACTIVE, libvirt.DOMAIN_DEVICE_MODIFY_CONFIG}, {0, libvirt.DOMAIN_DEVICE_MODIFY_LIVE}} {
		active, err := dom.IsActive()
		if err != nil {
			return false, err
		}
		if at.device == libvirt.DOMAIN_DEVICE_MODIFY_LIVE && !active {
			continue
		}
		x, err := domainXML(dom, at.xml)
		if err != nil {
			return false, err
		}
		disk := diskAt(lv, x, path)
		if disk == nil {
			continue
		}
		doc, err := disk.Marshal()
		if err != nil {
			return false, err
		}
		err = dom.DetachDeviceFlags(doc, at.device)
		if n := number(err); err != nil && n != libvirt.ERR_DEVICE_MISSING && n != libvirt.ERR_OPERATION_INVALID && !strings.Contains(err.Error(), "in the process of unplug") {
			return false, err
		}
	}
	return letGo(lv, dom, path)
}
