package kvm

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// restorePlan is a restore request that was found possible.
type restorePlan struct {
	uuid   string // of the VM to be
	domain *libvirtxml.Domain
	disks  []plannedDisk
	nvram  string // file to make for the UEFI variables; empty for none
	notes  []string
}

// plannedDisk is one volume to make.
type plannedDisk struct {
	id     string
	size   int64
	format hypervisors.DiskFormat
	pool   pool
	volume string // name, with our mark
	path   string // known once it exists
}

func (p *restorePlan) arch() string {
	if p.domain.OS.Type != nil {
		return p.domain.OS.Type.Arch
	}
	return ""
}

// planRestore checks everything that can be checked before something is made.
func (d *Driver) planRestore(ctx context.Context, req hypervisors.RestoreRequest) (*restorePlan, error) {
	if err := checkTag(req.Tag); err != nil {
		return nil, err
	}
	uuid, err := restoredUUID(req)
	if err != nil {
		return nil, err
	}
	p := &restorePlan{uuid: uuid}
	stored, err := parseDomain(string(req.Document(docDomain)))
	if err != nil {
		return nil, fault.New(fault.Invalid, "restore VM", req.VM.Name, "the restore point's %s cannot be read: %w", docDomain, err).
			Explain("This restore point was not made on a KVM host, or its configuration is damaged.", "Choose another restore point, or export its disks.")
	}
	p.domain = stored
	if p.disks, err = planDisks(req); err != nil {
		return nil, err
	}
	_, err = call(ctx, d.conn, "check restore of", req.VM.Name, func(lv *libvirt.Connect) (none, error) {
		if err := p.placeDisks(lv, req); err != nil {
			return none{}, err
		}
		switch req.Mode {
		case hypervisors.RestoreInPlace:
			return none{}, p.checkOriginal(lv, req)
		case hypervisors.RestoreInto:
			return none{}, p.checkInto(lv)
		}
		return none{}, d.checkNew(lv, req, p)
	})
	if err != nil {
		return nil, err
	}
	inPlace := req.Mode == hypervisors.RestoreInPlace
	if len(req.Document(docNVRAM)) > 0 && req.Mode != hypervisors.RestoreInto && !(inPlace && req.Chosen) {
		p.nvram = filepath.Join(d.nvramDir(), marker+req.Tag+"_VARS.fd")
		if old := nvramPath(p.domain); old != "" && inPlace {
			p.nvram = filepath.Join(filepath.Dir(old), filepath.Base(p.nvram))
		}
	}
	return p, nil
}

// restoredUUID is that of the VM that is made, or that gets disks.
func restoredUUID(req hypervisors.RestoreRequest) (string, error) {
	switch req.Mode {
	case hypervisors.RestoreNew:
		return newUUID(), checkName(req.Name)
	case hypervisors.RestoreInPlace:
		return req.VM.ID, checkUUID(req.VM.ID)
	case hypervisors.RestoreInto:
		return req.Into, checkUUID(req.Into)
	case hypervisors.RestoreDisks:
		return "", fault.New(fault.Unsupported, "restore disks", req.VM.Name, "disks that no VM has are not made on a KVM host").
			Explain("A KVM host has volumes, but no disks of their own.", "Restore them into a VM that is there, or as a new VM with these disks alone.")
	}
	return "", fault.New(fault.Invalid, "restore VM", req.VM.Name, "unknown mode %q", req.Mode)
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func checkName(name string) error {
	bad := ""
	switch {
	case name == "":
		bad = "it is empty"
	case len(name) > 200:
		bad = "it is longer than 200 bytes"
	case strings.ContainsAny(name, "/\n\r\t\x00"):
		bad = "it contains a slash or a control character"
	case strings.TrimSpace(name) != name:
		bad = "it begins or ends with a space"
	case strings.HasPrefix(name, marker):
		bad = "names that begin with " + marker + " are kept for helpers of this product"
	default:
		return nil
	}
	return fault.New(fault.Invalid, "restore VM as", fmt.Sprintf("%q", name), "%s", bad).
		Explain("This cannot be the name of a VM on this host.", "Choose another name.")
}

// planDisks checks the requested disks against the stored VM.
func planDisks(req hypervisors.RestoreRequest) ([]plannedDisk, error) {
	var out []plannedDisk
	for _, want := range req.Disks {
		bad := func(format string, args ...any) error {
			return fault.New(fault.Invalid, "restore disk", want.ID, format, args...)
		}
		i := slices.IndexFunc(req.VM.Disks, func(disk hypervisors.Disk) bool { return disk.ID == want.ID })
		if i < 0 {
			return nil, bad("the VM in the restore point has no such disk")
		}
		src := req.VM.Disks[i]
		disk := plannedDisk{id: want.ID, size: want.SizeBytes, format: want.Format, pool: pool{hypervisors.Datastore{Name: want.Datastore}}}
		if slices.ContainsFunc(out, func(o plannedDisk) bool { return o.id == want.ID }) {
			return nil, bad("it is named twice")
		}
		if disk.size == 0 {
			disk.size = src.SizeBytes
		}
		if disk.size <= 0 || disk.size < src.SizeBytes {
			return nil, bad("its size would be %d bytes, and the restore point has %d", disk.size, src.SizeBytes)
		}
		if disk.format == "" {
			disk.format = src.Format
		}
		if disk.format != hypervisors.Raw && disk.format != hypervisors.QCOW2 {
			return nil, bad("format %q is neither raw nor qcow2", disk.format)
		}
		if disk.pool.Name == "" {
			disk.pool.Name = src.Datastore
		}
		if disk.pool.Name == "" {
			return nil, bad("the source disk lay in no storage pool, and the request names none").(*fault.Error).
				Explain("It is not known where on the host this disk is to be put.", "Choose a datastore for the restore.")
		}
		disk.volume = volumeName(req, want)
		out = append(out, disk)
	}
	return out, nil
}

// placeDisks finds the pools, and sees whether they can take the disks.
func (p *restorePlan) placeDisks(lv *libvirt.Connect, req hypervisors.RestoreRequest) error {
	pools, err := freshPools(lv)
	if err != nil {
		return err
	}
	need := map[string]int64{}
	for i := range p.disks {
		disk := &p.disks[i]
		n := slices.IndexFunc(pools, func(o pool) bool { return o.Name == disk.pool.Name })
		if n < 0 {
			return fault.New(fault.NotFound, "restore disk", disk.id, "there is no storage pool %q", disk.pool.Name).
				Explain("The chosen datastore does not exist on this host.", "List the datastores of the connection and choose one of them.")
		}
		disk.pool = pools[n]
		if !disk.pool.Active {
			return fault.New(fault.Conflict, "restore disk", disk.id, "the storage pool %q is not active", disk.pool.Name).
				Explain("The chosen datastore is not started.", "Start it with: virsh pool-start "+disk.pool.Name)
		}
		switch {
		case fileBased(disk.pool.Kind):
			disk.volume += "." + string(disk.format)
		case disk.pool.Kind == "logical":
			if disk.format != hypervisors.Raw {
				return fault.New(fault.Invalid, "restore disk", disk.id, "the storage pool %q is a volume group and takes raw disks only", disk.pool.Name).
					Explain("qcow2 disks need a datastore that keeps files.", "Choose the format raw, or another datastore.")
			}
		default:
			return fault.New(fault.Invalid, "restore disk", disk.id, "volumes cannot be made in a storage pool of kind %q", disk.pool.Kind).
				Explain("This driver makes disks in directories and volume groups.", "Choose another datastore.")
		}
		need[disk.pool.Name] += spaceFor(*disk, req.VM)
	}
	for _, o := range pools {
		if n := need[o.Name]; n > o.FreeBytes {
			return fault.New(fault.Conflict, "restore VM", req.VM.Name, "the storage pool %q has %d bytes free, and about %d are needed", o.Name, o.FreeBytes, n).
				Explain("The chosen datastore has too little room.", "Free space there, or choose another datastore.")
		}
	}
	return nil
}

// spaceFor estimates what a disk will take: files are sparse, logical volumes are not.
func spaceFor(disk plannedDisk, vm hypervisors.VM) int64 {
	i := slices.IndexFunc(vm.Disks, func(src hypervisors.Disk) bool { return src.ID == disk.id })
	if fileBased(disk.pool.Kind) && i >= 0 && vm.Disks[i].UsedBytes > 0 {
		return min(disk.size, vm.Disks[i].UsedBytes)
	}
	return disk.size
}

// checkOriginal looks at the VM whose disks are to be replaced; its present definition is what Finish changes.
func (p *restorePlan) checkOriginal(lv *libvirt.Connect, req hypervisors.RestoreRequest) error {
	dom, err := lv.LookupDomainByUUIDString(p.uuid)
	if number(err) == libvirt.ERR_NO_DOMAIN {
		return fault.New(fault.NotFound, "restore VM in place", req.VM.Name, "it does not exist any more").
			Explain("The original VM was removed from the host.", "Restore it as a new VM.")
	}
	if err != nil {
		return err
	}
	defer dom.Free()
	active, err := dom.IsActive()
	if err != nil {
		return err
	}
	if active {
		return mustBeOff(req.VM.Name)
	}
	if saved, err := dom.HasManagedSaveImage(0); err != nil || saved {
		if err == nil {
			err = fault.New(fault.Conflict, "restore VM in place", req.VM.Name, "its memory is saved").
				Explain("The VM would resume with memory that does not belong to the restored disks.", "Discard the saved memory with: virsh managedsave-remove "+req.VM.Name)
		}
		return err
	}
	if n, err := dom.SnapshotNum(0); err != nil || n > 0 {
		if err == nil {
			err = fault.New(fault.Conflict, "restore VM in place", req.VM.Name, "it has %d snapshots", n).
				Explain("The snapshots belong to the present disks and would be lost.", "Delete the snapshots first, or restore as a new VM.")
		}
		return err
	}
	if p.domain, err = domainXML(dom, libvirt.DOMAIN_XML_INACTIVE|libvirt.DOMAIN_XML_SECURE); err != nil {
		return err
	}
	for _, disk := range p.disks {
		x := diskOf(p.domain, disk.id)
		if x == nil {
			return fault.New(fault.Conflict, "restore disk", disk.id, "the VM has no disk of this name any more").
				Explain("The VM was changed since the backup.", "Restore as a new VM, or leave this disk out.")
		}
		if why := describeDisk(x).Unprotectable; why != "" {
			return fault.New(fault.Conflict, "restore disk", disk.id, "the VM's disk of this name is something else now: %s", why).
				Explain("The VM was changed since the backup.", "Restore as a new VM, or leave this disk out.")
		}
	}
	return nil
}

func diskOf(x *libvirtxml.Domain, id string) *libvirtxml.DomainDisk {
	for i := range x.Devices.Disks {
		if disk := &x.Devices.Disks[i]; disk.Target != nil && disk.Target.Dev == id {
			return disk
		}
	}
	return nil
}

// checkNew looks whether a new VM of this name and configuration can be made here.
func (d *Driver) checkNew(lv *libvirt.Connect, req hypervisors.RestoreRequest, p *restorePlan) error {
	dom, err := lv.LookupDomainByName(req.Name)
	if err == nil {
		_ = dom.Free()
		return fault.New(fault.Exists, "restore VM as", req.Name, "a VM of this name exists").
			Explain("The host has a VM of this name already.", "Choose another name.")
	}
	if number(err) != libvirt.ERR_NO_DOMAIN {
		return err
	}
	for source, target := range req.Networks {
		if !slices.ContainsFunc(describeNICs(p.domain), func(n hypervisors.NIC) bool { return n.Network == source }) {
			return fault.New(fault.Invalid, "map network", source, "the VM in the restore point is not connected to it")
		}
		if _, err := parseNetwork(target); target != "" && err != nil {
			return err
		}
	}
	for _, nic := range describeNICs(p.domain) {
		if err := d.checkNetwork(lv, mapped(req, nic.Network)); err != nil {
			return err
		}
	}
	return checkHost(lv, p)
}

func mapped(req hypervisors.RestoreRequest, network string) string {
	if to, ok := req.Networks[network]; ok {
		return to
	}
	return network
}

func (d *Driver) checkNetwork(lv *libvirt.Connect, name string) error {
	kind, rest, _ := strings.Cut(name, ":")
	missing := false
	switch {
	case kind == "network":
		n, err := lv.LookupNetworkByName(rest)
		switch {
		case err == nil:
			_ = n.Free()
		case number(err) == libvirt.ERR_NO_NETWORK:
			missing = true
		default:
			return err
		}
	case (kind == "bridge" || kind == "direct") && d.access == accessLocal:
		_, err := os.Stat(filepath.Join("/sys/class/net", rest))
		missing = err != nil
	}
	if missing {
		return fault.New(fault.NotFound, "connect NIC to", name, "this host has no such network").
			Explain("A network of the VM does not exist on this host.", "Map it to one of the networks of this connection, or disconnect the NIC.")
	}
	return nil
}

// parseNetwork turns "network:default" into what a NIC is connected to.
func parseNetwork(name string) (*libvirtxml.DomainInterfaceSource, error) {
	kind, rest, _ := strings.Cut(name, ":")
	switch {
	case name == "user":
		return &libvirtxml.DomainInterfaceSource{User: &libvirtxml.DomainInterfaceSourceUser{}}, nil
	case kind == "network" && rest != "":
		return &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: rest}}, nil
	case kind == "bridge" && rest != "":
		return &libvirtxml.DomainInterfaceSource{Bridge: &libvirtxml.DomainInterfaceSourceBridge{Bridge: rest}}, nil
	case kind == "direct" && rest != "":
		return &libvirtxml.DomainInterfaceSource{Direct: &libvirtxml.DomainInterfaceSourceDirect{Dev: rest, Mode: "bridge"}}, nil
	}
	return nil, fault.New(fault.Invalid, "map network to", name, "it is not network:<name>, bridge:<name>, direct:<device> or user").
		Explain("This is not a network of a KVM host.", "List the networks of the connection and choose one of them.")
}

// checkHost asks libvirt whether this host can run such a machine, and gives up on hardware virtualisation where
// there is none.
func checkHost(lv *libvirt.Connect, p *restorePlan) error {
	arch, machine := "", ""
	if t := p.domain.OS.Type; t != nil {
		arch, machine = t.Arch, t.Machine
	}
	emulator := p.domain.Devices.Emulator
	_, err := lv.GetDomainCapabilities(emulator, arch, machine, p.domain.Type, 0)
	if err != nil && emulator != "" {
		if _, e := lv.GetDomainCapabilities("", arch, machine, p.domain.Type, 0); e == nil {
			p.domain.Devices.Emulator, err = "", nil
		}
	}
	if err != nil && p.domain.Type == "kvm" {
		if _, e := lv.GetDomainCapabilities("", arch, machine, "qemu", 0); e == nil {
			p.domain.Type, p.domain.Devices.Emulator, err = "qemu", "", nil
			p.notes = append(p.notes, "This host has no hardware virtualisation for the VM, so that it runs by emulation, slowly.")
		}
	}
	if err == nil {
		return nil
	}
	if lostConnection(err) {
		return err
	}
	return fault.New(fault.Conflict, "restore VM", p.domain.Name, "libvirt: %s", err).
		Explain(fmt.Sprintf("This host cannot run the VM's machine (%s, %s).", arch, machine), "Restore to a host with the same or a newer version of QEMU.")
}
